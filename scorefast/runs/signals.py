"""What a command does on SIGTERM, SIGHUP and Ctrl-C. Imports no torch."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

from scorefast.errors import Interrupted


@contextlib.contextmanager
def leaving_on_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise Interrupted, so that what is half done is cleared away. One that is ignored (by nohup)
    still is."""

    def leave(signum: int, frame: Any) -> None:
        raise Interrupted(signum)

    wanted = {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}
    before = {n: signal.signal(n, leave) for n in wanted if signal.getsignal(n) == signal.SIG_DFL}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
