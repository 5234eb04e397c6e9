"""Progress of long work: a bar on a terminal, elsewhere a line now and then. Imports no torch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from scorefast.files.text import printable

SILENCE = 60  # seconds


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


@contextlib.contextmanager
def byte_progress(console: Console) -> Iterator[Callable[[int, int], None]]:
    """A bar of bytes read, on a terminal. Call what it gives with the bytes read so far and in all."""
    columns = (TextColumn("reading"), BarColumn(bar_width=20), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("reading")
        yield lambda done, total: bar.update(task, completed=done, total=total)
