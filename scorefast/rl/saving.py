"""Save the checkpoints and the result of a run, each complete or not at all."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate.utils.memory import should_reduce_batch_size
from numpy.typing import NDArray
from safetensors import SafetensorError

from scorefast.errors import RunError, UserError
from scorefast.files.atomic import WORK, write_file
from scorefast.files.seal import remove_folder, written_whole
from scorefast.files.text import one_line
from scorefast.model.policy import Policy, save_policy
from scorefast.recipe import dump_recipe
from scorefast.rl.log_file import LogFile
from scorefast.runs.checkpoint import find_last, rotate
from scorefast.runs.layout import METRICS, RECIPE, step_of
from scorefast.runs.model_card import model_card
from scorefast.runs.owner import Owner
from scorefast.schema import Recipe, Stage1, Stage2

WRITE_ERRORS = (OSError, SafetensorError, RuntimeError)  # the last two: from safetensors and torch.save


@dataclass
class Checkpoints:
    """The checkpoints of one run, in the folder of `owner`. note: prints a line on what could not be written."""

    policy: Policy
    recipe: Recipe
    stage: Stage1 | Stage2
    owner: Owner
    log_file: LogFile
    note: Callable[[str], None]
    save_pending: bool = False  # the last save failed, so the next step saves again

    @property
    def folder(self) -> Path:
        return self.owner.folder

    @property
    def work(self) -> Path:
        """A hidden folder in the run's folder. A checkpoint is written here, then renamed to its place."""
        return self.folder / WORK

    def save(self, step: int, write: Callable[[], None], *, alone: bool) -> None:
        """Save checkpoint-STEP from the files that `write` puts into `work`.

        If that fails, the previous checkpoint stays, the run continues, and the next step tries again. alone: no other
        process waits for this one; otherwise the error is raised.
        """
        target = self.folder / f"checkpoint-{step}"
        try:
            self.log_file.flush()
            self.owner.confirm()
            remove_folder(target)  # if it exists, it is damaged
            with written_whole(target, self.work, self.note) as beside:
                write()
                write_file(beside / METRICS, self.log_file.text())
            self.save_pending = False
        except WRITE_ERRORS as error:
            if not alone:
                raise
            self.save_pending = True
            again = "" if step == self.stage.max_steps else ", to be tried again after the next step"
            self.note(f"{target}: not saved{again}: {_reason(error, self.folder)}")
            return
        try:
            rotate(self.folder, self.stage.save_total_limit, target)
        except OSError as error:
            self.note(f"{self.folder}: an old checkpoint was not deleted: {_reason(error, self.folder)}")

    def save_result(self) -> None:
        """Save the trained policy into the run's folder. Raises RunError if it cannot be written."""
        try:
            self.log_file.flush()
            self.owner.confirm()
            with written_whole(self.folder, self.work, self.note) as folder:
                self.write_policy(folder)
        except WRITE_ERRORS as error:
            reason = _reason(error, self.folder)
            raise RunError(f"{self.folder}: trained, but not saved: {reason}; {self.last_saved()}") from None

    def write_policy(self, folder: Path) -> None:
        save_policy(self.policy, folder)
        write_file(folder / "README.md", model_card(self.recipe, self.stage.name))
        write_file(folder / RECIPE, dump_recipe(self.recipe))

    def require_finite_weights(self, step: int) -> None:
        if not all(bool(p.isfinite().all()) for p in self.policy.model.parameters() if p.requires_grad):
            raise RunError(f"a weight is not finite after step {step}; {self.last_saved()}")

    def last_step(self) -> int | None:
        """The step of the newest complete checkpoint."""
        last, _ = find_last(self.folder)
        return step_of(last) if last else None

    def last_saved(self) -> str:
        if not self.folder.is_dir():
            return "the folder is gone: put it back, and repeat the command with --resume"
        last, _ = find_last(self.folder)
        return f"the last checkpoint is {last}" if last else "there is no checkpoint yet"


def _reason(error: BaseException, folder: Path) -> str:
    """The cause of a failed write. torch.save reports a full disk as a failed stream, so free space is added to it."""
    cause = getattr(error, "strerror", None)
    if cause or not folder.exists():
        return str(cause or one_line(error))
    return f"{one_line(error)} ({shutil.disk_usage(folder).free / 2**20:,.1f} MiB are free there)"


@contextmanager
def resuming(checkpoint: str | None) -> Iterator[None]:
    """Turn any error inside into a UserError, except out of memory. A checkpoint that was sealed again can hold
    anything; it is loaded with weights_only, which runs no pickle code."""
    try:
        yield
    except Exception as error:
        if should_reduce_batch_size(error):
            raise
        raise UserError(f"{checkpoint}: cannot be resumed from: {one_line(error)}") from None


@dataclass(frozen=True)
class RandomState:
    """The state of all random generators: Python, NumPy, torch and each CUDA device."""

    of_python: tuple[object, ...]
    of_numpy: dict[str, object] | tuple[str, NDArray[np.uint32], int, int, float]
    of_torch: torch.Tensor
    of_cuda: tuple[torch.Tensor, ...]

    @classmethod
    def now(cls) -> RandomState:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state(), tuple(cuda))

    def restore(self) -> None:
        random.setstate(self.of_python)
        np.random.set_state(self.of_numpy)
        torch.set_rng_state(self.of_torch)
        if self.of_cuda:
            torch.cuda.set_rng_state_all(list(self.of_cuda))
