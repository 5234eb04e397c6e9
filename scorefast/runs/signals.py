"""What a command does on SIGINT, SIGTERM and SIGHUP. Imports no torch."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from scorefast.errors import Interrupted, StepDropped

Handler = Callable[[int, FrameType | None], Any] | int | None
HANG_UP = getattr(signal, "SIGHUP", signal.SIGTERM)  # Windows has none


@contextlib.contextmanager
def leaving_on_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise Interrupted, so that what is half done is cleared away. One that is ignored (by nohup)
    still is."""

    def leave(signum: int, frame: FrameType | None) -> None:
        raise Interrupted(signum)

    wanted = {signal.SIGTERM, HANG_UP}
    before = {n: signal.signal(n, leave) for n in wanted if signal.getsignal(n) == signal.SIG_DFL}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


class StopOnSignal:
    """The first SIGINT, SIGTERM or SIGHUP (a terminal that is closed) drops the step in the making, a second one leaves
    at once; one that was ignored before (by nohup) still is. Before training begins there is nothing to save, and the
    first one leaves. With several processes the step is ended, as all must agree."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self._training = self._alone = False
        self._before: dict[int, Handler] = {}

    def __enter__(self) -> StopOnSignal:
        for signum in (signal.SIGINT, signal.SIGTERM, HANG_UP):
            if signum not in self._before and signal.getsignal(signum) != signal.SIG_IGN:
                self._before[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler or signal.SIG_DFL)  # None: it was not Python that had set it

    def begin(self, processes: int) -> None:
        self._training, self._alone = True, processes == 1

    def check(self) -> None:
        """Raises StepDropped where a signal came, and no other process waits for the step."""
        if self.signum is not None and self._alone:
            raise StepDropped

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None and signum == getattr(signal, "SIGHUP", None):
            return  # a closed terminal sends it more than once
        if self.signum is not None or not self._training:
            raise Interrupted(signum)
        self.signum = signum
