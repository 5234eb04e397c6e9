"""metrics.jsonl as the Trainer writes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from scorefast.files.atomic import identity, is_own_file, write_file
from scorefast.runs.layout import METRICS
from scorefast.runs.log import append_metrics, metrics_line
from scorefast.runs.owner import Owner


class LogFile(TrainerCallback):
    """Every log as a line of metrics.jsonl with its step, flushed at once, after those that were there `already`.

    What a run is remembered by never decides over its weights: what cannot be written is said once, and tried again
    with the next line. Where the file is not as it was left (removed, cut, a link, a pipe), it is written anew.
    """

    def __init__(self, owner: Owner, note: Callable[[str], None], already: Sequence[dict[str, Any]] = ()):
        self.owner, self.note = owner, note
        self.path = owner.folder / METRICS
        self.lines = list(already)
        self.names = {name for line in already for name in line}
        self.save_again = False  # the last checkpoint could not be written
        self._written = 0  # lines that the file holds
        self._left: tuple[Any, ...] | None = None  # how it was left
        self._failing: set[str] = set()

    def text(self, since: int = 0) -> str:
        return "".join(map(metrics_line, self.lines[since:]))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._left = None
            self.flush()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not logs or "train_runtime" in logs:
            return
        self.lines.append({"step": state.global_step, **logs})  # in every process: signs are looked for in them
        self.names |= logs.keys()
        if state.is_world_process_zero:
            self.flush()

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

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_save = control.should_save or self.save_again


def _as_left(path: Path) -> tuple[Any, ...] | None:
    return (identity(path), path.lstat().st_size) if is_own_file(path) else None
