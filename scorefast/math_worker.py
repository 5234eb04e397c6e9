"""math-verify behind a pipe: a line of JSON [truth, answer] in, `true` or `false` out. Run by `grading.MathWorker`."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from typing import Any

MEMORY = 2 * 1024**3  # bytes: 10^10^10 is to fail here, not to fill the machine
TOLERANCE = 1e-12  # relative: math-verify rounds to 6 decimals, and so takes 2^-98 for 2^-99 and 0.3333333 for 1/3


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
