"""Unsloth or transformers: which one loads a model here, and how. The only module that imports Unsloth's loader."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import torch

from scorefast.errors import UserError
from scorefast.model import four_bit
from scorefast.schema import Model


def resolve_backend(settings: Model) -> str:
    """`auto` is unsloth on CUDA, else transformers. Raises UserError where what is needed is not installed (on CUDA,
    transformers is only taken where the recipe names it), and where the card does not compute in the recipe's dtype."""
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
    """Unsloth patches transformers and peft as it is imported, so it has to come before them. Its statistics stay off,
    its compiled code out of the working directory, and it calls no package manager."""
    if resolve_backend(settings) == "unsloth":
        os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
        os.environ["UNSLOTH_AUTO_INSTALL"] = "0"
        os.environ.setdefault(
            "UNSLOTH_COMPILE_LOCATION", str(Path.home() / ".cache" / "scorefast" / "unsloth_compiled")
        )
        import unsloth  # noqa: F401


def new_generation_config(**settings: Any) -> Any:
    from transformers import GenerationConfig

    return GenerationConfig(**settings)


def load_with_transformers(
    settings: Model, path: str, dtype: torch.dtype, config: Any
) -> tuple[Any, set[str], set[str]]:
    """The model, and the names of tensors that it lacked and that it had no use for."""
    from transformers import AutoModelForCausalLM

    eager = {"attn_implementation": "eager"} if caps_attention(config) else {}
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        path,
        config=config,
        generation_config=new_generation_config(),  # a folder's own is not even read
        dtype=dtype,
        quantization_config=four_bit.nf4(dtype) if settings.load_in_4bit else None,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
        **eager,
    )
    model, told = loaded
    quantized = getattr(config, "quantization_config", None) is not None  # it stores more than it names
    return model, told["missing_keys"], set() if quantized else told["unexpected_keys"]


def load_with_unsloth(settings: Model, path: str, dtype: torch.dtype, _: Any) -> tuple[Any, set[str], set[str]]:
    """As above; but what was missing, Unsloth does not tell."""
    from unsloth import FastLanguageModel

    model, _ = FastLanguageModel.from_pretrained(
        path,
        max_seq_length=settings.max_seq_length,
        dtype=dtype,
        load_in_4bit=settings.load_in_4bit,
        use_exact_model_name=True,  # it would take a copy of its own, quantized otherwise, and ask the network for one
        use_gradient_checkpointing=unsloths_checkpointing(settings),
        use_safetensors=True,
        trust_remote_code=False,
    )
    if caps_attention(model.config) and not torch.cuda.is_available():  # on CUDA, Unsloth's own attention caps
        model.set_attn_implementation("eager")
    return model, set(), set()


def unsloths_checkpointing(settings: Model) -> str | bool:
    return "unsloth" if settings.gradient_checkpointing else False


def caps_attention(config: Any) -> bool:
    """Gemma-2 soft-caps attention scores: transformers' default (sdpa) silently leaves that out, eager does it."""
    return getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
