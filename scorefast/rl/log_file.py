"""metrics.jsonl while a run writes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scorefast.files.atomic import identity, is_own_file, write_file
from scorefast.runs.layout import METRICS
from scorefast.runs.log import Metrics, append_metrics, metrics_line
from scorefast.runs.owner import Owner


class LogFile:
    """Every log as a line of metrics.jsonl with its step, flushed at once, after those that were there `already`.

    What a run is remembered by never decides over its weights: what cannot be written is said once, and tried again
    with the next line. Where the file is not as it was left (removed, cut, a link, a pipe), it is written anew.
    """

    def __init__(self, owner: Owner, note: Callable[[str], None], already: Sequence[Metrics] = ()):
        self.owner, self.note = owner, note
        self.path = owner.folder / METRICS
        self.lines = list(already)
        self.names = {name for line in already for name in line}
        self._written = 0  # lines that the file holds
        self._left: tuple[Any, ...] | None = None  # how it was left
        self._failing: set[str] = set()

    def text(self, since: int = 0) -> str:
        return "".join(map(metrics_line, self.lines[since:]))

    def begin(self) -> None:
        """Write the file anew, whatever it holds."""
        self._left = None
        self.flush()

    def add(self, step: int, metrics: Metrics) -> None:
        """One more line, which `flush` writes."""
        self.lines.append({"step": step, **metrics})
        self.names |= metrics.keys()

    def flush(self) -> None:
        """Raises RunError where the run is another process's by now."""
        failed: dict[str, OSError] = {}
        try:
            self.owner.confirm()
            failed = self.owner.restore()
            self._write_lines()
        except OSError as error:
            failed[METRICS] = error
        for name in failed.keys() - self._failing:
            why = f"not written, kept for later: {failed[name].strerror}"
            self.note(f"{self.owner.folder / name}: {why}")
        self._failing = set(failed)

    def _write_lines(self) -> None:
        if self._left is None or self._left != _as_left(self.path):
            self._written, self._left = 0, None
            write_file(self.path, self.text())
        elif self._written < len(self.lines):
            append_metrics(self.owner.folder, self.text(since=self._written))
        self._written, self._left = len(self.lines), _as_left(self.path)


def _as_left(path: Path) -> tuple[Any, ...] | None:
    return (identity(path), path.lstat().st_size) if is_own_file(path) else None
