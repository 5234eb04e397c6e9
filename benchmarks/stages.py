"""What a stage takes on this machine: memory against its plan, tokens a second, and where the time goes.

    python benchmarks/stages.py                                      # every recipe that this machine can run
    python benchmarks/stages.py --recipe gemma-2-2b-it --steps 4     # one of them

A model that nobody may ship (Gemma-2-2B) is drawn at random by its shipped configuration, so no network is needed: its
replies run to their full length, which is the most that a stage can take. Every other reply is rewarded,
so that there is a gradient. The first step, which compiles, allocates and fills caches, is left out.

planned: what `--dry-run` says, without the CUDA context; peak: the most that torch has held of the card.
rollout tokens: written in a second; update tokens: of whole trajectories, forward, reference, loss, backward and
optimizer. Both stages take the recipe's questions and samples a step.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "stages.md"
GPU = ("gemma-2-2b-it", "gemma-2-2b-it-12gb", "gemma-2-2b-it-24gb", "gemma-2-9b-it-24gb")
CPU = ("tiny-cpu",)
PACKAGES = ("torch", "transformers", "peft", "unsloth", "bitsandbytes", "triton")
COLUMNS = (
    *("machine", "recipe", "changed", "stage", "backend", "loss", "steps", "seconds a step", "rollout tokens/s"),
    *("update tokens/s", "rollout of the time", "planned GB", "peak GB", "planned / peak - 1"),
)


def every_other(completions: list[Any], **_: Any) -> list[float]:
    """A reward that nothing can be learnt from: the texts of a random model are no measure, most are empty."""
    return [float(number % 2) for number in range(len(completions))]


def draw_model(name: str, folder: Path) -> None:
    """Random weights by the configuration that ships with scorefast, and the embedded model's tokenizer: a question is
    one of its texts, and what a random model samples is none at all."""
    import torch
    from transformers import AutoModelForCausalLM

    from scorefast.model import load_config, load_tokenizer

    torch.manual_seed(0)
    tokenizer, config = load_tokenizer("tiny-gemma2"), load_config(name)
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, key, getattr(tokenizer, key))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)  # on the CPU: the card is for the run
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def measure(recipe: str, stage: str, folder: Path, settings: list[str], steps: int) -> dict[str, Any]:
    """A row of the table: the stage as a user runs it, in a process of its own."""
    from scorefast.data import load_dataset
    from scorefast.recipe import load_recipe
    from scorefast.stages import plan_stage

    data, run = ROOT / "data" / "score.csv", folder / f"{recipe}-{stage}"
    settings = [f"{stage}.max_steps={steps}", "data.validation_fraction=0", *settings]
    flags = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-m", "scorefast", stage, "--recipe", recipe, "--data", str(data), "--out", str(run)]
    command += ["--reward", "stages:every_other", *flags]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "benchmarks")}
    done = subprocess.run(command, stdout=sys.stderr, stderr=sys.stderr, env=environment, check=False)
    if done.returncode:
        sys.exit(f"exit code {done.returncode}: {' '.join(command)}")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    began = json.loads((run / "run.json").read_text(encoding="utf-8"))
    resolved = load_recipe(recipe, settings)
    plan = plan_stage(stage, resolved, load_dataset(str(data), resolved.data))
    return row_of([line for line in lines if "loss" in line][1:]) | {
        "recipe": recipe,
        "stage": stage,
        "backend": began["backend"],
        "loss": began["loss"],
        "planned GB": (plan.total - plan.parts[0].size) / 1e9,
    }


def row_of(steps: list[dict[str, Any]]) -> dict[str, Any]:
    def mean(name: str) -> float:
        return statistics.fmean(line[name] for line in steps)

    writing, learning = mean("rollout_seconds"), mean("update_seconds")
    return {
        "steps": len(steps),
        "seconds a step": writing + learning,
        "rollout tokens/s": mean("rollout_tokens_per_second"),
        "update tokens/s": mean("update_tokens_per_second"),
        "rollout of the time": writing / (writing + learning),
    } | ({"peak GB": max(line["gpu_peak_gb"] for line in steps)} if "gpu_peak_gb" in steps[0] else {})


def this_machine() -> str:
    import torch

    name = torch.cuda.get_device_name(0) if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    found = []
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    return f"{name}; Python {platform.python_version()}, {', '.join(found)}"


def table(rows: list[dict[str, Any]]) -> str:
    """Machines are numbered, and named below. A recipe that met no GPU has an empty row."""
    machines = list(dict.fromkeys(row["machine"] for row in rows))
    met = {row["recipe"] for row in rows if "peak GB" in row}
    missing = [{"recipe": name} for name in GPU if name not in met]
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for row in [*rows, *missing]:
        shown = row | ({"machine": machines.index(row["machine"]) + 1} if "machine" in row else {})
        if "peak GB" in row:
            shown["planned / peak - 1"] = f"{row['planned GB'] / row['peak GB'] - 1:+.1%}"
        if "rollout of the time" in row:
            shown["rollout of the time"] = f"{row['rollout of the time']:.0%}"
        cells = [shown.get(column, "") for column in COLUMNS]
        lines.append(f"| {' | '.join(f'{c:,.3g}' if isinstance(c, float) else str(c) for c in cells)} |")
    return "\n".join([*lines, "", *(f"{number}. {name}" for number, name in enumerate(machines, 1))])


def main() -> None:
    import torch

    from scorefast.model import CONFIGS
    from scorefast.recipe import load_recipe

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", action="append", help="a shipped recipe; those for this machine if left out")
    parser.add_argument("--steps", type=int, default=4, help="of each stage, the first of which is not counted")
    parser.add_argument(
        "--set", dest="settings", action="append", default=[], help="key=value; nothing is written then"
    )
    given = parser.parse_args()
    on_card = torch.cuda.is_available()
    os.environ |= {"HF_HUB_OFFLINE": "1"}
    rows = json.loads(RESULT.with_suffix(".json").read_text(encoding="utf-8")) if RESULT.is_file() else []
    for recipe in given.recipe or (GPU if on_card else CPU):
        with tempfile.TemporaryDirectory() as name:
            settings, model = list(given.settings), load_recipe(recipe, given.settings).model.name
            if (CONFIGS / model.replace("/", "--")).is_dir():
                draw_model(model, Path(name) / "model")
                settings.append(f"model.name={name}/model")
            for stage in ("stage1", "stage2"):
                row = {"machine": this_machine(), "changed": ", ".join(given.settings)}
                row |= measure(recipe, stage, Path(name), settings, given.steps)
                print(json.dumps(row), flush=True)
                same = ("machine", "recipe", "changed", "stage", "backend")
                rows = [old for old in rows if any(old[key] != row[key] for key in same)] + [row]
                RESULT.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
                RESULT.write_text(f"# What a stage takes\n\n{__doc__}\n{table(rows)}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
