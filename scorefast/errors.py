"""Every exception that ends a command, and the exit codes. Imports nothing of scorefast."""

from __future__ import annotations

import errno
from typing import Any

DONE, FAILURE, USAGE = 0, 1, 2
INTERRUPTED = 128  # plus the number of the signal: 130 Ctrl-C, 143 SIGTERM, 129 a closed terminal

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)
DENIED = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP)  # by the system, to the user who named the path


class UserError(Exception):
    """Something the user can mend: printed as one line."""


class RunError(Exception):
    """A run that cannot go on, whose last checkpoint stands: printed as one line."""


class ReportNotWritten(RunError):
    """Every checkpoint was evaluated, and no place took the report. content: the report."""

    def __init__(self, content: dict[str, Any], message: str):
        super().__init__(message)
        self.content = content


class TooLong(Exception):
    """A conversation does not fit the context of the model."""


class StepDropped(Exception):
    """Raised between two micro-batches or two sampled tokens, where a step can be left without a trace."""


class Interrupted(BaseException):
    """A signal asked the command to stop. A stage has saved what it had by then. signum: the number of the signal."""

    def __init__(self, signum: int):
        self.signum = signum


def outcome(error: BaseException) -> tuple[int, str] | None:
    """(exit code, line for stderr) of what ends a command; None for a fault of the program, which gets a traceback."""
    match error:
        case Interrupted():
            return INTERRUPTED + error.signum, ""
        case UserError():
            return USAGE, str(error)
        case RunError():
            return FAILURE, str(error)
        case MemoryError():
            return FAILURE, "takes more memory than there is"
        case OSError(errno=number) if number in (*DISK, *DENIED):
            return FAILURE if number in DISK else USAGE, f"{error.filename or 'the disk'}: {error.strerror}"
    return None
