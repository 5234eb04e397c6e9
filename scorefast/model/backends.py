"""Unsloth or transformers: which one loads a model here, and how. The only module that imports Unsloth's loader."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from scorefast.errors import UserError
from scorefast.model import four_bit
from scorefast.schema import Model

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig

    from scorefast.model.types import LanguageModel


def resolve_backend(settings: Model) -> str:
    """`auto` is unsloth on CUDA, else transformers. On CUDA, transformers is used only where the recipe names it.

    Raises UserError for a package that is not installed, and for a dtype that the card does not compute in.
    """
    missing = {name for name in ("unsloth", "bitsandbytes") if importlib.util.find_spec(name) is None}
    backend = settings.backend
    if backend == "auto":
        backend = "unsloth" if torch.cuda.is_available() else "transformers"
    if backend == "unsloth" and "unsloth" in missing:
        other = "" if settings.backend == "unsloth" else "; or go on without it: --set model.backend=transformers"
        raise UserError(f'model.backend: Unsloth is not installed here; pip install "scorefast[unsloth]"{other}')
    if settings.load_in_4bit and "bitsandbytes" in missing:
        raise UserError("model.load_in_4bit: bitsandbytes is not installed here; pip install bitsandbytes")
    on_card = settings.dtype == "bfloat16" and torch.cuda.is_available()
    if on_card and not torch.cuda.is_bf16_supported(including_emulation=False):  # Unsloth would take float16, unscaled
        raise UserError("model.dtype: this card has no bfloat16; --set model.dtype=float32 (--dry-run: will it fit?)")
    return backend


def import_backend(settings: Model) -> None:
    """Import Unsloth before transformers and peft, which it patches on import. Its statistics are off, its compiled
    code stays out of the working directory, and it calls no package manager."""
    if resolve_backend(settings) == "unsloth":
        os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
        os.environ["UNSLOTH_AUTO_INSTALL"] = "0"
        os.environ.setdefault(
            "UNSLOTH_COMPILE_LOCATION", str(Path.home() / ".cache" / "scorefast" / "unsloth_compiled")
        )
        import unsloth  # noqa: F401


def new_generation_config(**settings: object) -> GenerationConfig:
    from transformers import GenerationConfig

    return GenerationConfig(**settings)


def load_with_transformers(
    settings: Model, path: str, dtype: torch.dtype, config: PretrainedConfig
) -> tuple[LanguageModel, set[str], set[str]]:
    """(the model, names of tensors that the files lack, names of tensors in them that the model does not have)."""
    from transformers import AutoModelForCausalLM

    eager = {"attn_implementation": "eager"} if caps_attention(config) else {}
    loaded = AutoModelForCausalLM.from_pretrained(
        path,
        config=config,
        generation_config=new_generation_config(),  # the folder's own is not read
        dtype=dtype,
        quantization_config=four_bit.nf4(dtype) if settings.load_in_4bit else None,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
        **eager,
    )
    model, told = cast("tuple[LanguageModel, dict[str, set[str]]]", loaded)
    quantized = getattr(config, "quantization_config", None) is not None  # such files hold tensors of their own
    return model, told["missing_keys"], set() if quantized else told["unexpected_keys"]


def load_with_unsloth(
    settings: Model, path: str, dtype: torch.dtype, _: PretrainedConfig
) -> tuple[LanguageModel, set[str], set[str]]:
    """As `load_with_transformers`, but Unsloth does not report names: both sets are empty."""
    from unsloth import FastLanguageModel

    model, _ = FastLanguageModel.from_pretrained(
        path,
        max_seq_length=settings.max_seq_length,
        dtype=dtype,
        load_in_4bit=settings.load_in_4bit,
        use_exact_model_name=True,  # else Unsloth asks the hub for its own quantized copy
        use_gradient_checkpointing=unsloths_checkpointing(settings),
        use_safetensors=True,
        trust_remote_code=False,
    )
    if caps_attention(model.config) and not torch.cuda.is_available():  # on CUDA, Unsloth's own attention caps
        model.set_attn_implementation("eager")
    return model, set(), set()


def unsloths_checkpointing(settings: Model) -> str | bool:
    return "unsloth" if settings.gradient_checkpointing else False


def caps_attention(config: PretrainedConfig) -> bool:
    """Whether attention scores have a soft cap, as in Gemma-2. The default, sdpa, drops it silently; eager does not."""
    return getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
