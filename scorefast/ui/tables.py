"""Tables and transcripts on the terminal. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from scorefast.files.text import printable, shortened
from scorefast.rl.monitor import remedy
from scorefast.runs.log import Metrics
from scorefast.stats import Graded, Interval, Result, wilson

if TYPE_CHECKING:
    from scorefast.model.memory import Plan
    from scorefast.stats import ProbeRates, Rate

GradedRow = dict[str, Any]  # a line of `grade`'s input with the grade added


def percent(value: float, interval: Interval, sign: bool = False) -> str:
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
            printable(r.name),
            percent(r.acc_t1, r.ci95["acc_t1"]),
            percent(r.acc_t2, r.ci95["acc_t2"]),
            percent(r.delta, r.ci95["delta"], sign=True),
            percent(r.delta_i2c, r.ci95["delta_i2c"]),
            percent(r.delta_c2i, r.ci95["delta_c2i"]),
            f"{r.mcnemar_p:.2g}",
            f"{100 * r.changed:.0f}",
        )
    return table


def gains_lines(results: Sequence[Result]) -> list[str]:
    """One line per checkpoint: its gains over the first one in the table, paired by question."""
    return [
        f"{r.name} against {results[0].name}: acc@t1 {percent(r.gain_t1, r.ci95['gain_t1'], sign=True)}, "
        f"acc@t2 {percent(r.gain_t2, r.ci95['gain_t2'], sign=True)} points"
        for r in results[1:]
        if r.gain_t1 is not None and r.gain_t2 is not None
    ]


def unsure_lines(results: Sequence[Result]) -> list[str]:
    """One line per checkpoint with replies that the grader could not decide."""
    return [
        f"{r.name}: the grader could not decide {100 * r.unsure:.1f} % of the replies, which count as wrong; see "
        "`unsure` in transcripts.jsonl"
        for r in results
        if r.unsure
    ]


def probe_table(probes: Mapping[str, ProbeRates]) -> Table:
    """probes: the rates of `probe`, by the name of the checkpoint."""
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
        table.add_row(printable(name), *(_rate_cell(rates[kind]) for kind in headings))
    return table


def _rate_cell(rate: Rate) -> str:
    return "no case" if rate["right_after"] is None else percent(rate["right_after"], rate["ci95"])


def transcript(graded: Graded, title: str = "") -> Text:
    """One question with both attempts, each marked right or wrong."""
    text = Text(printable(f"{title}\n") if title else "", style="bold")
    text.append(printable(graded.trajectory.example.question) + "\n", style="default not bold")
    for label, attempt, grade in (
        ("first ", graded.trajectory.first, graded.first),
        ("second", graded.trajectory.second, graded.second),
    ):
        style = "green not bold" if grade.correct else "red not bold"
        cut = " (cut by length)" if attempt.truncated else ""
        text.append(f"  {label} {'right' if grade.correct else 'wrong'}: ", style="dim not bold")
        if attempt.thoughts:
            text.append(f"({shortened(' '.join(printable(attempt.thoughts).split()), 200)}) ", style="dim not bold")
        text.append(" ".join(printable(attempt.text).split()) + cut, style=style)
        if grade.reason:
            unsure = "unsure: " if grade.unsure else ""
            text.append(f"  [{unsure}{shortened(printable(grade.reason), 100)}]", style="dim not bold")
        text.append("\n")
    return text


def print_before_and_after(console: Console, named: Sequence[tuple[str, Sequence[Graded]]], count: int = 3) -> None:
    """Print the first `count` questions that the first checkpoint gets wrong in turn 2, answered by the first and the
    last checkpoint. The choice depends on the first checkpoint only, so it favours no outcome."""
    base = named[0][1]
    chosen = [i for i, g in enumerate(base) if not g.second.correct][:count]
    if chosen and len(named) > 1:
        console.print(f"\nThe first {len(chosen)} questions that {named[0][0]} gets wrong:", style="bold")
        for i in chosen:
            for name, graded in (named[0], named[-1]):
                console.print(transcript(graded[i], name), end="")


def print_warnings(console: Console, metrics: Sequence[Metrics], stage: str) -> None:
    """Print a table of the warnings of a run with their steps and remedies, if there were any."""
    found: dict[str, list[int]] = {}
    for line in metrics:
        for name in line:
            if name == "skipped" or name.startswith("warning_"):
                found.setdefault(name.removeprefix("warning_"), []).append(line["step"])
    table = Table("", "steps", "first", "last", "remedy", title="Warnings of this run", title_justify="left")
    for name, steps in found.items():
        table.add_row(name, str(len(steps)), str(steps[0]), str(steps[-1]), remedy(name, stage))
    if found:
        console.print(table)


def print_memory(console: Console, plan: Plan, where: str, room: int) -> None:
    """Print the plan as a table by part, and whether it fits into `room` bytes; if not, keys to lower or set."""

    def gb(size: float) -> str:
        return f"{size / 1e9:.2f}"

    table = Table(title=f"memory, GB, of sequences of {plan.tokens} tokens", title_justify="left")
    table.add_column("part")
    for name in ("size", *plan.moments):
        table.add_column(name, justify="right")
    for part in plan.parts:
        table.add_row(part.name, gb(part.size), *("x" if moment in part.moments else "" for moment in plan.moments))
    table.add_row("total", "", *map(gb, plan.moments.values()), style="bold")
    console.print(table)
    console.print(
        f"{plan.parameters:,} parameters, {plan.trained:,} trained. The peak, {gb(plan.total)} GB, is in the "
        f"{plan.peak}; {where} has {gb(room)} GB free."
    )
    if plan.total > room:
        parts = sorted((p for p in plan.parts if plan.peak in p.moments and p.smaller), key=lambda p: -p.size)
        largest = {p.smaller: p for p in reversed(parts)}  # the largest part for each key
        first = sorted(largest.values(), key=lambda p: -p.size)[:3]
        hints = "; ".join(f"{p.smaller} ({p.name}, {gb(p.size)} GB)" for p in first)
        console.print(f"It does not fit. Lower or set: {hints}.", style="bold")
    elif plan.total > 0.9 * room:
        console.print(
            "It barely fits: memory held by the allocator and by a backend's own kernels is not counted.", style="bold"
        )


def explanation(line: int, row: GradedRow) -> Text:
    """One line on a graded object: the verdict, the reason, the reply and its reference."""
    verdict = "right" if row["correct"] else "unsure, so wrong" if row["unsure"] else "wrong"
    answer, reference = (shortened(" ".join(printable(str(row[key])).split()), 80) for key in ("answer", "reference"))
    text = Text(f"line {line}: ", style="dim")
    text.append(verdict, style="green not dim" if row["correct"] else "red not dim")
    return text.append(f": {printable(row['reason'])}: {answer!r} for {reference!r}", style="not dim")


def print_agreement(console: Console, graded: Sequence[tuple[int, GradedRow]], shown: int = 10) -> None:
    """Print counts and, if there are labels, the agreement with its Wilson 95 % interval and the first `shown` lines
    that disagree. graded: (line number, object)."""
    labelled = [(n, row) for n, row in graded if row.get("label") is not None]
    right = sum(row["correct"] for _, row in graded)
    console.print(f"{len(graded)} graded, {right} right" + ("" if labelled else "; no labels to compare with"))
    if not labelled:
        return
    table = Table(title=f"{len(labelled)} lines with a label", title_justify="left")
    for heading in ("", "graded right", "graded wrong"):
        table.add_column(heading, justify="right" if heading else "left")
    for label in (True, False):
        counts = [
            sum(row["label"] is label and row["correct"] is verdict for _, row in labelled) for verdict in (True, False)
        ]
        table.add_row(f"labelled {'right' if label else 'wrong'}", *map(str, counts))
    console.print(table)
    differ = [(n, row) for n, row in labelled if row["correct"] is not row["label"]]
    agreed = len(labelled) - len(differ)
    console.print(f"agreement {percent(agreed / len(labelled), wilson(agreed, len(labelled)))} %")
    for n, row in differ[:shown]:
        answer, reference = (" ".join(printable(str(row[k])).split())[-60:] for k in ("answer", "reference"))
        console.print(
            f"line {n}: labelled {'right' if row['label'] else 'wrong'}: {answer!r} for {reference!r}", soft_wrap=True
        )
    if len(differ) > shown:
        console.print(f"and {len(differ) - shown} more")
