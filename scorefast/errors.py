"""Every exception that a command ends with, and the exit code of each. Imports nothing of scorefast."""

from __future__ import annotations

from typing import Any


class UserError(Exception):
    """Something the user can mend: printed as one line, exit code 2."""


class RunError(Exception):
    """A run that cannot go on, whose last checkpoint stands: printed as one line, exit code 1."""


class NotWritten(RunError):
    """All was evaluated, `content` is the report, and there is no place for it."""

    def __init__(self, content: dict[str, Any], message: str):
        super().__init__(message)
        self.content = content


class TooLong(Exception):
    """The conversation does not fit the model's context."""


class StepDropped(Exception):
    """Raised between two micro-batches or two sampled tokens, where a step can be left without a trace."""


class Interrupted(BaseException):
    """What runs was asked to stop, by the signal `signum`; a stage has saved by then what it had."""

    def __init__(self, signum: int):
        self.signum = signum
