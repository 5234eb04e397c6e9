"""Handlers of SIGINT, SIGTERM and SIGHUP. Imports no torch."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

from scorefast.errors import Interrupted, StepDropped

Handler = Callable[[int, FrameType | None], object] | int | None
HANG_UP = getattr(signal, "SIGHUP", signal.SIGTERM)  # Windows has none


@contextlib.contextmanager
def leaving_on_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise Interrupted, so that unfinished work is cleaned up. A signal that is ignored, as under
    nohup, stays ignored."""

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
    """Stop a run on SIGINT, SIGTERM or SIGHUP (a closed terminal).

    The first signal drops the current step; a second one exits at once. Before training begins there is nothing to
    save, so the first one exits. With several processes the current step is finished first, because all must agree. A
    signal that was ignored before, as under nohup, stays ignored.
    """

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
            signal.signal(signum, handler or signal.SIG_DFL)  # None: the handler was not set from Python

    def begin(self, processes: int) -> None:
        self._training, self._alone = True, processes == 1

    def check(self) -> None:
        """Raise StepDropped if a signal arrived and no other process waits for the step."""
        if self.signum is not None and self._alone:
            raise StepDropped

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None and signum == getattr(signal, "SIGHUP", None):
            return  # a closed terminal sends it more than once
        if self.signum is not None or not self._training:
            raise Interrupted(signum)
        self.signum = signum
