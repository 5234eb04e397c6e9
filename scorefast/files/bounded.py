"""Files of other people, read within bounds or refused in one line. Imports no torch."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scorefast.errors import UserError
from scorefast.files.text import one_line

if TYPE_CHECKING:
    pass

LARGEST_JSON = 2**24  # bytes of a configuration or an index of weights


def read_text(path: Path, largest: int) -> str:
    """A regular file as text. Raises UserError: no file, a pipe or a device, larger than that many bytes, not UTF-8."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: not a file")
    try:
        with path.open("rb") as file:
            content = file.read(largest + 1)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    if len(content) > largest:
        raise UserError(f"{path}: larger than the {largest:,} bytes that such a file may have")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8") from None


def read_json(path: Path, largest: int = LARGEST_JSON) -> dict[str, Any]:
    text = read_text(path, largest)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:  # malformed, a number of too many digits, nested too deeply
        raise UserError(f"{path}: cannot be read as JSON: {one_line(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object")
    return content


@contextmanager
def bounded_work(seconds: float, memory: int) -> Iterator[None]:
    """Raises RuntimeError where what is done inside takes longer, MemoryError where it takes more than `memory` bytes:
    a program of somebody else's, such as a chat template, then ends.

    Time is bounded on the main thread (by SIGALRM, not on Windows), memory on Linux.
    """
    with bounded_memory(memory):
        if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
            yield
            return

        def late(signum: int, frame: Any) -> None:
            raise RuntimeError(f"takes more than {seconds:g} seconds")

        before = signal.signal(signal.SIGALRM, late)
        # And again every second: Jinja folds constants, swallows what that raises, and computes them once more.
        left, again = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, left, again)
            signal.signal(signal.SIGALRM, before)


@contextmanager
def bounded_memory(memory: int) -> Iterator[None]:
    """Of this process, that many bytes more than it has now; beyond them an allocation fails. On Linux alone."""
    if not sys.platform.startswith("linux"):
        yield
        return
    import resource

    taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    before, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = taken + memory
    resource.setrlimit(resource.RLIMIT_AS, (wanted if before == resource.RLIM_INFINITY else min(before, wanted), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, hard))


MOST_COLUMNS, DEEPEST = 10_000, 100  # of a row; levels of lists and objects in it


def is_deep(value: Any, levels: int = DEEPEST) -> bool:
    """Whether lists and objects stand in each other deeper than so many levels."""
    inner = value.values() if isinstance(value, dict) else value
    return any(not levels or is_deep(v, levels - 1) for v in inner if isinstance(v, dict | list))
