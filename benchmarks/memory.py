"""The memory that `--dry-run` plans against the resident memory that the same stage then reaches, on the CPU.

    python -m benchmarks memory models/smollm2-135m     # benchmarks/results/memory.md
    python -m benchmarks memory --only tiny             # some of the cases, printed alone

Each case is two fresh processes: one plans, one takes a step. SmolLM2's weights are drawn anew, so that its replies
are as long as they may be, which is what a plan is for; the embedded model's replies are short, and its process is
nearly all there is. MALLOC_MMAP_THRESHOLD_ is set, so that glibc gives back what is freed: by default it keeps much.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import (
    RESULTS,
    ROOT,
    about,
    argument_parser,
    command,
    environment,
    machine_line,
    markdown_table,
    seconds_and_peak,
    set_flags,
    write_page,
)

DATA = ROOT / "data" / "score.csv"
PLAN = """
import json, sys
from scorefast.data.load import load_dataset
from scorefast.recipe import load_recipe
recipe = load_recipe("tiny-cpu", sys.argv[3:])
dataset = load_dataset(sys.argv[2], recipe.data)
from pathlib import Path
from scorefast import train
from scorefast.runs.job import Job
plan = train.plan(train.check(Job(sys.argv[1], recipe, dataset, None, Path())))
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
HEADS = ("", "tokens", "the most in", "before a model", "planned", "reached", "planned / reached - 1")


def redraw(model: Path, folder: Path, dtype: str) -> None:
    """The same model with random weights: its replies end by their length. In the dtype that is loaded: else the pages
    of its file count as well, which any other process may have back."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(model)
    AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)


def measured(case: str, settings: list[str], folder: Path) -> list[str]:
    """The cells of one case: plan it in one process, take a step in another."""
    stage, own = CASES[case]
    settings = [f"{stage}.max_steps=1", f"{stage}.eval_steps=2", *own, *settings]
    words = [sys.executable, "-c", PLAN, stage, str(DATA), *settings]
    planned = json.loads(subprocess.check_output(words, env=environment(), text=True))
    given = ["--data", DATA, "--out", folder / case, "--recipe", "tiny-cpu", *set_flags(settings)]
    _, reached = seconds_and_peak(command(stage, *given), folder)
    most = max(planned["moments"], key=planned["moments"].get)
    total = planned["moments"][most]
    sizes = [f"{n / 1e9:.2f}" for n in (planned["base"], total, reached)]
    return [case, str(planned["tokens"]), most, *sizes, f"{total / reached - 1:+.1%}"]


def main(argv: Sequence[str]) -> None:
    """Parse the flags, measure the cases and write the page."""
    parser = argument_parser("benchmarks memory", __doc__)
    parser.add_argument("smollm2", type=Path, nargs="?", help="SmolLM2's folder: `python -m studies smollm2 model`")
    parser.add_argument("--only", default="", help="cases whose name contains this; prints them and writes no page")
    parser.add_argument("--set", dest="settings", action="append", default=[], help="key=value, of every case")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of memory.md")
    given = parser.parse_args(argv)
    cases = [case for case in CASES if given.only in case]
    if given.smollm2 is None and any("SmolLM2" in case for case in cases):
        parser.error("these cases need the folder of SmolLM2-135M-Instruct, or --only tiny")
    os.environ |= {"HF_HUB_OFFLINE": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 17)}
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for case in cases:
            settings = list(given.settings)
            if "SmolLM2" in case:
                dtype = "bfloat16" if "bfloat16" in case else "float32"
                if not (folder / dtype).is_dir():
                    redraw(given.smollm2, folder / dtype, dtype)
                settings.append(f"model.name={folder / dtype}")
            rows.append(measured(case, settings, folder))
            print(markdown_table(HEADS, rows)[-1], flush=True)
    if given.only:
        return
    where = f"{machine_line(('torch', 'transformers', 'peft'))}. GB (10^9 bytes), resident."
    lines = ["# Planned and reached memory", "", about(__doc__), "", where, "", *markdown_table(HEADS, rows)]
    write_page(given.out / "memory.md", lines)
