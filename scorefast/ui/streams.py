"""stdin, stdout and stderr of a command: safe to write to. Imports no torch."""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import logging
import os
import sys
import textwrap
import threading
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO, cast

from rich.file_proxy import FileProxy

from scorefast.files.text import printable, shortened
from scorefast.runs.processes import TORCHRUN

LAUNCHERS = (*TORCHRUN, "ACCELERATE_", "FORK_LAUNCHED", "HF_", "MV2_", "OMPI_", "PMI_")  # how their variables begin

LONGEST_MESSAGE = 1000  # characters of a library's warning


class BestEffortStream(io.TextIOBase):
    """A text stream whose failures are of no account: a run does not end because nobody reads what it says, be the
    terminal closed, the pipe broken, or the disk full that the log is on."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):  # the latter where it is closed
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self.stream.flush()

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.stream.encoding


class Inert(BestEffortStream, FileProxy):
    """stderr to everybody but our consoles, which write to the stream below it: to libraries, warnings, logs and
    tracebacks. It is no terminal to them, so none colours its text, and a control character is written visibly.

    It is a FileProxy because rich puts one of its own, which obeys escapes, in the place of any other stream while it
    shows a bar.
    """

    def __init__(self, stream: TextIO):
        BestEffortStream.__init__(self, stream)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)  # FileProxy would give what the stream below has

    @property
    def rich_proxied_file(self) -> Inert:  # type: ignore[override]
        return self

    def write(self, text: str) -> int:
        super().write(printable(text))
        return len(text)

    def isatty(self) -> bool:
        return False


def terminal() -> TextIO:
    """stderr for a console that writes escapes of its own alone."""
    return BestEffortStream(sys.stderr.stream if isinstance(sys.stderr, Inert) else sys.stderr)  # type: ignore[return-value]


def set_up_streams() -> None:
    """Once, as a command begins: all three streams are there, and none fails on a character that its encoding lacks.

    What cannot be written becomes \\uXXXX, which JSON reads back; what cannot be read becomes U+FFFD. What others write
    to stderr is inert: a warning and a message of a log are one line of bounded length, a traceback is indented. A
    variable of a launcher that is empty counts as one that is not set: accelerate and huggingface_hub fail on some.
    """
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by who called, as with 2>&-
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace" if name == "stdin" else ESCAPED)
    if not isinstance(sys.stderr, Inert):
        sys.stderr = cast(TextIO, Inert(sys.stderr))
    warnings.formatwarning = cast(Any, _one_line_warning)
    logging.setLogRecordFactory(_OneLineRecord)
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _tell
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _tell_of_thread
    for name in [name for name, value in os.environ.items() if name.startswith(LAUNCHERS) and not value.strip()]:
        del os.environ[name]


def _tell(kind: type[BaseException], error: BaseException | None, trace: Any) -> None:
    """A traceback, indented: no line of a message stands where a line of ours would."""
    sys.stderr.write(textwrap.indent("".join(traceback.format_exception(kind, error, trace)), "  "))


def _tell_of_thread(failed: Any) -> None:
    if failed.exc_type is not SystemExit:
        _tell(failed.exc_type, failed.exc_value, failed.exc_traceback)


def _one_line_warning(message: Warning | str, category: type[Warning], *_: Any) -> str:
    return f"{category.__name__}: {shortened(str(message), LONGEST_MESSAGE)}\n"


class _OneLineRecord(logging.LogRecord):
    def getMessage(self) -> str:
        return shortened(super().getMessage(), LONGEST_MESSAGE)


def _escape(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


ESCAPED = "scorefast.escaped"
codecs.register_error(ESCAPED, _escape)


@contextlib.contextmanager
def away_from_working_directory() -> Iterator[None]:
    """For an import of a library that reads settings from the working directory, which another may have written there.

    matplotlib obeys a `matplotlibrc`.
    """
    here = os.open(".", os.O_RDONLY)  # by no name: it may be gone
    try:
        os.chdir(Path(__file__).parent)
        yield
    finally:
        os.chdir(here)
        os.close(here)
