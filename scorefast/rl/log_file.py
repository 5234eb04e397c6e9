"""Write metrics.jsonl during a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from scorefast.files.atomic import identity, is_own_file, write_file
from scorefast.runs.layout import METRICS
from scorefast.runs.log import Metrics, append_metrics, metrics_line
from scorefast.runs.owner import Owner

FileState = tuple[tuple[int, int] | None, int]  # (identity, size in bytes)


class LogFile:
    """The log of a run, flushed to metrics.jsonl line by line. `history` holds the lines up to the resumed step.

    A failed write does not stop the run: `note` reports it once, and the next `flush` tries again. If the file was
    changed from outside (removed, truncated, replaced by a link or a pipe), it is rewritten as a whole.
    """

    def __init__(self, owner: Owner, note: Callable[[str], None], history: Sequence[Metrics] = ()):
        self.owner, self.note = owner, note
        self.path = owner.folder / METRICS
        self.lines = list(history)
        self.names = {name for line in history for name in line}
        self._written = 0  # lines in the file
        self._state: FileState | None = None  # of the file after the last write
        self._failing: set[str] = set()

    def text(self, since: int = 0) -> str:
        return "".join(map(metrics_line, self.lines[since:]))

    def begin(self) -> None:
        """Rewrite the file, whatever it holds."""
        self._state = None
        self.flush()

    def add(self, step: int, metrics: Metrics) -> None:
        """Append one line; `flush` writes it."""
        self.lines.append({"step": step, **metrics})
        self.names |= metrics.keys()

    def flush(self) -> None:
        """Write the new lines. Raises RunError if another process has locked the run."""
        failed: dict[str, OSError] = {}
        try:
            self.owner.confirm()
            failed = self.owner.restore()
            self._write_lines()
        except OSError as error:
            failed[METRICS] = error
        for name in failed.keys() - self._failing:
            self.note(f"{self.owner.folder / name}: not written, kept for later: {failed[name].strerror}")
        self._failing = set(failed)

    def _write_lines(self) -> None:
        if self._state is None or self._state != _file_state(self.path):
            self._written, self._state = 0, None
            write_file(self.path, self.text())
        elif self._written < len(self.lines):
            append_metrics(self.owner.folder, self.text(since=self._written))
        self._written, self._state = len(self.lines), _file_state(self.path)


def _file_state(path: Path) -> FileState | None:
    return (identity(path), path.lstat().st_size) if is_own_file(path) else None
