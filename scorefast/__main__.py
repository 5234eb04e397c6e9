"""The command `scorefast`, and `python -m scorefast`."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__" and sys.path[:1] == [os.getcwd()] and not sys.flags.safe_path:
    del sys.path[0]  # added by `-m`; no module may be imported from the working directory


def main() -> None:
    _keep_docstrings()
    _name_files_in_utf8()
    try:
        from scorefast.cli import main as run

        run()
    except KeyboardInterrupt:  # during the import
        sys.exit(130)
    finally:
        _leave_stderr()


def _keep_docstrings() -> None:
    """Restart Python with -O if it drops docstrings (-OO, PYTHONOPTIMIZE=2). transformers reads its docstrings during
    its import, and --help prints those of the commands."""
    own = len(sys.orig_argv) - len(sys.argv) + 1
    command = ["-O" if word == "-OO" else word for word in sys.orig_argv[1:own]] + sys.argv[1:]
    if sys.flags.optimize > 1 and (os.environ.get("PYTHONOPTIMIZE") != "1" or command != sys.orig_argv[1:]):
        os.environ["PYTHONOPTIMIZE"] = "1"
        os.execv(sys.executable, [sys.executable, *command])


def _name_files_in_utf8() -> None:
    """Restart Python in UTF-8 mode if file names are ASCII (LC_ALL=C with PYTHONUTF8=0). Otherwise `--out 가` fails,
    and so do libraries that write text in the locale's encoding."""
    if sys.getfilesystemencoding() == "ascii" and "utf8" not in sys._xoptions:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def _leave_stderr() -> None:
    """Discard text that stderr cannot take (a full disk, a broken pipe). Python would write it again at exit, and fail
    with code 120."""
    try:
        if sys.__stderr__ is not None:  # the stream below sys.stderr, which ignores errors
            sys.__stderr__.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


if __name__ == "__main__":
    main()
