"""Care for a device that runs out of memory: what is held at once is halved, and the work is done again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from scorefast.errors import RunError

Result = TypeVar("Result")


@dataclass
class AutoBatchSize:
    """How much is held at once. prompts: of a rollout. rows: trajectories of a micro-batch. note: is told of each
    halving. last_saved: a sentence about the last checkpoint, for the line that ends the run."""

    prompts: int
    rows: int
    note: Callable[[str], None]
    last_saved: Callable[[], str]

    def while_sampling(self, sample: Callable[[], Result]) -> Result:
        """What `sample` returns, which reads `prompts` anew in each try."""
        while True:
            try:
                return sample()
            except Exception as error:
                self._require_smaller(error, self.prompts)
            self.prompts //= 2
            clear_device_cache(garbage_collection=True)
            self.note(f"out of memory while sampling: from here on {self.prompts} prompts at once")

    def while_training(self, train: Callable[[], Result], again: Callable[[], Result], *, alone: bool) -> Result:
        """What `train` returns. Out of memory in the middle of a backward pass leaves a part of a gradient, so `again`
        takes the whole step's gradient anew. Both read `rows`. alone: whether no other process waits for this one."""
        work = train
        while True:
            try:
                return work()
            except Exception as error:
                self._require_smaller(error, self.rows if alone else 1)
            self.rows = (self.rows + 1) // 2
            clear_device_cache(garbage_collection=True)
            self.note(f"out of memory: from here on {self.rows} trajectories at once; the loss stays the same")
            work = again

    def _require_smaller(self, error: Exception, size: int) -> None:
        """Raises `error` where memory is not its cause, RunError where nothing is left to halve."""
        if not should_reduce_batch_size(error):
            raise error
        if size == 1:
            raise RunError(f"out of memory: {str(error).splitlines()[0]}; {self.last_saved()}") from None
