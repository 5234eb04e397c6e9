"""The checkpoints of a run and its result, each whole or not there."""

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

WRITE_ERRORS = (OSError, SafetensorError, RuntimeError)  # torch.save and safetensors have errors of their own


@dataclass
class Checkpoints:
    """Of one run, in the folder of its owner. note: is told what could not be written."""

    policy: Policy
    recipe: Recipe
    stage: Stage1 | Stage2
    owner: Owner
    log_file: LogFile
    note: Callable[[str], None]
    owed: bool = False  # the last one could not be written, so the next step writes one

    @property
    def folder(self) -> Path:
        return self.owner.folder

    @property
    def work(self) -> Path:
        """A hidden folder beside them: what is whole is renamed out of it."""
        return self.folder / WORK

    def save(self, step: int, write: Callable[[], None], *, alone: bool) -> None:
        """checkpoint-STEP, of what `write` writes into `work`. Where that fails, the last one stays, the run goes
        on, and the next step tries again. alone: no other process waits for this one; else the error is raised."""
        target = self.folder / f"checkpoint-{step}"
        try:
            self.log_file.flush()
            self.owner.confirm()
            remove_folder(target)  # a damaged one, or none
            with written_whole(target, self.work, self.note) as beside:
                write()
                write_file(beside / METRICS, self.log_file.text())
            self.owed = False
        except WRITE_ERRORS as error:
            if not alone:
                raise
            self.owed = True
            again = "" if step == self.stage.max_steps else ", to be tried again after the next step"
            self.note(f"{target}: not saved{again}: {_reason(error, self.folder)}")
            return
        try:
            rotate(self.folder, self.stage.save_total_limit, target)
        except OSError as error:
            self.note(f"{self.folder}: an old checkpoint was not deleted: {_reason(error, self.folder)}")

    def save_result(self) -> None:
        """The trained policy, into the run's own folder. Raises RunError where it cannot be written."""
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
        """Of the newest whole checkpoint."""
        last, _ = find_last(self.folder)
        return step_of(last) if last else None

    def last_saved(self) -> str:
        if not self.folder.is_dir():
            return "the folder is gone: put it back, and give the same command with --resume"
        last, _ = find_last(self.folder)
        return f"the last checkpoint is {last}" if last else "there is no checkpoint yet"


def _reason(error: BaseException, folder: Path) -> str:
    """torch.save says of a full disk no more than that a stream failed: then the room that is left tells."""
    told = getattr(error, "strerror", None)
    if told or not folder.exists():
        return str(told or one_line(error))
    return f"{one_line(error)} ({shutil.disk_usage(folder).free / 2**20:,.1f} MiB are free there)"


@contextmanager
def resuming(checkpoint: str | None) -> Iterator[None]:
    """What fails inside becomes one line: a checkpoint that was sealed anew can hold anything. (No pickle in it is run:
    it is read with weights_only.)"""
    try:
        yield
    except Exception as error:
        if should_reduce_batch_size(error):
            raise
        raise UserError(f"{checkpoint}: cannot be resumed from: {one_line(error)}") from None


@dataclass(frozen=True)
class RandomState:
    """The state of every random generator: of Python, NumPy, torch and each CUDA device."""

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
