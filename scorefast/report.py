"""What people look at: tables and transcripts on the terminal, the learning curve as a picture. Imports no torch."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from scorefast.metrics import Graded, Interval, Result


def printable(text: str) -> str:
    """Text of a model or a file, safe on a terminal: control characters but newline and tab become visible."""
    hidden = {"Cc", "Cf"}
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in hidden else f"\\x{ord(c):02x}" for c in text)


def _percent(value: float, interval: Interval, sign: bool = False) -> str:
    plus = "+" if sign else ""
    return f"{100 * value:{plus}.1f} [{100 * interval[0]:{plus}.1f}, {100 * interval[1]:{plus}.1f}]"


def results_table(results: Sequence[Result], split: str) -> Table:
    table = Table(
        title=f"{results[0].n} questions of the {split} split, greedy; per cent [95 % interval]", title_justify="left"
    )
    table.add_column("", no_wrap=True)
    for heading in ("acc@t1", "acc@t2", "delta", "wrong->right", "right->wrong", "p (McNemar)", "changed"):
        table.add_column(heading, justify="right")
    for r in results:
        table.add_row(
            r.name,
            _percent(r.acc_t1, r.ci95["acc_t1"]),
            _percent(r.acc_t2, r.ci95["acc_t2"]),
            _percent(r.delta, r.ci95["delta"], sign=True),
            _percent(r.delta_i2c, r.ci95["delta_i2c"]),
            _percent(r.delta_c2i, r.ci95["delta_c2i"]),
            f"{r.mcnemar_p:.2g}",
            f"{100 * r.changed:.0f}",
        )
    return table


def gains_lines(results: Sequence[Result]) -> list[str]:
    """One line a checkpoint: its gains over the first one in the table, paired by question."""
    return [
        f"{r.name} against {results[0].name}: acc@t1 {_percent(r.gain_t1, r.ci95['gain_t1'], sign=True)}, "
        f"acc@t2 {_percent(r.gain_t2, r.ci95['gain_t2'], sign=True)} points"
        for r in results[1:]
        if r.gain_t1 is not None and r.gain_t2 is not None
    ]


def probe_table(probes: dict[str, dict[str, dict[str, Any]]]) -> Table:
    """probes: checkpoint name -> `evaluate.probe`."""
    headings = {
        "correct": "the correct answer (kept right)",
        "wrong": "its own wrong sample (fixed)",
        "unrelated": "another question's attempt",
        "empty": "nothing",
    }
    table = Table(title="Right after turn 2 when the first attempt is replaced by ...", title_justify="left")
    table.add_column("", no_wrap=True)
    for heading in headings.values():
        table.add_column(heading, justify="right")
    for name, rates in probes.items():
        cells = [rates[kind] for kind in headings]
        table.add_row(name, *(_percent(c["right_after"], c["ci95"]) if c["n"] else "no case" for c in cells))
    return table


def transcript(graded: Graded, title: str = "") -> Text:
    """One question with both attempts, each marked right or wrong."""
    text = Text(f"{title}\n" if title else "", style="bold")
    text.append(printable(graded.trajectory.example.question) + "\n", style="default not bold")
    for label, attempt, grade in (
        ("first ", graded.trajectory.first, graded.first),
        ("second", graded.trajectory.second, graded.second),
    ):
        style = "green not bold" if grade.correct else "red not bold"
        cut = " (cut by length)" if attempt.truncated else ""
        text.append(f"  {label} {'right' if grade.correct else 'wrong'}: ", style="dim not bold")
        text.append(" ".join(printable(attempt.text).split()) + cut + "\n", style=style)
    return text


def print_before_and_after(console: Console, named: Sequence[tuple[str, Sequence[Graded]]], count: int = 3) -> None:
    """The first `count` questions that the first checkpoint still has wrong after turn 2, as each checkpoint answers
    them: chosen by the first alone, so that nothing is picked for how it ends."""
    base = named[0][1]
    chosen = [i for i, g in enumerate(base) if not g.second.correct][:count]
    if chosen and len(named) > 1:
        console.print(f"\nThe first {len(chosen)} questions that {named[0][0]} gets wrong:", style="bold")
        for i in chosen:
            for name, graded in (named[0], named[-1]):
                console.print(transcript(graded[i], name), end="")


def draw_learning_curve(metrics: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """acc@t1 and acc@t2 over optimizer steps: sampled training batches (thin), greedy validation (bold)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for turn, colour in (("t1", "tab:blue"), ("t2", "tab:orange")):
        batch = [(m["step"], m[f"acc_{turn}"]) for m in metrics if f"acc_{turn}" in m]
        held_out = [(m["step"], m[f"eval_acc_{turn}"]) for m in metrics if f"eval_acc_{turn}" in m]
        for points, kind, style in (
            (batch, "training batch (sampled)", {"alpha": 0.35, "linewidth": 1}),
            (held_out, "validation (greedy)", {"marker": "o"}),
        ):
            if points:
                axes.plot(*zip(*points, strict=True), color=colour, label=f"acc@{turn}, {kind}", **style)
    axes.set(xlabel="optimizer step", ylabel="accuracy", ylim=(0, 1.02), title=title)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
