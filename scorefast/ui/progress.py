"""Progress of long work: a bar on a terminal, elsewhere a line at most once a minute. Imports no torch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from scorefast.files.text import printable

SILENCE = 60  # seconds


class Pulse:
    """`due` is true once nothing was printed for SILENCE seconds."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Something was printed."""
        self.last = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self.last > SILENCE


@contextlib.contextmanager
def counting(console: Console, what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Yields a function to call with the number of new replies. It moves a bar with ETA; without a terminal it prints a
    line at most once a minute."""
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
            pulse.reset()
            console.print(f"{what}: {done}{f' of {total}' if total else ''} replies")

    with bar:
        yield advance


@contextlib.contextmanager
def byte_progress(console: Console) -> Iterator[Callable[[int, int], None]]:
    """Yields a function to call with the bytes read so far and their total. It moves a bar on a terminal."""
    columns = (TextColumn("reading"), BarColumn(bar_width=20), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("reading")
        yield lambda done, total: bar.update(task, completed=done, total=total)
