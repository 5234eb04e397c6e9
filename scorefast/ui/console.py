"""A console that prints every string as plain text. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.status import Status

from scorefast.files.text import printable, shortened

LONGEST_NOTE = 3000  # characters


class InertConsole(Console):
    """A rich console without markup. Names of files, columns and models come from others and must not be interpreted.

    Control characters in a string become visible.
    """

    def __init__(self, **options: Any):
        super().__init__(markup=False, highlight=False, **options)

    def print(self, *objects: object, **options: Any) -> None:
        super().print(*(printable(o) if isinstance(o, str) else o for o in objects), **options)

    def note(self, line: str) -> None:
        """Print one line of bounded length; a line end in it becomes a space."""
        self.print(shortened(line, LONGEST_NOTE), soft_wrap=True)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Render anything, also a rich Text, and make control characters visible. Only rich's own escapes remain."""
        for part in super().render(renderable, options):
            inert = part.control or part.text.isprintable()
            yield part if inert else Segment(printable(part.text), part.style)

    def status(self, status: RenderableType, **options: Any) -> Status:
        """A status line with a spinner that the stream's encoding can write."""
        return super().status(status, **{"spinner": "dots" if self.encoding.startswith("utf") else "line"} | options)
