"""The page: tables of what `run` left, in the text of page.md."""

from __future__ import annotations

import json
import statistics
import textwrap
from pathlib import Path
from typing import Any

from benchmarks.common import machine_line, markdown_table
from studies.common import HEADINGS, RATES, percent
from studies.smollm2.study import SHOWN, SHOWN_KOREAN, Study

TEXT = Path(__file__).parent / "page.md"


def transcripts(folder: Path) -> list[dict[str, Any]]:
    """The lines that an evaluation wrote."""
    lines = (folder / "transcripts.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def results_table(folders: dict[str, Path]) -> list[str]:
    """One row an evaluation, by its title."""
    rows = []
    for title, folder in folders.items():
        result = json.loads((folder / "report.json").read_text(encoding="utf-8"))["results"][0]
        cells = [percent(result[key], result["ci95"][key], "+" * (key == "delta")) for key in RATES]
        cells += [f"{100 * result[key]:.1f}" for key in ("changed", "truncated")]
        rows.append([title, result["n"], *cells])
    return markdown_table(["", "n", *HEADINGS, "changed", "cut off"], rows)


def probe_table(folder: Path) -> list[str]:
    """Right after turn 2, by what stood in the place of the first attempt."""
    kinds = {
        "correct": "the right answer",
        "wrong": "a wrong one",
        "unrelated": "another question's",
        "empty": "nothing",
    }
    rows = []
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    for name, rates in report["probe"].items():
        known = [rates[kind] for kind in kinds]
        cells = ["-" if k["right_after"] is None else percent(k["right_after"], k["ci95"]) for k in known]
        rows.append([name, rates["wrong"]["n"], *cells])
    return markdown_table(["", "n", *kinds.values()], rows)


def one_line(text: str) -> str:
    """A reply as a table shows it."""
    return " ".join(text.split()) or "(nothing)"


def side_by_side(folders: dict[str, Path], count: int) -> list[str]:
    """The first questions of the split, in the file's order, and both attempts of each model at them."""
    loaded = {title: transcripts(folder)[:count] for title, folder in folders.items()}
    rows = []
    for number in range(min(count, *map(len, loaded.values()))):
        for title, lines in loaded.items():
            given = lines[number]
            marks = ["right" if given[f"correct{turn}"] else "wrong" for turn in (1, 2)]
            said = [f"{one_line(given[f'attempt{turn}'])} ({mark})" for turn, mark in zip((1, 2), marks, strict=True)]
            rows.append([one_line(given["question"]), one_line(given["correct_answer"]), title, *said])
    return markdown_table(["question", "due", "model", "first attempt", "second attempt"], rows)


def counts(folders: dict[str, Path]) -> list[str]:
    """How many attempts are right, before and after the model's turn."""
    lines = []
    for title, folder in folders.items():
        rows = transcripts(folder)
        right = [sum(row[f"correct{turn}"] for row in rows) for turn in (1, 2)]
        lines.append(f"- {title}: {right[0]} of {len(rows)} right in the file, {right[1]} after the model's turn")
    return lines


MEANS = ("reward_t2", "acc_t1", "acc_t2", "truncated", "length_t1", "length_t2", "kl_t1", "kl_t2")


def seconds_a_step(folder: Path) -> str:
    """From the times of the first and the last checkpoint that are left."""
    saved = sorted(folder.glob("checkpoint-*/trainer_state.json"), key=lambda path: path.stat().st_mtime)
    if len(saved) < 2:
        return "?"
    first, last = (int(path.parent.name.split("-")[1]) for path in (saved[0], saved[-1]))
    return f"{(saved[-1].stat().st_mtime - saved[0].stat().st_mtime) / (last - first):.0f}"


def training_table(folders: dict[str, Path]) -> list[str]:
    """Means over the first and the last third of the steps, as sampled."""
    rows = []
    for title, folder in folders.items():
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        steps = [m for m in map(json.loads, lines) if "loss" in m]
        third = max(1, len(steps) // 3)
        for when, part in (("first third", steps[:third]), ("last third", steps[-third:])):
            mean = {key: statistics.fmean(m.get(key, 0.0) for m in part) for key in MEANS}
            shares = [f"{100 * mean[key]:.0f}" for key in ("acc_t1", "acc_t2", "truncated")]
            lengths = ", ".join(f"{mean[f'length_t{t}']:.0f}" for t in (1, 2))
            kl = ", ".join(f"{mean[f'kl_t{t}']:.2f}" for t in (1, 2))
            reward = f"{mean['reward_t2']:+.2f}"
            rows.append([title, len(steps), seconds_a_step(folder), when, reward, *shares, lengths, kl])
    heads = ["", "steps", "seconds a step", "", "reward at t2", "acc@t1", "acc@t2", "cut off", "tokens at t1, t2"]
    return markdown_table([*heads, "KL t1, t2"], rows)


def report(study: Study, facts: dict[str, Any]) -> str:
    """page.md with its figures. facts: what `check_model` found."""

    def folders(names: dict[str, str], prefix: str = "") -> dict[str, Path]:
        return {title: study.folder(f"{prefix}{name}") for name, title in names.items()}

    stages = {"base": "base", "stage1": "stage1", "stage2": "stage2", "supervised": "supervised"}
    trained = {"stage1": "stage1", "stage2": "stage2"}
    again = {f"{name}-seed1": f"{name}, seed 1" for name in trained}
    korean = folders({"before": "before", "after": "after"}, "korean-")
    parts = {
        "machine": textwrap.wrap(machine_line(("torch", "transformers", "peft", "tokenizers")), 110),
        "shown-sums": [str(SHOWN)],
        "shown-korean": [str(SHOWN_KOREAN)],
        "said": [f'- "{question}" "{answer}"' for question, answer in facts["said"].items()],
        "perplexity": [f"{facts['perplexity']:.1f}"],
        "results": results_table(folders(stages | again, "eval-")),
        "steps": training_table(folders(trained | again)),
        "probe": probe_table(study.folder("probe")),
        "shown": side_by_side(folders(stages, "eval-"), SHOWN),
        "korean": side_by_side(korean, SHOWN_KOREAN),
        "korean-counts": counts(korean),
    }
    text = TEXT.read_text(encoding="utf-8")
    for name, lines in parts.items():
        text = text.replace(f"<{name}>", "\n".join(lines))
    return text
