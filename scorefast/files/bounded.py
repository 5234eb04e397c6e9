"""Read untrusted files within bounds, or refuse them in one line. Imports no torch."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from scorefast.errors import UserError
from scorefast.files.text import one_line

JsonObject = dict[str, Any]
LARGEST_JSON = 2**24  # bytes of a configuration or a weight index


def read_text(path: Path, largest: int) -> str:
    """Read a regular file as text.

    Raises UserError if it is missing, a pipe or a device, larger than `largest` bytes, or not UTF-8.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: not a file")
    try:
        with path.open("rb") as file:
            content = file.read(largest + 1)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    if len(content) > largest:
        raise UserError(f"{path}: larger than {largest:,} bytes, the most for such a file")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8") from None


def read_json(path: Path, largest: int = LARGEST_JSON) -> JsonObject:
    text = read_text(path, largest)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:  # malformed, or a number with too many digits; nested too deeply
        raise UserError(f"{path}: cannot be read as JSON: {one_line(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object")
    return content


@contextmanager
def bounded_work(seconds: float, memory: int) -> Iterator[None]:
    """Bound untrusted code in the block, such as a chat template.

    Raises RuntimeError after `seconds`, and MemoryError beyond `memory` more bytes. Time is bounded by SIGALRM, on the
    main thread and not on Windows. Memory is bounded on Linux.
    """
    with bounded_memory(memory):
        if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
            yield
            return

        def late(signum: int, frame: FrameType | None) -> None:
            raise RuntimeError(f"takes more than {seconds:g} seconds")

        before = signal.signal(signal.SIGALRM, late)
        # Repeat every second: Jinja's constant folding swallows the exception and evaluates again at run time.
        left, again = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, left, again)
            signal.signal(signal.SIGALRM, before)


@contextmanager
def bounded_memory(memory: int) -> Iterator[None]:
    """Limit this process to `memory` bytes more than it has now; further allocations fail. Linux only."""
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


MAX_COLUMNS, MAX_DEPTH = 10_000, 100  # columns of a row; nesting levels of lists and objects in it


def is_deep(value: dict[str, object] | list[object], levels: int = MAX_DEPTH) -> bool:
    """Whether lists and objects are nested deeper than `levels`."""
    inner = value.values() if isinstance(value, dict) else value
    return any(not levels or is_deep(v, levels - 1) for v in inner if isinstance(v, dict | list))
