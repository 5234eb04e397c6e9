"""The exceptions that end a command, and their exit codes. Imports nothing from scorefast."""

from __future__ import annotations

import errno
from typing import Any

DONE, FAILURE, USAGE = 0, 1, 2
INTERRUPTED = 128  # plus the number of the signal: 130 Ctrl-C, 143 SIGTERM, 129 a closed terminal

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)
DENIED = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP)  # faults of the path that the user named


class UserError(Exception):
    """A fault that the user can fix; printed as one line."""


class RunError(Exception):
    """A run that cannot continue; its last checkpoint is intact. Printed as one line."""


class ReportNotWritten(RunError):
    """Every checkpoint was evaluated, but a report could not be written. content: the whole report."""

    def __init__(self, content: dict[str, Any], message: str):
        super().__init__(message)
        self.content = content


class TooLong(Exception):
    """A conversation does not fit the context of the model."""


class StepDropped(Exception):
    """Drops the current step. Raised between micro-batches or sampled tokens, before the step has changed anything."""


class Interrupted(BaseException):
    """A signal stops the command. A stage has saved its finished steps by then. signum: the number of the signal."""

    def __init__(self, signum: int):
        self.signum = signum


def outcome(error: BaseException) -> tuple[int, str] | None:
    """(exit code, line for stderr) of an exception that ends a command. None for a bug, which gets a traceback."""
    match error:
        case Interrupted():
            return INTERRUPTED + error.signum, ""
        case UserError():
            return USAGE, str(error)
        case RunError():
            return FAILURE, str(error)
        case MemoryError():
            return FAILURE, "out of memory"
        case OSError(errno=number) if number in (*DISK, *DENIED):
            return FAILURE if number in DISK else USAGE, f"{error.filename or 'the disk'}: {error.strerror}"
    return None
