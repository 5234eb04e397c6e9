"""A console to which every string is text. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console, ConsoleOptions
from rich.segment import Segment
from rich.status import Status

from scorefast.files.text import printable, shortened

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
