"""A model ready to answer or to train, from a recipe and a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from scorefast.errors import UserError
from scorefast.files.text import one_line
from scorefast.model import four_bit
from scorefast.model.adapters import (
    add_lora,
    add_saved_adapter,
    is_of_the_recipes_shape,
    load_adapter,
    require_same_names,
)
from scorefast.model.backends import (
    caps_attention,
    load_with_transformers,
    load_with_unsloth,
    new_generation_config,
    resolve_backend,
)
from scorefast.model.checks import require_answers, require_plain_head, require_trained_as_sampled
from scorefast.model.decoder import can_serve
from scorefast.model.plain_model import (
    built_of_shapes,
    file_of,
    read_config,
    require_finite,
    require_plain_types,
    require_weights_for,
)
from scorefast.model.policy import Policy, return_hidden_on_request
from scorefast.model.tokenizer import chat_format, load_config, require_sound_files
from scorefast.recipe import model_path
from scorefast.runs.checkpoint import Checkpoint
from scorefast.runs.layout import RECIPE
from scorefast.schema import Model, Recipe

if TYPE_CHECKING:
    from torch._subclasses.fake_tensor import FakeTensorMode

    from scorefast.model.types import LanguageModel


def load_policy(recipe: Recipe, checkpoint: Checkpoint | None = None, *, trainable: bool = False) -> Policy:
    """The base model, or a checkpoint on it; with `trainable`, ready to train and with its reference."""
    settings = recipe.model
    backend = resolve_backend(settings)
    chat = chat_format(recipe)
    whole = str(checkpoint.path) if checkpoint is not None and not checkpoint.is_adapter else None
    model = _load_base(settings, backend, whole or model_path(settings.name))
    frozen = None
    if trainable and settings.tuning == "full":
        frozen = _load_base(settings, backend, model_path(settings.name)).requires_grad_(False)
        _train_all_but_embeddings(model)
    else:
        model.requires_grad_(False)
        saved = checkpoint if checkpoint is not None and checkpoint.is_adapter else None
        # Unsloth makes an adapter that is trained further where it can, for its kernels: Stage II runs as Stage I.
        if saved and not (trainable and backend == "unsloth" and is_of_the_recipes_shape(saved, settings)):
            model = add_saved_adapter(model, saved.path, trainable)
        elif trainable:
            model = add_lora(model, settings, backend, recipe.seed)
            if saved:
                load_adapter(model, saved.path, trainable)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for part in (model, frozen):
        if part is not None:
            part.to(device)
            part.eval()
            _without_dropout(part)
    policy = Policy(model, chat, backend, settings.max_seq_length, frozen)
    require_answers(policy)
    if recipe.rollout.engine == "own" and (reason := can_serve(policy)):
        raise UserError(f"rollout.engine: own cannot serve this model ({reason}); take generate")
    if trainable:
        require_plain_head(policy)
        require_trained_as_sampled(policy)
    return policy


def load_merged(recipe: Recipe, checkpoint: Checkpoint) -> LanguageModel:
    """The checkpoint as one plain float32 model on the CPU, without adapter. Takes 4 bytes a parameter.

    float32 keeps the merge exact: a 16-bit base converts exactly, W + BA is exact to 1e-7, and the caller's cast rounds
    once. In 16 bit, BA and a float32 base would be rounded before the sum. In 4 bit, the sum would be quantized again,
    at steps far larger than most of BA.
    """
    source = model_path(recipe.model.name) if checkpoint.is_adapter else str(checkpoint.path)
    settings = recipe.model.model_copy(update={"load_in_4bit": False, "dtype": "float32"})
    if getattr(load_config(source), "quantization_config", None) is not None:
        raise UserError(f"model {source}: its weights are quantized; name the 16-bit original in {RECIPE}'s model.name")
    model = _load_base(settings, "transformers", source)
    return add_saved_adapter(model, checkpoint.path, False).merge_and_unload() if checkpoint.is_adapter else model


def _train_all_but_embeddings(model: LanguageModel) -> None:
    model.requires_grad_(True)
    model.get_output_embeddings().weight.requires_grad_(False)
    model.get_input_embeddings().weight.requires_grad_(False)


def _without_dropout(model: nn.Module) -> None:
    """Set every dropout to 0: the model that samples, trains and serves as reference is one function."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in [name for name, value in vars(module).items() if "dropout" in name and isinstance(value, float)]:
            setattr(module, name, 0.0)  # of attention, and of calls of nn.functional.dropout


def _load_base(settings: Model, backend: str, path: str) -> LanguageModel:
    require_sound_files(path)
    dtype = getattr(torch, settings.dtype)
    load = load_with_unsloth if backend == "unsloth" else load_with_transformers
    try:
        config = read_config(path)
        require_weights_for(config, Path(path))
        model, missing, foreign = load(settings, path, dtype, config)
    except UserError:
        raise
    except Exception as error:  # untrusted files can fail in any way
        raise UserError(f"model {path}: cannot be loaded: {one_line(error)}") from None
    require_same_names(f"model {path}", missing, foreign)
    if (file := file_of(path, "config.json", download=False)) is not None:
        require_plain_types(file.parent)  # the hub's copy is complete only after the load
        require_finite(file.parent)
    model.generation_config = new_generation_config()  # the folder's sampling settings are ignored
    four_bit.keep_unpacked(model)
    return_hidden_on_request(model)
    return model


def shape_of_policy(recipe: Recipe, fake: FakeTensorMode) -> LanguageModel:
    """The model ready to train, as `load_policy` makes it, with tensors of a FakeTensorMode: shapes without numbers.

    Needs only the model's configuration. Weights are in the recipe's dtype: the caller accounts for 4 bit.
    """
    settings, config = recipe.model, load_config(recipe.model.name)
    eager = {"attn_implementation": "eager"} if caps_attention(config) else {}
    try:
        model = built_of_shapes(config, dtype=getattr(torch, settings.dtype), **eager)
    except Exception as error:  # an untrusted configuration can fail in any way
        raise UserError(f"model {settings.name!r}: cannot be built: {one_line(error)}") from None
    with torch.device("meta"):  # PEFT moves what it adds, which fake tensors do not allow
        model.requires_grad_(False)
        return_hidden_on_request(model)
        if settings.tuning == "full":
            _train_all_but_embeddings(model)
        else:
            model = add_lora(model, settings, "transformers", recipe.seed)
    _without_dropout(model)
    made: dict[int, Tensor] = {}  # a tied weight stays one
    with fake:
        for module in model.modules():
            for tensors in cast("list[dict[str, Tensor | None]]", [module._parameters, module._buffers]):
                for name, old in tensors.items():
                    if old is not None and id(old) not in made:
                        new = torch.empty(old.shape, dtype=old.dtype)
                        made[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
                    tensors[name] = None if old is None else made[id(old)]
    return model
