"""The command `scorefast`, and `python -m scorefast`."""

from __future__ import annotations

import os
import sys


def main() -> None:
    try:
        from scorefast.cli import main as run

        run()
    except KeyboardInterrupt:  # while it was still being imported
        sys.exit(130)
    finally:
        _leave_stderr()


def _leave_stderr() -> None:
    """What could not be written (a full disk, a broken pipe) would be tried again at exit, which ends with code 120."""
    try:
        sys.stderr.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


if __name__ == "__main__":
    main()
