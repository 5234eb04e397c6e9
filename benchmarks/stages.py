"""What a stage takes on this machine: memory against its plan, tokens a second, and where the time goes.

    python -m benchmarks stages                                # recipes of this machine that fit, both stages
    python -m benchmarks stages --recipe gemma-2-2b-it         # one of them
    python -m benchmarks stages --recipe gemma-2-2b-it --set rollout.max_new_tokens=64

A step takes as many questions as are written at once, not the recipe's whole number: rates and memory do not depend on
it. A model that nobody may ship (Gemma-2-2B) is drawn at random by its shipped configuration, so that no network is
needed (it takes 5.2 GB of disk, and of memory while it is drawn; of 9B, 18.5 GB). Its replies run to their full length,
which is the most that a stage can take. Every other reply is rewarded, so that there is a gradient. The first step,
which compiles, allocates and fills caches, is left out. The file also runs as a script, `python benchmarks/stages.py`,
with the repository on PYTHONPATH. Results are added to benchmarks/results/stages.json, from which stages.md is made.

Rollout tokens are those written, update tokens those of whole trajectories, through reference, forward, loss, backward
and optimizer; the rollout's share is of the time of both. planned: what `--dry-run` says, less the CUDA context;
reached: the most that tensors took of the card, loading included; held: the most that torch held for them.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.common import (
    RESULTS,
    ROOT,
    argument_parser,
    command,
    environment,
    machine_line,
    markdown_table,
    set_flags,
    write_page,
)
from scorefast.schema import StageName

DATA = ROOT / "data" / "score.csv"
GPU = ("gemma-2-2b-it", "gemma-2-2b-it-12gb", "gemma-2-2b-it-24gb", "gemma-2-9b-it-24gb")
CPU = ("tiny-cpu",)
PACKAGES = ("torch", "transformers", "peft", "unsloth", "bitsandbytes", "triton")
IDENTITY = ("machine", "recipe", "stage", "backend", "settings")
COLUMNS = (
    *("machine", "recipe", "stage", "backend", "loss", "steps", "rollout tokens/s", "update tokens/s"),
    *("rollout share", "planned GB", "reached GB", "held GB", "planned / reached - 1", "settings"),
)
Result = TypeVar("Result")


def every_other(completions: list[Any], **_: Any) -> list[float]:
    """A reward that nothing can be learnt from: the texts of a random model are no measure, most are empty."""
    return [float(number % 2) for number in range(len(completions))]


def apart(function: Callable[..., Result], *arguments: Any) -> Result:
    """In a process of its own: this one must hold nothing of the card."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def machine() -> tuple[str, bool]:
    """(what it is, with versions; whether there is a card)."""
    import torch

    return machine_line(PACKAGES), torch.cuda.is_available()


def draw_model(name: str, folder: Path) -> None:
    """Random weights by the configuration that ships with scorefast, and the embedded model's tokenizer: a question is
    one of its texts, and what a random model samples is none at all."""
    import torch
    from transformers import AutoModelForCausalLM

    from scorefast.model.tokenizer import load_config, load_tokenizer

    torch.manual_seed(0)
    tokenizer, config = load_tokenizer("tiny-gemma2"), load_config(name)
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, key, getattr(tokenizer, key))
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def plan(recipe: str, stage: StageName, settings: list[str]) -> tuple[float, float]:
    """(GB planned, GB free), both without what is there before a model is loaded."""
    from scorefast import train
    from scorefast.data.load import load_dataset
    from scorefast.model.memory import memory_here
    from scorefast.recipe import load_recipe
    from scorefast.runs.job import Job

    resolved = load_recipe(recipe, settings)
    planned = train.plan(Job(stage, resolved, load_dataset(str(DATA), resolved.data), None, Path()))
    _, free, base = memory_here()
    return (planned.total - planned.parts[0].size) / 1e9, (free - base) / 1e9


def measure(recipe: str, stage: StageName, settings: list[str], run: Path) -> dict[str, Any]:
    """What a stage says of itself that runs as a user's does, in a process of its own. Raises RuntimeError."""
    given = ["--recipe", recipe, "--data", DATA, "--out", run, "--reward", "benchmarks.stages:every_other"]
    words = command(stage, *given, *set_flags(settings))
    done = subprocess.run(words, env=environment(), stderr=subprocess.PIPE, text=True)
    print(done.stderr, file=sys.stderr)
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr.strip().splitlines()[-1]}")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if "loss" in line and "skipped" not in line][1:]
    if not steps:
        raise RuntimeError("no step but the first was taken")
    began = json.loads((run / "run.json").read_text(encoding="utf-8"))

    def mean(name: str) -> float:
        return statistics.fmean(line[name] for line in steps)

    row = {"backend": began["backend"], "loss": began["loss"], "steps": len(steps)}
    row |= {f"{part} tokens/s": mean(f"{part}_tokens_per_second") for part in ("rollout", "update")}
    row["rollout share"] = mean("rollout_seconds") / (mean("rollout_seconds") + mean("update_seconds"))
    if "gpu_allocated_gb" in steps[0]:
        row |= {"reached GB": steps[-1]["gpu_allocated_gb"], "held GB": steps[-1]["gpu_reserved_gb"]}
    if "out of memory" in done.stderr:
        row["note"] = "ran out of memory and held less at once"
    return row


def questions(recipe: str, stage: StageName, settings: list[str]) -> int:
    """So many that their trajectories fill the rollout's batch."""
    from scorefast.recipe import load_recipe

    resolved = load_recipe(recipe, settings)
    section = resolved.stage(stage)
    full = math.ceil(resolved.rollout.batch_size / section.samples)
    return min(section.questions_per_step, full)


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Machines are numbered, and named below. A recipe for a card that met none has an empty row."""
    machines = list(dict.fromkeys(row["machine"] for row in rows))
    met = {row["recipe"] for row in rows if "reached GB" in row}
    lines = []
    for row in [*rows, *({"recipe": name} for name in GPU if name not in met)]:
        shown = {name: number(value) if isinstance(value, float) else str(value) for name, value in row.items()}
        if "machine" in row:
            shown["machine"] = str(machines.index(row["machine"]) + 1)
            shown["rollout share"] = f"{row['rollout share']:.0%}"
            shown["settings"] += f"; {row['note']}" if "note" in row else ""
        if "reached GB" in row:
            shown["planned / reached - 1"] = f"{row['planned GB'] / row['reached GB'] - 1:+.1%}"
        lines.append([shown.get(column, "") for column in COLUMNS])
    return [*markdown_table(COLUMNS, lines), "", *(f"{i}. {name}" for i, name in enumerate(machines, 1))]


def keep(row: dict[str, Any], result: Path) -> None:
    """Into `result`, in place of an older row of the same, and the page beside it."""
    rows = json.loads(result.read_text(encoding="utf-8")) if result.is_file() else []
    rows = [old for old in rows if any(old.get(key) != row[key] for key in IDENTITY)] + [row]
    write_page(result, [json.dumps(rows, indent=1)])
    assert __doc__ is not None
    write_page(result.with_suffix(".md"), ["# What a stage takes", "", __doc__.split("\n", 2)[2], *table(rows)])


def measured(recipe: str, stage: StageName, settings: list[str], folder: Path) -> dict[str, Any] | None:
    """The row of one stage, or None where it does not fit or fails, which is said on stderr."""
    planned, free = apart(plan, recipe, stage, settings)
    if planned > free:
        print(f"{recipe}, {stage}: left out, {planned:.1f} GB planned, {free:.1f} free", file=sys.stderr)
        return None
    try:
        row = measure(recipe, stage, settings, folder)
    except RuntimeError as error:
        print(f"{recipe}, {stage}: {error}", file=sys.stderr)
        return None
    return row | ({"planned GB": planned} if "reached GB" in row else {})


def main(argv: Sequence[str]) -> None:
    """Parse the flags and measure every stage of every recipe."""
    from scorefast.model.tokenizer import CONFIGS
    from scorefast.recipe import load_recipe

    parser = argument_parser("benchmarks stages", __doc__)
    parser.add_argument("--recipe", action="append", help="a shipped recipe; those for this machine if left out")
    parser.add_argument("--stage", action="append", choices=("stage1", "stage2"), help="both if left out")
    parser.add_argument("--steps", type=int, default=3, choices=range(2, 100), metavar="N", help="of each stage")
    parser.add_argument("--set", dest="settings", action="append", default=[], help="key=value, noted with the row")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of stages.json")
    given = parser.parse_args(argv)
    os.environ |= {"HF_HUB_OFFLINE": "1"}
    here, card = apart(machine)
    drawn: dict[str, Path] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for recipe in given.recipe or (GPU if card else CPU):
            model = load_recipe(recipe, given.settings).model.name
            if (CONFIGS / model.replace("/", "--")).is_dir() and model not in drawn:
                drawn[model] = folder / model.replace("/", "--")
                apart(draw_model, model, drawn[model])
            for stage in given.stage or ("stage1", "stage2"):
                settings = [f"{stage}.max_steps={given.steps}", "data.validation_fraction=0", *given.settings]
                settings += [f"model.name={drawn[model]}"] if model in drawn else []
                settings.append(f"{stage}.questions_per_step={questions(recipe, stage, settings)}")
                identity = {"machine": here, "recipe": recipe, "stage": stage, "settings": ", ".join(given.settings)}
                if row := measured(recipe, stage, settings, folder / f"{recipe}-{stage}"):
                    keep(identity | row, given.out / "stages.json")
                    print(json.dumps(identity | row), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
