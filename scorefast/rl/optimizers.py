"""The optimizer and the scheduler that a recipe names are tried before anything is claimed or loaded; and the saved
state of an optimizer is looked at before it is used."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from scorefast.errors import UserError
from scorefast.files.text import one_line, shortened
from scorefast.rl.schedule import training_arguments
from scorefast.schema import Recipe, Stage1, Stage2

PARAMETERS = 2**17  # bitsandbytes pages and quantises only what is larger than some 100,000
BY_METRIC = ("reduce_lr_on_plateau", "greedy")  # they follow a validation metric, and the Trainer has none chosen


def require_usable(recipe: Recipe, stage: Stage1 | Stage2, *, elsewhere: bool = False) -> None:
    """Make them for one parameter, take a step of each, save their state and load it as `--resume` does.

    elsewhere: the run is planned for another machine, so that a package may be missing here. Raises UserError where one
    of them is unknown, or needs a package, an argument, or a metric that this run has not.
    """
    for key, kind in (("optimizer", OptimizerNames), ("lr_scheduler", SchedulerType)):
        try:
            kind(getattr(stage, key))
        except ValueError as error:
            raise UserError(f"{stage.name}.{key}: {error}") from None
    if stage.lr_scheduler in BY_METRIC:
        why = ValueError("it follows a metric, and a run has none for it")
        raise _unusable(f"{stage.name}.lr_scheduler", stage.lr_scheduler, why, "constant or cosine")
    try:
        arguments = training_arguments(recipe, stage, Path("runs"), validate=True)
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"{stage.name}: {one_line(error)}") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            optimizer = _tried_optimizer(arguments)
        except Exception as error:  # of any of a dozen packages
            if elsewhere and isinstance(error, ImportError):
                return
            raise _unusable(
                f"{stage.name}.optimizer", stage.optimizer, error, "adamw_torch, adafactor or sgd"
            ) from None
        try:
            scheduler = get_scheduler(stage.lr_scheduler, optimizer, stage.warmup_steps, stage.max_steps)
            scheduler.step()
            scheduler.load_state_dict(_saved(scheduler))
        except Exception as error:
            raise _unusable(f"{stage.name}.lr_scheduler", stage.lr_scheduler, error, "constant or cosine") from None


def _unusable(key: str, name: str, error: Exception, others: str) -> UserError:
    return UserError(f"{key}: {name} cannot be used here: {one_line(error)}; take another, such as {others}")


def _tried_optimizer(arguments: TrainingArguments) -> torch.optim.Optimizer:
    card = int(os.environ.get("LOCAL_RANK", 0)) % max(1, torch.cuda.device_count())
    device = torch.device("cuda", card) if torch.cuda.is_available() else torch.device("cpu")
    model = nn.Linear(PARAMETERS, 1, bias=False, device=device)
    optimizer = _made(model, arguments)
    model(torch.ones(1, PARAMETERS, device=device)).sum().backward()
    optimizer.step()
    resumed = _made(model, arguments)
    made = [dict(group) for group in resumed.param_groups]
    resumed.load_state_dict(_saved(optimizer))
    require_compatible_state(made, resumed)
    resumed.step()
    return resumed


def _made(model: nn.Module, arguments: TrainingArguments) -> torch.optim.Optimizer:
    """As the Trainer makes it."""
    kind, settings = Trainer.get_optimizer_cls_and_kwargs(arguments, model)  # type: ignore[arg-type]
    groups = [{"params": list(model.parameters()), "weight_decay": arguments.weight_decay}]
    return kind(groups, **settings)


def _saved(part: Any) -> Any:
    """Its state, written and read as a checkpoint's."""
    file = io.BytesIO()
    torch.save(part.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def require_compatible_state(new: list[dict[str, Any]], optimizer: Any) -> None:
    """Raises ValueError where a loaded optimizer has other settings than it was made with, or moments of other shapes:
    torch would take them, and fail in the next step."""
    for made, loaded in zip(new, optimizer.param_groups, strict=True):
        for name in made.keys() - {"params"}:
            if name not in loaded or _kind(loaded[name]) != _kind(made[name]):
                raise ValueError(f"optimizer.pt: {name} is {shortened(repr(loaded.get(name)), 50)}")
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if name in ("exp_avg", "exp_avg_sq") and getattr(value, "shape", None) != parameter.shape:
                raise ValueError(f"optimizer.pt: {name} is not of its parameter's shape {tuple(parameter.shape)}")


def _kind(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_kind(v) for v in value]
    return float if type(value) is int else type(value)
