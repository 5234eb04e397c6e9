"""Types of the models that pass through this package, for the type checker alone: what is used of them here.

transformers builds a model's class from mixins, and PEFT wraps it in a class that forwards what it lacks. Neither
library states that interface as one type.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig
    from transformers.generation import GenerateDecoderOnlyOutput


class LanguageModel(nn.Module):
    """A causal language model of transformers, or PEFT's wrapper of one.

    Called with input_ids and attention_mask (B, T), it returns `logits` (B, T, V).
    """

    config: PretrainedConfig
    generation_config: GenerationConfig
    device: torch.device
    generate: Callable[..., Tensor | GenerateDecoderOnlyOutput]  # (B, T + new), or that with logits
    get_decoder: Callable[[], nn.Module]
    get_input_embeddings: Callable[[], nn.Embedding]
    get_output_embeddings: Callable[[], nn.Linear]
    gradient_checkpointing_enable: Callable[[dict[str, bool]], None]
    num_parameters: Callable[[], int]
    save_pretrained: Callable[..., None]
    set_attn_implementation: Callable[[str], None]


class AdaptedModel(LanguageModel):
    """PEFT's wrapper."""

    disable_adapter: Callable[[], AbstractContextManager[None]]
    load_adapter: Callable[..., _IncompatibleKeys]
    merge_and_unload: Callable[[], LanguageModel]
