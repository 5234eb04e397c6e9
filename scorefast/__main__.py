"""The command `scorefast`, and `python -m scorefast`."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__" and sys.path[:1] == [os.getcwd()] and not sys.flags.safe_path:
    del sys.path[0]  # that `-m` put there: no file of the working directory runs that the user did not name


def main() -> None:
    _keep_docstrings()
    _name_files_in_utf8()
    try:
        from scorefast.cli import main as run

        run()
    except KeyboardInterrupt:  # while it was still being imported
        sys.exit(130)
    finally:
        _leave_stderr()


def _keep_docstrings() -> None:
    """Where Python leaves docstrings out (-OO, PYTHONOPTIMIZE=2), start again with -O: transformers reads its own as it
    is imported, and --help is made of ours."""
    own = len(sys.orig_argv) - len(sys.argv) + 1
    command = ["-O" if word == "-OO" else word for word in sys.orig_argv[1:own]] + sys.argv[1:]
    if sys.flags.optimize > 1 and (os.environ.get("PYTHONOPTIMIZE") != "1" or command != sys.orig_argv[1:]):
        os.environ["PYTHONOPTIMIZE"] = "1"
        os.execv(sys.executable, [sys.executable, *command])


def _name_files_in_utf8() -> None:
    """Where names of files are ASCII (LC_ALL=C with PYTHONUTF8=0), start again in Python's UTF-8 mode: `--out 가`, and
    libraries that write texts in the locale's encoding, would fail."""
    if sys.getfilesystemencoding() == "ascii" and "utf8" not in sys._xoptions:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def _leave_stderr() -> None:
    """What could not be written (a full disk, a broken pipe) would be tried again at exit, which ends with code 120."""
    try:
        if sys.__stderr__ is not None:  # the stream below sys.stderr, which hides its failures
            sys.__stderr__.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


if __name__ == "__main__":
    main()
