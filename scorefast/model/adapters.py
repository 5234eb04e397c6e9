"""LoRA adapters: new ones, and those of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from scorefast.errors import UserError
from scorefast.files.lora_config import plain_lora
from scorefast.files.model_folder import require_sound_folder
from scorefast.files.text import one_line, shortened
from scorefast.model.backends import unsloths_checkpointing
from scorefast.model.plain_model import require_finite, require_plain_types
from scorefast.runs.checkpoint import Checkpoint
from scorefast.schema import Model

if TYPE_CHECKING:
    from scorefast.model.types import AdaptedModel, LanguageModel


def is_of_the_recipes_shape(saved: Checkpoint, settings: Model) -> bool:
    """Whether `add_lora` makes an adapter of this shape, by the recipe of its run and by its own configuration."""
    if saved.recipe is None or saved.recipe.model.lora != settings.lora:
        return False
    own = plain_lora(saved.path)
    more = {
        name for name, value in own.items() if value and name not in ("r", "lora_alpha", "target_modules", "task_type")
    }
    return not more and (own["r"], own["lora_alpha"]) == (settings.lora.r, settings.lora.alpha)


def add_saved_adapter(model: LanguageModel, folder: Path, trainable: bool) -> AdaptedModel:
    """The model with the folder's adapter. PEFT does not read adapter_config.json: `plain_lora` reads and checks it."""
    from peft import LoraConfig, get_peft_model

    require_sound_folder(folder)
    config = LoraConfig(**plain_lora(folder), inference_mode=not trainable)
    try:
        adapted = cast("AdaptedModel", get_peft_model(model, config))
    except Exception as error:  # an adapter of another base can fail in any way
        raise UserError(f"{folder}: this adapter cannot be loaded: {one_line(error)}") from None
    load_adapter(adapted, folder, trainable)
    return adapted


def load_adapter(adapted: AdaptedModel, folder: Path, trainable: bool) -> None:
    require_plain_types(folder)
    require_finite(folder)
    try:
        loaded = adapted.load_adapter(str(folder), "default", is_trainable=trainable)
    except Exception as error:  # an adapter of another base, or a damaged one, can fail in any way
        raise UserError(f"{folder}: this adapter cannot be loaded: {one_line(error)}") from None
    require_same_names(str(folder), loaded.missing_keys, loaded.unexpected_keys)


def require_same_names(path: str, missing: Iterable[str], foreign: Iterable[str]) -> None:
    """Raises UserError for missing and unknown tensors: the libraries initialise the former and ignore the latter."""
    for names, what in ((sorted(missing), "are missing"), (sorted(foreign), "are not known to the model")):
        if names:
            raise UserError(f"{path}: {len(names)} tensors {what}, the first is {shortened(names[0], 100)}")


def add_lora(model: LanguageModel, settings: Model, backend: str, seed: int) -> AdaptedModel:
    try:
        return _new_lora(model, settings, backend, seed)
    except Exception as error:  # layers of a kind that PEFT has no adapter for, or none of the names
        raise UserError(f"model {settings.name!r}: cannot be given LoRA adapters: {one_line(error)}") from None


def _new_lora(model: LanguageModel, settings: Model, backend: str, seed: int) -> AdaptedModel:
    from peft import LoraConfig, get_peft_model

    chosen = settings.lora.target_modules
    targets = chosen if isinstance(chosen, str) else list(chosen)
    r, alpha = settings.lora.r, settings.lora.alpha
    torch.manual_seed(seed)
    if backend == "unsloth":
        from unsloth import FastLanguageModel

        return FastLanguageModel.get_peft_model(
            model,
            r=r,
            lora_alpha=alpha,
            target_modules=targets,
            use_gradient_checkpointing=unsloths_checkpointing(settings),
            random_state=seed,
        )
    elsewhere = _linear_outside_the_decoder(model)
    config = LoraConfig(
        task_type="CAUSAL_LM", target_modules=targets, exclude_modules=elsewhere or None, r=r, lora_alpha=alpha
    )
    return cast("AdaptedModel", get_peft_model(model, config))


def _linear_outside_the_decoder(model: LanguageModel) -> list[str]:
    """Names of linear layers that no text passes through, as in a vision tower. PEFT itself leaves out the head."""
    inside = {id(module) for module in model.get_decoder().modules()} | {id(model.get_output_embeddings())}
    return [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and id(m) not in inside]
