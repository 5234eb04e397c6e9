"""Does an exported GGUF say in llama.cpp what `scorefast eval` measured? Token by token, and reply by reply.

    cmake -B build llama.cpp && cmake --build build --target llama-server
    LLAMA_CPP=llama.cpp python -m studies llama_cpp runs/smollm2/stage2 runs/smollm2/eval-stage2 \\
        --server build/bin/llama-server --max-new-tokens 48

Takes a checkpoint and the folder that `eval --out` wrote of it. The server gets the messages of both turns, as any
client would send them, and puts them into the template that lies in the GGUF. Compared are the prompts' token ids with
those of training, and the greedy replies with the transcripts'. Weights are bfloat16 there and were float32 in `eval`.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.common import about, argument_parser, machine_line, markdown_table, write_page
from scorefast.errors import UserError
from scorefast.export import export_checkpoint
from scorefast.grading.grade import grade
from scorefast.model.chat_format import ChatFormat
from scorefast.model.tokenizer import chat_format
from scorefast.runs.checkpoint import open_checkpoint
from studies.common import RESULTS

Messages = list[dict[str, str]]
TITLES = {
    "ids": "prompts with the ids of training",
    "replies": "the reply of `scorefast eval`, to the letter",
    "here": "right in `scorefast eval`",
    "there": "right in llama.cpp",
}


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
            found: dict[str, Any] = json.load(answer)
            return found

    def ids(self, messages: Messages) -> list[int]:
        prompt = self.post("apply-template", {"messages": messages})["prompt"]
        told = {"content": prompt, "add_special": True, "parse_special": True}
        found: list[int] = self.post("tokenize", told)["tokens"]
        return found

    def reply(self, messages: Messages, length: int) -> str:
        greedy = {"messages": messages, "temperature": 0, "repeat_penalty": 1.0, "max_tokens": length}
        return str(self.post("v1/chat/completions", greedy)["choices"][0]["message"]["content"])


def compare(
    rows: Sequence[dict[str, Any]],
    chat: ChatFormat,
    grader: Any,
    ids: Callable[[Messages], list[int]],
    reply: Callable[[Messages], str],
) -> dict[str, list[int]]:
    """Of TITLES, how many at each turn. rows: transcripts of `eval`. ids and reply: what the server makes of messages.

    Turn 2 comes after the first attempt of `eval`.
    """
    counts = {name: [0, 0] for name in TITLES}
    for number, row in enumerate(rows, 1):
        asked = [{"role": "user", "content": row["question"]}]
        again = [{"role": "assistant", "content": row["attempt1"]}, {"role": "user", "content": chat.correction}]
        for turn, replies in enumerate(([], [chat.reply(row["attempt1"])])):
            told = asked + again * turn
            said = reply(told)
            counts["ids"][turn] += ids(told) == chat.prompt(row["question"], *replies)
            counts["replies"][turn] += said.strip() == row[f"attempt{turn + 1}"].strip()
            counts["here"][turn] += row[f"correct{turn + 1}"]
            counts["there"][turn] += grade(said, row["correct_answer"], grader, row["question"]).correct
        if number % 20 == 0:
            print(f"{number} of {len(rows)}", file=sys.stderr)
    return counts


def page(counts: dict[str, list[int]], what: str) -> list[str]:
    """The lines of llama_cpp.md. what: the questions, the checkpoint and the build."""
    built = textwrap.fill(f"{what}; {machine_line(('torch', 'transformers'))}.", 120)
    heads = ["", "turn 1", "turn 2, after the first attempt of `eval`"]
    rows = [[title, *counts[name]] for name, title in TITLES.items()]
    return ["# A GGUF in llama.cpp", "", about(__doc__), "", built, "", *markdown_table(heads, rows)]


def main(argv: Sequence[str]) -> None:
    """Parse the flags, export, ask the server, and write the page."""
    parser = argument_parser("studies llama_cpp", __doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("evaluated", type=Path, help="the folder of `eval --out`")
    parser.add_argument("--server", type=Path, required=True, help="llama-server")
    parser.add_argument("--max-new-tokens", type=int, required=True, help="as in that evaluation")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of llama_cpp.md")
    given = parser.parse_args(argv)
    checkpoint = open_checkpoint(given.checkpoint)
    recipe = checkpoint.recipe
    if recipe is None:
        raise UserError(f"{given.checkpoint}: has no recipe.yaml, so its chat template's settings are not known")
    rows = [json.loads(line) for line in (given.evaluated / "transcripts.jsonl").read_text("utf-8").splitlines()]
    with TemporaryDirectory() as folder:
        exported = export_checkpoint(checkpoint, "gguf", Path(folder) / "gguf", print)
        with Server(given.server, next(exported.glob("*.gguf")), recipe.model.max_seq_length) as server:

            def reply(messages: Messages) -> str:
                return server.reply(messages, given.max_new_tokens)

            counts = compare(rows, chat_format(recipe), recipe.reward.grader, server.ids, reply)
    said = subprocess.run([given.server, "--version"], capture_output=True, text=True, check=True)
    build = re.sub(r"\s+", " ", said.stdout + said.stderr).strip()
    lines = page(counts, f"{len(rows)} questions, {checkpoint.path}. llama.cpp {build}")
    write_page(given.out / "llama_cpp.md", lines)
    print("\n".join(lines))
