"""Does an exported GGUF say in llama.cpp what `scorefast eval` measured? Token by token, and reply by reply.

    cmake -B build llama.cpp && cmake --build build --target llama-server
    LLAMA_CPP=llama.cpp python benchmarks/llama_cpp.py runs/smollm2/stage2 runs/smollm2/eval-stage2 \\
        --server build/bin/llama-server --max-new-tokens 48

Takes a checkpoint and the folder that `eval --out` wrote of it. The server gets the messages of both turns, as any
client would send them, and puts them into the template that lies in the GGUF. Compared are the prompts' token ids with
those of training, and the greedy replies with the transcripts'. Weights are bfloat16 there and were float32 in `eval`.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import socket
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from scorefast.data.example import Example
from scorefast.export import export_checkpoint
from scorefast.grading.reward import grade_example
from scorefast.model.tokenizer import chat_format
from scorefast.runs.checkpoint import open_checkpoint

RESULT = Path(__file__).parent / "results" / "llama_cpp.md"


class Server:
    """llama-server on this machine, as long as the context lasts."""

    def __init__(self, binary: Path, model: Path, context: int):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"http://127.0.0.1:{free.getsockname()[1]}"
        port = self.address.rsplit(":", 1)[1]
        self.command = [str(binary), "-m", str(model), "-c", str(context), "-np", "1", "--jinja", "--port", port]

    def __enter__(self) -> Server:
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        began = time.monotonic()
        while self.process.poll() is None and time.monotonic() - began < 120:
            try:
                urllib.request.urlopen(f"{self.address}/health")
                return self
            except (urllib.error.URLError, ConnectionError):
                time.sleep(1)
        self.process.kill()
        sys.exit("llama-server did not come up")

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()

    def post(self, path: str, content: dict[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.address}/{path}", json.dumps(content).encode(), headers)
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def ids(self, messages: list[dict[str, str]]) -> list[int]:
        prompt = self.post("apply-template", {"messages": messages})["prompt"]
        return self.post("tokenize", {"content": prompt, "add_special": True, "parse_special": True})["tokens"]

    def reply(self, messages: list[dict[str, str]], length: int) -> str:
        greedy = {"messages": messages, "temperature": 0, "repeat_penalty": 1.0, "max_tokens": length}
        return self.post("v1/chat/completions", greedy)["choices"][0]["message"]["content"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("evaluated", type=Path, help="the folder of `eval --out`")
    parser.add_argument("--server", type=Path, required=True, help="llama-server")
    parser.add_argument("--max-new-tokens", type=int, required=True, help="as in that evaluation")
    given = parser.parse_args()
    checkpoint = open_checkpoint(given.checkpoint)
    recipe = checkpoint.recipe
    chat = chat_format(recipe)
    rows = [json.loads(line) for line in (given.evaluated / "transcripts.jsonl").read_text("utf-8").splitlines()]
    counts = {name: [0, 0] for name in ("ids", "replies", "here", "there")}
    with TemporaryDirectory() as folder:
        exported = export_checkpoint(checkpoint, "gguf", Path(folder) / "gguf", print)
        with Server(given.server, next(exported.glob("*.gguf")), recipe.model.max_seq_length) as server:
            for number, row in enumerate(rows, 1):
                messages = [{"role": "user", "content": row["question"]}]
                first = chat.reply(row["attempt1"])
                prompt = chat.first_turn(row["question"])
                prompts = (prompt, prompt + first + chat.next_turn(first))
                for turn, due in enumerate(prompts):
                    told = [*messages, {"role": "assistant", "content": row["attempt1"]}] if turn else messages
                    told += [{"role": "user", "content": chat.correction}] if turn else []
                    counts["ids"][turn] += server.ids(told) == due
                    reply = server.reply(told, given.max_new_tokens)
                    counts["replies"][turn] += reply.strip() == row[f"attempt{turn + 1}"].strip()
                    counts["here"][turn] += row[f"correct{turn + 1}"]
                    example = Example(row["id"], row["question"], None, row["correct_answer"])
                    counts["there"][turn] += grade_example(reply, example, recipe.reward.grader).correct
                if number % 20 == 0:
                    print(f"{number} of {len(rows)}", file=sys.stderr)
    said = subprocess.run([given.server, "--version"], capture_output=True, text=True, check=True)
    build = re.sub(r"\s+", " ", said.stdout + said.stderr).strip()
    titles = {
        "ids": "prompts with the ids of training",
        "replies": "the reply of `scorefast eval`, to the letter",
        "here": "right in `scorefast eval`",
        "there": "right in llama.cpp",
    }
    lines = [f"| {title} | {counts[name][0]} | {counts[name][1]} |" for name, title in titles.items()]
    machine = f"Python {platform.python_version()}, torch {version('torch')}, transformers {version('transformers')}"
    built = textwrap.fill(f"{len(rows)} questions, {checkpoint.path}. llama.cpp {build}; {machine}.", 120)
    text = [
        "# A GGUF in llama.cpp",
        "",
        __doc__.split("\n\n", 2)[2].strip(),
        "",
        built,
        "",
        "| | turn 1 | turn 2, after the first attempt of `eval` |",
        "|---|---|---|",
        *lines,
    ]
    RESULT.write_text("\n".join(text) + "\n", encoding="utf-8")
    print(RESULT.read_text(encoding="utf-8"), file=sys.stderr)


if __name__ == "__main__":
    main()
