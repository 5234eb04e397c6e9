"""What people look at: tables and transcripts on the terminal, the learning curve as a picture. Imports no torch."""

from __future__ import annotations

import contextlib
import html
import io
import json
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.status import Status
from rich.table import Table
from rich.text import Text

from scorefast.durable import write_file
from scorefast.metrics import Graded, Interval, Result, wilson
from scorefast.monitor import what_to_turn
from scorefast.recipe import Recipe, model_path
from scorefast.surroundings import HIDDEN, away_from_working_directory, printable
from scorefast.untrusted import shortened

if TYPE_CHECKING:
    from scorefast.memory import Plan
    from scorefast.prepare import Prepared


SILENCE = 60  # seconds
LONGEST_NOTE = 3000  # characters


class InertConsole(Console):
    """A console to which every string is text: names of files, columns and models are written by others too."""

    def __init__(self, **options: Any):
        super().__init__(markup=False, highlight=False, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(printable(o) if isinstance(o, str) else o for o in objects), **options)

    def note(self, line: str) -> None:
        """One line, with names of others' in it that may have line ends."""
        self.print(shortened(line, LONGEST_NOTE), soft_wrap=True)

    def render(self, renderable: Any, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """What rich makes of anything, a text of its own kind too: the escapes in it are rich's alone."""
        for part in super().render(renderable, options):
            inert = part.control or part.text.isprintable()
            yield part if inert else Segment(printable(part.text), part.style)

    def status(self, status: Any, **options: Any) -> Status:
        """With a spinner that the stream's encoding has."""
        return super().status(status, **{"spinner": "dots" if self.encoding.startswith("utf") else "line"} | options)


class Pulse:
    """Whether work that goes on should say so: nothing was said for a minute."""

    def __init__(self) -> None:
        self.said()

    def said(self) -> None:
        self.last = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self.last > SILENCE


@contextlib.contextmanager
def counting(console: Console, what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Call what it gives with the number of replies that have come: a bar with ETA, without a terminal now and then a
    line."""
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        MofNCompleteColumn(),
        BarColumn(bar_width=20),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
    task, done, pulse = bar.add_task(printable(what), total=total), 0, Pulse()

    def advance(count: int) -> None:
        nonlocal done
        done += count
        bar.advance(task, count)
        if not console.is_terminal and pulse.due():
            pulse.said()
            console.print(f"{what}: {done}{f' of {total}' if total else ''} replies")

    with bar:
        yield advance


def json_line(content: Any) -> str:
    """JSON on one line, safe on a terminal: what `printable` makes visible stands as \\uXXXX, which reads the same."""
    text = json.dumps(content, ensure_ascii=False)
    if text.isprintable():
        return text
    return "".join(json.dumps(c)[1:-1] if unicodedata.category(c) in HIDDEN else c for c in text)


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
            printable(r.name),
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


def unsure_lines(results: Sequence[Result]) -> list[str]:
    return [
        f"{r.name}: the grader's rules cannot tell {100 * r.unsure:.1f} % of the replies, which count as wrong: "
        "`unsure` in transcripts.jsonl"
        for r in results
        if r.unsure
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
        table.add_row(printable(name), *(_percent(c["right_after"], c["ci95"]) if c["n"] else "no case" for c in cells))
    return table


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
    """The first `count` questions that the first checkpoint still has wrong after turn 2, as each checkpoint answers
    them: chosen by the first alone, so that nothing is picked for how it ends."""
    base = named[0][1]
    chosen = [i for i, g in enumerate(base) if not g.second.correct][:count]
    if chosen and len(named) > 1:
        console.print(f"\nThe first {len(chosen)} questions that {named[0][0]} gets wrong:", style="bold")
        for i in chosen:
            for name, graded in (named[0], named[-1]):
                console.print(transcript(graded[i], name), end="")


def _pyplot() -> Any:
    """matplotlib's, which draws into files."""
    with away_from_working_directory():
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    return pyplot


def draw_learning_curve(metrics: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """acc@t1 and acc@t2 over optimizer steps: sampled training batches (thin), greedy validation (bold)."""
    pyplot = _pyplot()
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
    axes.set(xlabel="optimizer step", ylabel="accuracy", ylim=(0, 1.02))
    axes.set_title(title, parse_math=False)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize="small")
    image = io.BytesIO()
    figure.savefig(image, dpi=120, format="png")
    pyplot.close(figure)
    write_file(path, image.getvalue())


def print_signs(console: Console, metrics: Sequence[dict[str, Any]], section: str) -> None:
    """What went wrong in a run, and in which steps; nothing where nothing did."""
    found: dict[str, list[int]] = {}
    for line in metrics:
        for name in line:
            if name == "skipped" or name.startswith("warning_"):
                found.setdefault(name.removeprefix("warning_"), []).append(line["step"])
    table = Table("", "steps", "first", "last", "what to turn", title="Warnings of this run", title_justify="left")
    for name, steps in found.items():
        table.add_row(name, str(len(steps)), str(steps[0]), str(steps[-1]), what_to_turn(name, section))
    if found:
        console.print(table)


# --- prepared data -----------------------------------------------------------------------------------------------

CONTROL = ("⟦", "⟧")  # around what is a control token for the model, and not text


def model_card(recipe: Recipe, section: str) -> str:
    """README.md of a checkpoint, with the Hub's metadata; of its figures it says no more than where they stand."""
    adapter = recipe.model.tuning == "lora"
    known = {
        "base_model": None if Path(model_path(recipe.model.name)).is_dir() else json.dumps(recipe.model.name),
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": json.dumps(["score", "self-correction", *(["lora"] if adapter else [])]),
    }
    metadata = "".join(f"{key}: {value}\n" for key, value in known.items() if value is not None)
    correction = "".join(f"> {line}\n" for line in recipe.prompt.correction.splitlines())
    return f"""---
{metadata}---

# {"A LoRA adapter of" if adapter else "A model tuned from"} {recipe.model.name}, trained to look at its answer again

Trained by scorefast, {section} ([SCoRe](https://arxiv.org/abs/2409.12917)): how, says `recipe.yaml` and its run's
`run.json`; what it did meanwhile, its run's `metrics.jsonl`. What it can do on held-out questions was measured where
there is a `report.json`.

Ask the question, and after the reply send this:

{correction}"""


def print_memory(console: Console, plan: Plan, where: str, room: int) -> None:
    """The plan as a table by part, and whether it fits into `room` bytes; where not, what to turn."""

    def gb(size: float) -> str:
        return f"{size / 1e9:.2f}"

    table = Table(title=f"memory, GB, of sequences of {plan.tokens} tokens", title_justify="left")
    table.add_column("part")
    for name in ("size", *plan.moments):
        table.add_column(name, justify="right")
    for part in plan.parts:
        table.add_row(part.name, gb(part.size), *("x" if moment in part.moments else "" for moment in plan.moments))
    table.add_row("in all", "", *map(gb, plan.moments.values()), style="bold")
    console.print(table)
    console.print(
        f"{plan.parameters:,} parameters, {plan.trained:,} trained. The most, {gb(plan.total)} GB, is needed in the "
        f"{plan.peak}; {where} has {gb(room)} GB free."
    )
    if plan.total > room:
        parts = sorted((p for p in plan.parts if plan.peak in p.moments and p.smaller), key=lambda p: -p.size)
        largest = {p.smaller: p for p in reversed(parts)}  # of parts that the same key lowers
        told = sorted(largest.values(), key=lambda p: -p.size)[:3]
        hints = "; ".join(f"{p.smaller} ({p.name}, {gb(p.size)} GB)" for p in told)
        console.print(f"It does not fit. Lower, or set: {hints}.", style="bold")
    elif plan.total > 0.9 * room:
        console.print("It is tight: what the allocator and a backend's own kernels hold is not counted.", style="bold")


def print_prepared(console: Console, done: Prepared) -> None:
    """What a manifest says, in lines; then the prompts of one row as the model gets them."""
    for line in prepared_lines(done.manifest):
        console.print(line, soft_wrap=True)
    for title, pieces in done.preview:
        console.print(f"preview, {title} ({CONTROL[0]}control tokens{CONTROL[1]}):", style="bold")
        text = Text()
        for piece, control in pieces:
            shown = printable(piece)
            text.append(f"{CONTROL[0]}{shown}{CONTROL[1]}" if control else shown, style="dim" if control else "")
        console.print(text, soft_wrap=True)


def prepared_lines(manifest: dict[str, Any]) -> list[str]:
    kept, read, measured = manifest["rows_kept"], manifest["rows_read"], manifest["rows_measured"]
    splits = ", ".join(f"{n} {name}" for name, n in manifest["splits"].items())
    lines = [f"{kept} of {read} rows kept: {splits}"]
    lines += [f"left out, {reason}: {n}" for reason, n in manifest["dropped"].items()]
    if manifest["near_duplicates_kept"]:
        lines.append(f"near duplicates within a split, kept: {manifest['near_duplicates_kept']} pairs")
    if measured < kept:
        lines.append(f"the rest was measured on {measured} rows, those with the smallest hashes:")
    for name, n in manifest["token_lengths"].items():
        lines.append(f"tokens of {name}: median {n['p50']}, 95 % {n['p95']}, 99 % {n['p99']}, longest {n['max']}")
    lines += [f"too long: {n} rows with {reason}" for reason, n in manifest["too_long"].items() if n]
    first = manifest["first_attempts"]
    if first["given"]:
        rate = _percent(first["right"] / first["given"], first["right_ci95"])
        authors = ", ".join(f"{n} by {author}" for author, n in first["by"].items())
        lines.append(f"original answers: {first['given']} ({authors}); right already: {rate} %")
    for row in first.get("examples", ()):
        told = " ".join(row["original_answer"].split())
        outcome = "right" if row["correct"] else "unsure, so wrong" if row["unsure"] else "wrong"
        lines.append(f"read, for {row['correct_answer']!r}: {shortened(told, 80)!r} is {outcome}: {row['reason']}")
    lines.append("graders: " + ", ".join(f"{name} for {n} rows" for name, n in manifest["graders"].items()))
    return lines


def write_data_report(done: Prepared, path: Path) -> None:
    """The manifest as one HTML page without scripts or links: counts, plots, the preview; data is escaped."""
    manifest = done.manifest
    body = [f"<h1>{_escaped(manifest['source'])}</h1>", "<ul>"]
    body += [f"<li>{_escaped(line)}</li>" for line in prepared_lines(manifest)]
    body += ["</ul>", "<h2>Where the rows went</h2>", _svg(_draw_rows, manifest)]
    if done.lengths:
        body += ["<h2>Lengths in tokens</h2>", _svg(_draw_lengths, done.lengths, done.limits)]
        body.append("<p>Dashed: the most that the recipe in force leaves room for.</p>")
    if done.preview:
        body.append("<h2>One row as the model gets it</h2><p>Marked: control tokens. All else is text.</p>")
    for title, pieces in done.preview:
        marked = (f"<b>{_escaped(t)}</b>" if control else _escaped(t) for t, control in pieces)
        body.append(f"<h3>{_escaped(title)}</h3><pre>{''.join(marked)}</pre>")
    body.append(f"<h2>Manifest</h2><pre>{_escaped(json.dumps(manifest, indent=2, ensure_ascii=False))}</pre>")
    write_file(path, _PAGE.format(title=_escaped(manifest["source"]), body="\n".join(body)))


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; background: #f4f4f4; padding: 1rem }}
pre b {{ color: #fff; background: #57606a; border-radius: 3px; padding: 0 2px; font-weight: normal }}
svg {{ max-width: 100%; height: auto }}
</style></head><body>
{body}
</body></html>
"""


def _escaped(text: str) -> str:
    return html.escape(printable(text))


def _svg(draw: Callable[..., None], *content: Any) -> str:
    pyplot = _pyplot()
    with pyplot.rc_context({"svg.fonttype": "none", "svg.hashsalt": "scorefast"}):
        figure = pyplot.figure(figsize=(9, 3), layout="constrained")
        draw(figure, *content)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
        pyplot.close(figure)
    return buffer.getvalue().split("\n", 3)[-1]  # without the XML and doctype lines


def _draw_rows(figure: Any, manifest: dict[str, Any]) -> None:
    counts = {f"{name} split": n for name, n in manifest["splits"].items()} | manifest["dropped"]
    axes = figure.subplots()
    colours = ["tab:blue"] * len(manifest["splits"]) + ["tab:red"] * len(manifest["dropped"])
    bars = axes.barh(
        [printable(name)[:50].replace("$", r"\$") for name in counts], list(counts.values()), color=colours
    )
    axes.bar_label(bars, padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set(xlabel="rows")


def _draw_lengths(figure: Any, lengths: dict[str, list[int]], limits: dict[str, int]) -> None:
    shown = {name: n for name, n in lengths.items() if n}
    for axes, (name, n) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True):
        axes.hist(n, bins=min(40, max(n) - min(n) + 1), color="tab:blue")
        axes.axvline(limits[name], color="tab:red", linestyle="--")
        axes.set(title=name, xlabel="tokens", ylabel="rows")


# --- the grader against labels -------------------------------------------------------------------------------------


def explanation(line: int, row: dict[str, Any]) -> Text:
    """One graded object in a line: the verdict, the reason, the reply and its reference."""
    verdict = "right" if row["correct"] else "unsure, so wrong" if row["unsure"] else "wrong"
    answer, reference = (shortened(" ".join(printable(str(row[key])).split()), 80) for key in ("answer", "reference"))
    text = Text(f"line {line}: ", style="dim")
    text.append(verdict, style="green not dim" if row["correct"] else "red not dim")
    return text.append(f": {printable(row['reason'])}: {answer!r} for {reference!r}", style="not dim")


def print_agreement(console: Console, graded: Sequence[tuple[int, dict[str, Any]]], shown: int = 10) -> None:
    """Counts, and where there are labels a table of agreement (Wilson 95 %) with the first lines of disagreement."""
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
    apart = [(n, row) for n, row in labelled if row["correct"] is not row["label"]]
    agreed = len(labelled) - len(apart)
    console.print(f"agreement {_percent(agreed / len(labelled), wilson(agreed, len(labelled)))} %")
    for n, row in apart[:shown]:
        answer, reference = (" ".join(printable(str(row[k])).split())[-60:] for k in ("answer", "reference"))
        console.print(
            f"line {n}: labelled {'right' if row['label'] else 'wrong'}: {answer!r} for {reference!r}", soft_wrap=True
        )
    if len(apart) > shown:
        console.print(f"and {len(apart) - shown} more")
