"""Make stdin, stdout and stderr of a command safe to use. Imports no torch."""

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
from types import TracebackType
from typing import NoReturn, TextIO, cast

from rich.file_proxy import FileProxy

from scorefast.files.text import printable, shortened
from scorefast.runs.processes import TORCHRUN

LAUNCHERS = (*TORCHRUN, "ACCELERATE_", "FORK_LAUNCHED", "HF_", "MV2_", "OMPI_", "PMI_")  # prefixes of variables

LONGEST_MESSAGE = 1000  # characters of a warning or a log message of a library


class BestEffortStream(io.TextIOBase):
    """A text stream that ignores write errors. A closed terminal, a broken pipe or a full disk does not end a run."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):  # ValueError: the stream is closed
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


class InertStream(BestEffortStream, FileProxy):
    """stderr for libraries, warnings, logs and tracebacks. scorefast's own consoles write to the stream below it.

    It reports that it is not a terminal, so that no library colours its text, and it makes control characters visible.
    It is a FileProxy because rich replaces any other stream, while it shows a bar, by a proxy that interprets escapes.
    """

    def __init__(self, stream: TextIO):
        BestEffortStream.__init__(self, stream)

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(name)  # FileProxy would return the attribute of the stream below

    @property
    def rich_proxied_file(self) -> InertStream:  # type: ignore[override]
        return self

    def write(self, text: str) -> int:
        super().write(printable(text))
        return len(text)

    def isatty(self) -> bool:
        return False


def terminal() -> TextIO:
    """stderr for a console, which writes only its own escapes."""
    return BestEffortStream(sys.stderr.stream if isinstance(sys.stderr, InertStream) else sys.stderr)  # type: ignore[return-value]


def set_up_streams() -> None:
    """Open the three streams if they are closed, and make them safe for any character. Call this once per command.

    A character that the encoding lacks is written as \\uXXXX, which JSON reads back, and read as U+FFFD. Text of
    libraries on stderr is inert: a warning or a log message is one line of bounded length, and a traceback is indented.
    Empty variables of launchers are removed, because accelerate and huggingface_hub fail on some of them.
    """
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller, as with 2>&-
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace" if name == "stdin" else ESCAPED)
    if not isinstance(sys.stderr, InertStream):
        sys.stderr = cast(TextIO, InertStream(sys.stderr))
    warnings.formatwarning = _one_line_warning
    logging.setLogRecordFactory(_OneLineRecord)
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _print_traceback
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _print_thread_traceback
    for name in [name for name, value in os.environ.items() if name.startswith(LAUNCHERS) and not value.strip()]:
        del os.environ[name]


def _print_traceback(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    """Print an indented traceback, so that no line of its message can pass for one of scorefast's."""
    sys.stderr.write(textwrap.indent("".join(traceback.format_exception(kind, error, trace)), "  "))


def _print_thread_traceback(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is not SystemExit:
        _print_traceback(args.exc_type, args.exc_value, args.exc_traceback)


def _one_line_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
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
    """Import a library that reads settings from the working directory, such as matplotlib's `matplotlibrc`, from
    another directory. Somebody else may have written such a file."""
    here = os.open(".", os.O_RDONLY)  # a descriptor, because the directory may be deleted
    try:
        os.chdir(Path(__file__).parent)
        yield
    finally:
        os.chdir(here)
        os.close(here)
