"""What a run tells whoever watches it, and how it is interrupted."""

from __future__ import annotations

from collections.abc import Sequence

from scorefast.runs.log import Metrics
from scorefast.stats import Graded


class Reporter:
    """Silent, and never interrupts. A terminal's is `scorefast.ui.training.TerminalReporter`."""

    stopped_by: int | None = None  # the number of the signal that asked the run to stop

    def begin(self, processes: int) -> None:
        """Training begins: from here on there is something to save before a signal ends the run."""

    def interrupt(self) -> None:
        """Called between micro-batches and between sampled tokens. Raises StepDropped to drop the step."""

    def note(self, line: str) -> None:
        """One line for the user."""

    def show(self, step: int, graded: Sequence[Graded]) -> None:
        """The attempts of a step's rollout."""

    def count(self, done: int, due: int) -> None:
        """So many replies are written, of how many."""

    def log(self, step: int, metrics: Metrics) -> None:
        """The metrics of a step or of a validation."""
