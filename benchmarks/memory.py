"""The memory that `--dry-run` plans against the resident memory that the same stage then reaches, on the CPU.

    python benchmarks/memory.py models/smollm2-135m

Each case is two fresh processes: one plans, one takes a step. SmolLM2's weights are drawn anew, so that its replies
are as long as they may be, which is what a plan is for; the embedded model's replies are short, and its process is
nearly all there is. MALLOC_MMAP_THRESHOLD_ is set, so that glibc gives back what is freed: by default it keeps much.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "memory.md"
DATA = Path(__file__).parent.parent / "data" / "score.csv"
PLAN = """
import json, sys
from scorefast.data.load import load_dataset
from scorefast.recipe import load_recipe
recipe = load_recipe("tiny-cpu", sys.argv[3:])
dataset = load_dataset(sys.argv[2], recipe.data)
from pathlib import Path
from scorefast.runs.job import Job
from scorefast.train import check, plan
plan = plan(check(Job(sys.argv[1], recipe, dataset, None, Path())))
print(json.dumps({"moments": plan.moments, "tokens": plan.tokens, "base": plan.parts[0].size}))
"""
SMOLLM2 = [
    *("model.dtype=float32", "model.max_seq_length=512", "rollout.max_new_tokens=64", "rollout.batch_size=8"),
    *("model.lora.r=16", "eval.max_questions=8", "stage2.questions_per_step=2", "stage2.samples_per_question=4"),
]
CASES = {
    "tiny-gemma2, stage1": ("stage1", []),
    "tiny-gemma2, stage2, 64 at once": ("stage2", ["stage2.micro_batch_size=64"]),
    "SmolLM2-135M, stage2, 1 at once": ("stage2", [*SMOLLM2, "stage2.micro_batch_size=1"]),
    "SmolLM2-135M, stage2, 8 at once": ("stage2", [*SMOLLM2, "stage2.micro_batch_size=8"]),
    "SmolLM2-135M, stage2, 8 at once, checkpointing": (
        "stage2",
        [*SMOLLM2, "stage2.micro_batch_size=8", "model.gradient_checkpointing=true"],
    ),
    "SmolLM2-135M, stage2, 4 at once, bfloat16": (
        "stage2",
        [*SMOLLM2, "stage2.micro_batch_size=4", "model.dtype=bfloat16"],
    ),
    "SmolLM2-135M, stage2, rollout of 32": (
        "stage2",
        [*SMOLLM2, "stage2.micro_batch_size=1", "rollout.batch_size=32", "stage2.questions_per_step=8"],
    ),
}


def redraw(model: Path, folder: Path, dtype: str) -> None:
    """The same model with random weights: its replies end by their length. In the dtype that is loaded: else the pages
    of its file count as well, which any other process may have back."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(model)
    AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)


def peak(command: list[str], folder: Path) -> int:
    """Peak resident bytes of a process that has to succeed."""
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit((folder / "log").read_text())
    return usage.ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("smollm2", type=Path, help="folder of SmolLM2-135M-Instruct (benchmarks/smollm2.py makes it)")
    parser.add_argument("--only", default="", help="cases whose name contains this; writes no result")
    arguments = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2", "MALLOC_MMAP_THRESHOLD_": str(1 << 17)}
    lines = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for dtype in ("float32", "bfloat16"):
            redraw(arguments.smollm2, folder / dtype, dtype)
        for case, (stage, flags) in CASES.items():
            if arguments.only not in case:
                continue
            steps = [f"{stage}.max_steps=1", f"{stage}.eval_steps=2"]
            drawn = folder / ("bfloat16" if "bfloat16" in case else "float32")
            settings = [*steps, *([f"model.name={drawn}"] if "SmolLM2" in case else []), *flags]
            planned = json.loads(
                subprocess.check_output([sys.executable, "-c", PLAN, stage, str(DATA), *settings], text=True)
            )
            flags_given = [text for setting in settings for text in ("--set", setting)]
            out = folder / f"run{len(lines)}"
            command = [sys.executable, "-m", "scorefast", stage, "--data", str(DATA), "--out", str(out), *flags_given]
            measured = peak([*command, "--recipe", "tiny-cpu"], folder)
            most = max(planned["moments"], key=planned["moments"].get)
            total = planned["moments"][most]
            sizes = [planned["base"], total, measured]
            lines.append(
                f"| {case} | {planned['tokens']} | {most} | {' | '.join(f'{n / 1e9:.2f}' for n in sizes)} "
                f"| {total / measured - 1:+.1%} |"
            )
            print(lines[-1], file=sys.stderr)
    if arguments.only:
        return
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
    RESULT.write_text(
        f"# Planned and reached memory\n\n{__doc__.split(chr(10), 4)[4].strip()}\n\n"
        f"Python {platform.python_version()}, {versions}; {os.cpu_count()} cores. GB (10^9 bytes), resident.\n\n"
        "| | tokens | the most in | before a model | planned | reached | planned / reached - 1 |\n"
        "|---|---|---|---|---|---|---|\n" + "\n".join(lines) + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
