"""The report of `prepare` on its data: lines on the terminal, and one HTML page. Imports no torch."""

from __future__ import annotations

import html
import io
import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from scorefast.data.example import Dataset
from scorefast.files.atomic import write_file
from scorefast.files.text import printable, shortened
from scorefast.grading.graded_example import check_references, chosen_grader
from scorefast.schema import GraderName
from scorefast.ui.console import InertConsole
from scorefast.ui.plots import load_pyplot
from scorefast.ui.tables import percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from scorefast.data.prepared import Prepared

Manifest = dict[str, Any]  # the content of manifest.json
CONTROL = ("⟦", "⟧")  # mark a control token, which the model does not read as text


def print_prepared(console: Console, done: Prepared) -> None:
    """Print the manifest as lines, then the prompts of one row as the model gets them."""
    for line in prepared_lines(done.manifest):
        console.print(line, soft_wrap=True)
    for title, pieces in done.preview:
        console.print(f"preview, {title} ({CONTROL[0]}control tokens{CONTROL[1]}):", style="bold")
        text = Text()
        for piece, control in pieces:
            shown = printable(piece)
            text.append(f"{CONTROL[0]}{shown}{CONTROL[1]}" if control else shown, style="dim" if control else "")
        console.print(text, soft_wrap=True)


def prepared_lines(manifest: Manifest) -> list[str]:
    """The manifest as lines of text."""
    kept, read, measured = manifest["rows_kept"], manifest["rows_read"], manifest["rows_measured"]
    splits = ", ".join(f"{n} {name}" for name, n in manifest["splits"].items())
    lines = [f"{kept} of {read} rows kept: {splits}"]
    lines += [f"left out, {reason}: {n}" for reason, n in manifest["dropped"].items()]
    if manifest["near_duplicates_kept"]:
        lines.append(f"near duplicates within a split, kept: {manifest['near_duplicates_kept']} pairs")
    if measured < kept:
        lines.append(f"measured on a sample of {measured} rows, those with the smallest hashes:")
    for name, n in manifest["token_lengths"].items():
        lines.append(f"tokens of {name}: median {n['p50']}, 95 % {n['p95']}, 99 % {n['p99']}, longest {n['max']}")
    lines += [f"too long: {n} rows with {reason}" for reason, n in manifest["too_long"].items() if n]
    first = manifest["first_attempts"]
    if first["given"]:
        rate = percent(first["right"] / first["given"], first["right_ci95"])
        authors = ", ".join(f"{n} by {author}" for author, n in first["by"].items())
        lines.append(f"original answers: {first['given']} ({authors}); right already: {rate} %")
    for row in first.get("examples", ()):
        answer = " ".join(row["original_answer"].split())
        outcome = "right" if row["correct"] else "unsure, so wrong" if row["unsure"] else "wrong"
        lines.append(f"read, for {row['correct_answer']!r}: {shortened(answer, 80)!r} is {outcome}: {row['reason']}")
    lines.append("graders: " + ", ".join(f"{name} for {n} rows" for name, n in manifest["graders"].items()))
    return lines


def write_data_report(done: Prepared, path: Path) -> None:
    """Write the manifest as one HTML page without scripts or links: counts, plots and the preview. Data is escaped."""
    manifest = done.manifest
    body = [f"<h1>{_escaped(manifest['source'])}</h1>", "<ul>"]
    body += [f"<li>{_escaped(line)}</li>" for line in prepared_lines(manifest)]
    body += ["</ul>", "<h2>Where the rows went</h2>", _svg(partial(_draw_rows, manifest=manifest))]
    if done.lengths:
        draw = partial(_draw_lengths, lengths=done.lengths, limits=done.limits)
        body += ["<h2>Lengths in tokens</h2>", _svg(draw)]
        body.append("<p>Dashed: the longest that fits with this recipe.</p>")
    if done.preview:
        body.append("<h2>One row as the model gets it</h2><p>Marked: control tokens. Everything else is text.</p>")
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


def _svg(draw: Callable[[Figure], None]) -> str:
    """What `draw` puts on a figure, as an <svg> element."""
    pyplot = load_pyplot()
    with pyplot.rc_context({"svg.fonttype": "none", "svg.hashsalt": "scorefast"}):
        figure = pyplot.figure(figsize=(9, 3), layout="constrained")
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
        pyplot.close(figure)
    return buffer.getvalue().split("\n", 3)[-1]  # without the XML and doctype lines


def _draw_rows(figure: Figure, manifest: Manifest) -> None:
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


def _draw_lengths(figure: Figure, lengths: dict[str, list[int]], limits: dict[str, int]) -> None:
    shown = {name: n for name, n in lengths.items() if n}
    for axes, (name, n) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True):
        axes.hist(n, bins=min(40, max(n) - min(n) + 1), color="tab:blue")
        axes.axvline(limits[name], color="tab:red", linestyle="--")
        axes.set(title=name, xlabel="tokens", ylabel="rows")


def print_dataset(console: InertConsole, dataset: Dataset, grader: GraderName) -> None:
    """Print what was left out of a data set, and its graders. Raises UserError if no row can ever be graded right."""
    for reason, count in dataset.dropped.items():
        first = next((row for row in dataset.dropped_rows if row.kind == reason), None)
        where = f" (first: {first.file}:{first.line})" if first and first.line else ""
        console.note(f"left out, {reason}: {count}{where}")
    everything = [e for examples in dataset.splits.values() for e in examples]
    for line in check_references(everything, grader, some=True):
        console.note(line)
    if grader == "auto":
        chosen = Counter(chosen_grader(e, "auto") for e in everything)
        console.note(f"grader: auto, so {', '.join(f'{name} for {n} rows' for name, n in chosen.most_common())}")
