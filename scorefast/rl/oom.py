"""Out of memory: halve the batch size and repeat the work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from scorefast.errors import RunError

Result = TypeVar("Result")


@dataclass
class AutoBatchSize:
    """Batch sizes that are halved when memory runs out.

    prompts: prompts of a rollout that are decoded at once. rows: rows of a micro-batch in one forward and backward.
    note: prints a line at each halving. last_saved: describes the last checkpoint, for the error that ends the run.
    """

    prompts: int
    rows: int
    note: Callable[[str], None]
    last_saved: Callable[[], str]

    def retry_sampling(self, sample: Callable[[], Result]) -> Result:
        """The result of `sample`, which reads `prompts` again in each attempt. Raises RunError at one prompt."""
        while True:
            try:
                return sample()
            except Exception as error:
                self._require_smaller(error, self.prompts)
            self.prompts //= 2
            clear_device_cache(garbage_collection=True)
            self.note(f"out of memory while sampling: from here on {self.prompts} prompts at once")

    def retry_training(
        self, train: Callable[[], Result], reset: Callable[[], None], retrain: Callable[[], Result], *, alone: bool
    ) -> Result:
        """The result of `train`, or of `retrain` after memory ran out. Both read `rows`.

        An error in the backward pass leaves a partial gradient. `reset` drops the gradient of the step, so that its
        memory can be freed, and `retrain` recomputes it.
        alone: no other process waits for this one; otherwise the error ends the run. Raises RunError at one row.
        """
        work = train
        while True:
            try:
                return work()
            except Exception as error:
                self._require_smaller(error, self.rows if alone else 1)
            self.rows = (self.rows + 1) // 2
            reset()
            clear_device_cache(garbage_collection=True)
            self.note(f"out of memory: from here on {self.rows} trajectories at once; the loss stays the same")
            work = retrain

    def _require_smaller(self, error: Exception, size: int) -> None:
        """Raise `error` if it is not out of memory, and RunError if the size cannot be halved."""
        if not should_reduce_batch_size(error):
            raise error
        if size == 1:
            raise RunError(f"out of memory: {str(error).splitlines()[0]}; {self.last_saved()}") from None
