"""The interface through which a run reports its progress and is interrupted."""

from __future__ import annotations

from collections.abc import Sequence

from scorefast.runs.log import Metrics
from scorefast.stats import Graded


class Reporter:
    """Prints nothing and never interrupts. `scorefast.ui.training.TerminalReporter` writes to a terminal."""

    stopped_by: int | None = None  # the number of the signal that asked the run to stop

    def begin(self, processes: int) -> None:
        """Training begins. From here on, a signal ends the run only after a checkpoint is saved."""

    def interrupt(self) -> None:
        """Called between micro-batches and between sampled tokens. Raise StepDropped to drop the step."""

    def note(self, line: str) -> None:
        """Print one line for the user."""

    def show(self, step: int, graded: Sequence[Graded]) -> None:
        """Show attempts of a step's rollout."""

    def count(self, done: int, due: int) -> None:
        """Report that `done` of `due` replies are sampled."""

    def log(self, step: int, metrics: Metrics) -> None:
        """Report the metrics of a step or of a validation."""
