"""Run math-verify in a separate process. Imports no torch.

`MathWorker` sends a line of JSON [truth, answer] to `python -m scorefast.grading.math_worker` and reads `true` or
`false`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, cast

if TYPE_CHECKING:
    from sympy import Basic, Expr, Interval, Union

START_SECONDS = 120.0  # for importing sympy from a cold disk
SECONDS = 5.0  # for one comparison; expressions without a verdict by then count as unequal
MEMORY = 2 * 1024**3  # bytes; 10^10^10 must fail here and not fill the machine
TOLERANCE = 1e-12  # relative; math-verify rounds to 6 decimals, so it equates 2^-98 with 2^-99 and 0.3333333 with 1/3


class MathWorker:
    """A worker process that can be stopped from any thread at any point of sympy's work.

    math-verify's own time limit is an alarm signal. Only the main thread receives it, and it cannot interrupt one long
    multiplication.
    """

    def __init__(self, seconds: float = SECONDS):
        self.seconds = seconds
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def equal(self, truth: str, answer: str) -> bool:
        """math-verify's verdict on two LaTeX expressions; False after `seconds` or if the process dies."""
        with self._lock:
            for _ in range(2):  # retry once if the process died before its time was up
                started = time.monotonic()
                line = self._reply_to(json.dumps([truth, answer]))
                if line or time.monotonic() - started >= self.seconds:
                    break
            return line == "true\n"

    def _reply_to(self, question: str) -> str:
        process = self._running()
        line = ""
        with _killed_after(self.seconds, process), contextlib.suppress(OSError):  # the process may already be dead
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
                [sys.executable, "-P", __file__],  # -P: keep this folder and the working directory off sys.path
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                env=os.environ | {"PYTHONIOENCODING": "utf-8"},
                start_new_session=True,  # Ctrl-C must reach only the run, which finishes its step
            )
            with _killed_after(START_SECONDS, self._process):
                started = cast(IO[str], self._process.stdout).readline() == "ready\n"
            if not started:
                raise RuntimeError(
                    "math-verify does not start: run `python -m scorefast.grading.math_worker` to see why"
                )
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
    """Compare two constants by value and everything else by math-verify, then as sets of numbers or as functions.

    i is the imaginary unit if it is the only letter.
    """
    from math_verify import parse, verify
    from sympy import Expr, I

    both = [parse(f"${text}$", parsing_timeout=None) for text in (truth, answer)]
    if not all(both):
        return False
    first: list[Basic] = [parsed[0] for parsed in both]
    if all(isinstance(e, Expr) for e in first):
        first = [
            e.subs(dict.fromkeys(e.free_symbols, I)) if {s.name for s in e.free_symbols} == {"i"} else e for e in first
        ]
        if not any(e.free_symbols for e in first):
            a, b = (e.evalf(30) for e in first)
            if a.is_finite and b.is_finite:
                return bool(abs(a - b) <= TOLERANCE * max(abs(a), abs(b)))
    if _is_one_side(*first):
        return False
    if verify(*both, allow_set_relation_comp=True, timeout_seconds=None):
        return True
    return _same_sets(first[0], first[1], _rounding(truth, answer)) or _same_functions(first[0], first[1])


def _is_one_side(truth: Basic, answer: Basic) -> bool:
    """`5` for `x + y = 5`: math-verify would take the right side of an equation for the value of its left side."""
    from sympy import Equality, Expr, Symbol
    from sympy.core.function import AppliedUndef

    named = (Symbol, AppliedUndef)
    return isinstance(truth, Equality) and not isinstance(truth.lhs, named) and isinstance(answer, Expr)


def _rounding(*texts: str) -> float:
    """Half a unit in the last place of the shortest decimal with four places or more; 0 if there is none."""
    places = [len(digits) for text in texts for digits in re.findall(r"\d\.(\d{4,})", text)]
    return 0.5 * 10.0 ** -min(places) if places else 0.0


def _same_sets(truth: Basic, answer: Basic, rounding: float) -> bool:
    """Whether two interval sets, or inequalities of one unknown, have the same ends, open or closed alike.

    An end may be rounded to four places or more: (0.6, 2.6667] equals (3/5, 8/3].
    """
    from sympy import Interval, Union

    a_set, b_set = _as_set(truth), _as_set(answer)
    if a_set is None or b_set is None:
        return False
    first, second = (sorted(s.args, key=lambda i: i.inf) if isinstance(s, Union) else [s] for s in (a_set, b_set))
    if a_set == b_set or len(first) != len(second):
        return bool(a_set == b_set)
    return all(
        isinstance(a, Interval)
        and isinstance(b, Interval)
        and (a.left_open, a.right_open) == (b.left_open, b.right_open)
        and _near(a.start, b.start, rounding)
        and _near(a.end, b.end, rounding)
        for a, b in zip(first, second, strict=True)
    )


def _near(a: Expr, b: Expr, rounding: float) -> bool:
    if not (a.is_finite and b.is_finite):
        return bool(a == b)
    return bool(abs(a - b).evalf(30) <= rounding * (1 + 1e-9) + TOLERANCE * abs(a))


def _as_set(e: Basic) -> Interval | Union | None:
    """The set of real numbers of an interval or of inequalities in one unknown; None for anything else.

    Several inequalities mean their intersection, or their union if the intersection is empty.
    """
    from sympy import And, Complement, Equality, FiniteSet, Intersection, Interval, Or, Union
    from sympy.core.relational import Relational

    if isinstance(e, Equality):
        e = e.rhs  # x \in [1, 2]
    if isinstance(e, FiniteSet) and e.args and all(isinstance(a, Relational) for a in e.args):
        e = And(*e.args) if And(*e.args).as_set() else Or(*e.args)
    if isinstance(e, Relational | And | Or) and not isinstance(e, Equality) and len(e.free_symbols) == 1:
        e = e.as_set()
    if isinstance(e, Union | Intersection | Complement):
        e = e.doit()
    return e if isinstance(e, Interval | Union) else None


def _same_functions(truth: Basic, answer: Basic) -> bool:
    """Whether two terms agree at all test points of either sign where both are real.

    sqrt(1/n) equals 1/sqrt(n), which math-verify does not equate since it does not know the sign of n. |x| differs
    from x.
    """
    from sympy import Expr, Rational

    if not (isinstance(truth, Expr) and isinstance(answer, Expr)):
        return False
    names = sorted(truth.free_symbols, key=str)
    if not 0 < len(names) < 4 or truth.free_symbols != answer.free_symbols:
        return False
    agreed = 0
    for size in (Rational(7, 5), Rational(3, 8), Rational(11, 3), Rational(-7, 5), Rational(-3, 8)):
        point = {name: size * (1 + Rational(i, 7)) for i, name in enumerate(names)}
        a, b = (e.subs(point).evalf(30) for e in (truth, answer))
        if not (a.is_real and b.is_real and a.is_finite and b.is_finite):
            continue
        if abs(a - b) > TOLERANCE * max(abs(a), abs(b)):
            return False
        agreed += 1
    return agreed > 1


def main() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):  # no such limits on Windows
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    import math_verify  # noqa: F401  the slow import, before the first request

    logging.disable(logging.ERROR)
    replies, sys.stdout = sys.stdout, sys.stderr  # output of libraries must not mix with replies
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        verdict = False
        with contextlib.suppress(Exception):  # sympy and its parser fail on arbitrary text: then unequal
            verdict = equal(*json.loads(line))
        print(json.dumps(verdict), file=replies, flush=True)


if __name__ == "__main__":
    main()
