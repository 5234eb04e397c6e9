"""Draw the README's picture from a run of `make demo`: a two-turn exchange before and after, beside the learning curve.

    python docs/picture.py runs/demo docs/picture.png

The exchange is the first test question, in the file's order, to which the base model's second attempt is wrong.
"""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

INK, MUTED, LINE = "#1f2328", "#656d76", "#d0d7de"
FIRST, SECOND = "#6e7781", "#0969da"  # the two turns, in the curve
GREY, RED, GREEN = ("#f0f2f5", LINE), ("#fff0ee", "#f2b8b3"), ("#e9f9ee", "#9fd8ae")  # fill and edge of a bubble
MARK = {False: ("wrong", "#c0291f"), True: ("right", "#1a7f37")}
SIZE, DPI = (9.0, 3.75), 200  # inches; 1,800 x 750 pixels
WIDTH, PAD = 2.45, 0.1  # of a conversation and around the text of a bubble, inches

Line = dict[str, Any]


def read_lines(path: Path) -> list[Line]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def exchange(transcripts: list[Line]) -> tuple[Line, Line]:
    """(before, after): what the first and the last checkpoint say to the first question that the first one gets wrong
    at turn 2."""
    names = list(dict.fromkeys(line["checkpoint"] for line in transcripts))
    before = next(line for line in transcripts if line["checkpoint"] == names[0] and not line["correct2"])
    after = next(line for line in transcripts if (line["checkpoint"], line["id"]) == (names[-1], before["id"]))
    return before, after


def joined(first: list[Line], second: list[Line]) -> tuple[list[Line], int]:
    """The logs of both stages with one count of steps, and the step at which Stage II begins."""
    end = first[-1]["step"]
    return first + [line | {"step": line["step"] + end} for line in second], end


def _bubble(axes: Axes, side: str, edge: float, top: float, text: str, colours: tuple[str, str], size: float) -> float:
    """Draw `text` in a box with its `side` (left, right) at `edge`; top and the returned bottom in inches."""
    wrapped = "\n".join(textwrap.wrap(text, int(WIDTH * 72 / (size * 0.575))))
    drawn = axes.text(0, 0, wrapped, size=size, color=INK, va="top", linespacing=1.3, zorder=2)
    extent = drawn.get_window_extent().transformed(axes.transData.inverted())
    width, height, pad = extent.width + 2 * PAD, extent.height + 2 * PAD, PAD
    x = edge if side == "left" else edge - width
    drawn.set_position((x + pad, top - pad))
    shape = f"round,pad=0,rounding_size={PAD}"
    box = FancyBboxPatch((x, top - height), width, height, boxstyle=shape, lw=0.9, fc=colours[0], ec=colours[1])
    axes.add_patch(box)
    return top - height


def _column(axes: Axes, x: float, title: str, line: Line, correction: str) -> None:
    axes.text(x, SIZE[1] - 0.42, title, size=10.5, weight="bold", color=INK)
    y = _bubble(axes, "right", x + WIDTH, SIZE[1] - 0.6, line["question"], GREY, 9)
    for turn in (1, 2):
        right = bool(line[f"correct{turn}"])
        y = _bubble(axes, "left", x, y - 0.16, line[f"attempt{turn}"], GREEN if right else RED, 9)
        word, colour = MARK[right]
        axes.text(x + 0.03, y - 0.06, f"attempt {turn}: {word}", size=8, color=colour, va="top", weight="bold")
        if turn == 1:
            y = _bubble(axes, "right", x + WIDTH, y - 0.34, correction, GREY, 7.5)


def _curve(axes: Axes, metrics: list[Line], boundary: int) -> None:
    last = metrics[-1]["step"]
    axes.axvline(boundary, color=LINE, linewidth=1, zorder=0)
    for start, end, name in ((0, boundary, "Stage I"), (boundary, last, "Stage II")):
        axes.text((start + end) / 2, 4, name, ha="center", size=9, color=MUTED)
    for turn, colour, name in (("t1", FIRST, "first attempt (acc@t1)"), ("t2", SECOND, "second attempt (acc@t2)")):
        points = [(line["step"], 100 * line[f"eval_acc_{turn}"]) for line in metrics if f"eval_acc_{turn}" in line]
        axes.plot(*zip(*points, strict=True), color=colour, linewidth=2.4, marker="o", markersize=5, clip_on=False)
        axes.annotate(name, points[-1], (0, -9), textcoords="offset points", ha="right", va="top", color=colour, size=9,
                      weight="bold", bbox={"fc": "white", "ec": "none", "pad": 1.5})  # fmt: skip
    axes.set(xlim=(0, last), ylim=(0, 100), xticks=range(0, last + 1, max(1, last // 4)), yticks=range(0, 101, 25))
    axes.set(xlabel="optimizer step")
    axes.set_title("% right (validation, greedy)", loc="left", size=9.5, weight="bold", color=INK, pad=10)
    axes.xaxis.label.set(size=9, color=MUTED)
    axes.tick_params(colors=MUTED, labelsize=8.5, length=0)
    axes.grid(axis="y", color=LINE, linewidth=0.6)
    axes.spines[:].set_visible(False)


def draw(run: Path, image: Path) -> None:
    """run: what `make demo` leaves, of which four files are read."""
    before, after = exchange(read_lines(run / "after-stage2" / "transcripts.jsonl"))
    metrics, boundary = joined(*(read_lines(run / stage / "metrics.jsonl") for stage in ("stage1", "stage2")))
    correction = "There might be an error in the solution above ... correct the error, if any, ..."
    with pyplot.rc_context({"font.family": "DejaVu Sans", "text.parse_math": False}):
        figure = pyplot.figure(figsize=SIZE, dpi=DPI, facecolor="white")
        left = figure.add_axes((0, 0, 1, 1), xlim=(0, SIZE[0]), ylim=(0, SIZE[1]))
        left.axis("off")
        _column(left, 0.2, "Before training", before, correction)
        _column(left, 0.2 + WIDTH + 0.3, "After both stages", after, correction)
        _curve(figure.add_axes((0.675, 0.15, 0.3, 0.7)), metrics, boundary)
        figure.savefig(image, metadata={"Software": None})
        pyplot.close(figure)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
