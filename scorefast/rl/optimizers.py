"""Try a recipe's optimizer and scheduler before a run starts, and check the state of an optimizer that is loaded."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from scorefast.errors import UserError
from scorefast.files.text import one_line, shortened
from scorefast.rl.schedule import training_arguments
from scorefast.schema import Recipe, Stage1, Stage2

StateDict = dict[str, Any]
ParamGroup = dict[str, Any]
PARAMETERS = 2**17  # bitsandbytes pages and quantizes only tensors above some 100,000 elements
BY_METRIC = ("reduce_lr_on_plateau", "greedy")  # schedulers that follow a validation metric; a run selects none


def require_usable(recipe: Recipe, stage: Stage1 | Stage2, *, elsewhere: bool = False) -> None:
    """Take one step with the optimizer and the scheduler, then save and load their state as `--resume` does.

    elsewhere: the run is planned for another machine, so a package may be missing here. Raises UserError if one of them
    is unknown, or needs a package, an argument or a metric that this run does not have.
    """
    for key, kind in (("optimizer", OptimizerNames), ("lr_scheduler", SchedulerType)):
        try:
            kind(getattr(stage, key))
        except ValueError as error:
            raise UserError(f"{stage.name}.{key}: {error}") from None
    if stage.lr_scheduler in BY_METRIC:
        why = ValueError("it follows a metric, and a run selects none")
        raise _unusable(f"{stage.name}.lr_scheduler", stage.lr_scheduler, why, "constant or cosine")
    try:
        arguments = training_arguments(recipe, stage, Path("runs"), validate=True)
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"{stage.name}: {one_line(error)}") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            optimizer = _try_optimizer(arguments)
        except Exception as error:  # each optimizer package raises its own
            if elsewhere and isinstance(error, ImportError):
                return
            raise _unusable(
                f"{stage.name}.optimizer", stage.optimizer, error, "adamw_torch, adafactor or sgd"
            ) from None
        try:
            scheduler = get_scheduler(stage.lr_scheduler, optimizer, stage.warmup_steps, stage.max_steps)
            scheduler.step()
            scheduler.load_state_dict(_saved_state(scheduler))
        except Exception as error:
            raise _unusable(f"{stage.name}.lr_scheduler", stage.lr_scheduler, error, "constant or cosine") from None


def _unusable(key: str, name: str, error: Exception, others: str) -> UserError:
    return UserError(f"{key}: {name} cannot be used here: {one_line(error)}; use another, such as {others}")


def _try_optimizer(arguments: TrainingArguments) -> torch.optim.Optimizer:
    card = int(os.environ.get("LOCAL_RANK", 0)) % max(1, torch.cuda.device_count())
    device = torch.device("cuda", card) if torch.cuda.is_available() else torch.device("cpu")
    model = nn.Linear(PARAMETERS, 1, bias=False, device=device)
    optimizer = _make_optimizer(model, arguments)
    model(torch.ones(1, PARAMETERS, device=device)).sum().backward()
    optimizer.step()
    resumed = _make_optimizer(model, arguments)
    groups = [dict(group) for group in resumed.param_groups]
    resumed.load_state_dict(_saved_state(optimizer))
    require_compatible_state(groups, resumed)
    resumed.step()
    return resumed


def _make_optimizer(model: nn.Module, arguments: TrainingArguments) -> torch.optim.Optimizer:
    """The optimizer as the Trainer makes it."""
    kind, settings = Trainer.get_optimizer_cls_and_kwargs(arguments, model)  # type: ignore[arg-type]
    groups = [{"params": list(model.parameters()), "weight_decay": arguments.weight_decay}]
    return kind(groups, **settings)


def _saved_state(part: torch.optim.Optimizer | LRScheduler) -> StateDict:
    """The state after `torch.save` and `torch.load`, as in a checkpoint."""
    file = io.BytesIO()
    torch.save(part.state_dict(), file)
    file.seek(0)
    state: StateDict = torch.load(file, weights_only=True)
    return state


def require_compatible_state(new: list[ParamGroup], optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError if a loaded optimizer state has settings of another type, or moments of another shape.

    new: the parameter groups before the state was loaded. torch accepts such a state and fails in the next step.
    """
    for made, loaded in zip(new, optimizer.param_groups, strict=True):
        for name in made.keys() - {"params"}:
            if name not in loaded or _type_of(loaded[name]) != _type_of(made[name]):
                raise ValueError(f"optimizer.pt: {name} is {shortened(repr(loaded.get(name)), 50)}")
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if name in ("exp_avg", "exp_avg_sq") and getattr(value, "shape", None) != parameter.shape:
                raise ValueError(f"optimizer.pt: {name} does not have its parameter's shape {tuple(parameter.shape)}")


def _type_of(value: object) -> object:
    """The type of a setting, or the list of its items' types. int counts as float."""
    if isinstance(value, list | tuple):
        return [_type_of(v) for v in value]
    return float if type(value) is int else type(value)
