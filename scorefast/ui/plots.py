"""Plots that are written to files. Imports no torch."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from scorefast.files.atomic import write_file
from scorefast.runs.log import Metrics
from scorefast.ui.streams import away_from_working_directory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def load_pyplot() -> ModuleType:
    """matplotlib.pyplot with the backend for files."""
    with away_from_working_directory():
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    return pyplot


def draw_learning_curve(metrics: Sequence[Metrics], title: str, path: Path) -> None:
    """acc@t1 and acc@t2 over optimizer steps: sampled training batches (thin), greedy validation (bold)."""
    pyplot = load_pyplot()
    figure: Figure = pyplot.figure(figsize=(7, 4), layout="constrained")
    axes: Axes = figure.subplots()
    for turn, colour in (("t1", "tab:blue"), ("t2", "tab:orange")):
        batch = [(m["step"], m[f"acc_{turn}"]) for m in metrics if f"acc_{turn}" in m]
        held_out = [(m["step"], m[f"eval_acc_{turn}"]) for m in metrics if f"eval_acc_{turn}" in m]
        curves: list[tuple[list[tuple[int, float]], str, dict[str, Any]]] = [
            (batch, "training batch (sampled)", {"alpha": 0.35, "linewidth": 1}),
            (held_out, "validation (greedy)", {"marker": "o"}),
        ]
        for points, kind, style in curves:
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
