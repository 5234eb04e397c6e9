"""math-verify in a process of its own: `MathWorker` asks, `python -m scorefast.math_worker` answers. Imports no torch.

Between them a pipe: a line of JSON [truth, answer] in, `true` or `false` out.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import IO, Any, cast

START_SECONDS = 120.0  # for importing sympy from a cold disk
SECONDS = 5.0  # for one comparison of two expressions; without a verdict by then they are not equal
MEMORY = 2 * 1024**3  # bytes: 10^10^10 is to fail here, not to fill the machine
TOLERANCE = 1e-12  # relative: math-verify rounds to 6 decimals, and so takes 2^-98 for 2^-99 and 0.3333333 for 1/3


class MathWorker:
    """A process that can be stopped, on any thread, whatever sympy is at.

    math-verify's own limit is an alarm signal, which only the main thread gets and which cannot stop one long
    multiplication.
    """

    def __init__(self, seconds: float = SECONDS):
        self.seconds = seconds
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def equal(self, truth: str, answer: str) -> bool:
        """math-verify's verdict on two LaTeX expressions; False after `seconds` (or if the process dies of it)."""
        with self._lock:
            for _ in range(2):  # once more where it died of something else, and had not the time
                started = time.monotonic()
                line = self._asked(json.dumps([truth, answer]))
                if line or time.monotonic() - started >= self.seconds:
                    break
            return line == "true\n"

    def _asked(self, question: str) -> str:
        process = self._running()
        line = ""
        with _killed_after(self.seconds, process), contextlib.suppress(OSError):  # it may have died before it read
            cast(IO[str], process.stdin).write(question + "\n")
            cast(IO[str], process.stdin).flush()
            line = cast(IO[str], process.stdout).readline()
        if not line:
            process.kill()
            process.wait()
            self._process = None
        return line

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "scorefast.math_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                env=os.environ | {"PYTHONIOENCODING": "utf-8"},
                start_new_session=True,  # Ctrl-C is for the run, which ends its step with it
            )
            with _killed_after(START_SECONDS, self._process):
                started = cast(IO[str], self._process.stdout).readline() == "ready\n"
            if not started:
                raise RuntimeError("math-verify does not start: run `python -m scorefast.math_worker` to see why")
        return self._process


@contextlib.contextmanager
def _killed_after(seconds: float, process: subprocess.Popen[str]) -> Iterator[None]:
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def equal(truth: str, answer: str) -> bool:
    """Two constants by their value (i is the imaginary unit where it is the only letter), all else by math-verify."""
    from math_verify import parse, verify
    from sympy import Expr, I

    both = [parse(f"${text}$", parsing_timeout=None) for text in (truth, answer)]
    if not all(both):
        return False
    first: Any = [parsed[0] for parsed in both]
    if all(isinstance(e, Expr) for e in first):
        first = [
            e.subs(dict.fromkeys(e.free_symbols, I)) if {s.name for s in e.free_symbols} == {"i"} else e for e in first
        ]
        if not any(e.free_symbols for e in first):
            a, b = (e.evalf(30) for e in first)
            if a.is_finite and b.is_finite:
                return bool(abs(a - b) <= TOLERANCE * max(abs(a), abs(b)))
    return bool(verify(*both, timeout_seconds=None))


def main() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):  # no such limits on Windows
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    import math_verify  # noqa: F401  what takes long, before the first question

    logging.disable(logging.ERROR)
    replies, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no reply
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        verdict = False
        with contextlib.suppress(Exception):  # parsers and sympy on text of any kind: then they are not equal
            verdict = equal(*json.loads(line))
        print(json.dumps(verdict), file=replies, flush=True)


if __name__ == "__main__":
    main()
