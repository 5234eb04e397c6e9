"""Plots, drawn into files. Imports no torch."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scorefast.files.atomic import write_file
from scorefast.ui.streams import away_from_working_directory


def load_pyplot() -> Any:
    """matplotlib's, which draws into files."""
    with away_from_working_directory():
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    return pyplot


def draw_learning_curve(metrics: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """acc@t1 and acc@t2 over optimizer steps: sampled training batches (thin), greedy validation (bold)."""
    pyplot = load_pyplot()
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
