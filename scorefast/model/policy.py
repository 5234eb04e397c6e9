"""The policy: a model, its chat format, and the reference of the KL penalty."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from scorefast.errors import UserError
from scorefast.model.backends import new_generation_config
from scorefast.model.chat_format import ChatFormat

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerFast

    from scorefast.model.types import AdaptedModel, LanguageModel


@dataclass(frozen=True)
class Policy:
    """A model, its chat format, and its reference: a frozen copy, or else the model without its adapter.

    max_length: tokens of prompt and reply together.
    """

    model: LanguageModel
    chat: ChatFormat
    backend: str
    max_length: int
    frozen_reference: LanguageModel | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        return self.chat.tokenizer

    def require_room(self, context: int, new: int) -> None:
        """Raise UserError if `new` tokens after `context` tokens exceed max_length. Unsloth would truncate them."""
        if context + new > self.max_length:
            raise UserError(
                f"a prompt of {context} tokens and {new} new ones exceed model.max_seq_length = {self.max_length}; "
                "raise it"
            )

    @property
    def softcap(self) -> float | None:
        return getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)

    @property
    def head(self) -> Tensor:
        """(V, D), the output embedding. Every kind of tuning freezes it, so policy and reference share it."""
        return self.model.get_output_embeddings().weight

    @contextmanager
    def reference(self) -> Iterator[LanguageModel]:
        """The reference model, without gradients."""
        with torch.no_grad():
            if self.frozen_reference is not None:
                yield self.frozen_reference
            else:
                with cast("AdaptedModel", self.model).disable_adapter():
                    yield self.model


def return_hidden_on_request(model: LanguageModel) -> None:
    """Add a keyword to `forward`, return_hidden=True: last hidden states (B, T, D) instead of logits (B, T, V).

    A keyword of forward, not a call of the inner model, so that PEFT and DDP wrappers see the pass.
    """
    logits_forward = model.forward
    decoder = model.get_decoder()

    @functools.wraps(logits_forward)
    def forward(*args: object, return_hidden: bool = False, **kwargs: object) -> object:
        if not return_hidden:
            return logits_forward(*args, **kwargs)
        inputs = {name: kwargs[name] for name in ("input_ids", "attention_mask")}
        return decoder(**inputs, use_cache=False).last_hidden_state

    model.forward = forward


def last_hidden(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """(B, T) ids, right-padded -> (B, T, D) hidden states after the final norm, before the head."""
    return model(input_ids=input_ids, attention_mask=attention_mask, return_hidden=True)


def settings_to_save(chat: ChatFormat) -> GenerationConfig:
    """The generation_config.json of a saved model: which tokens end a reply. The base's own may lack the token that
    closes a turn, may sample, or may hold what transformers refuses to save."""
    own = chat.tokenizer
    return new_generation_config(
        bos_token_id=own.bos_token_id, eos_token_id=sorted(chat.end_tokens), pad_token_id=own.pad_token_id
    )


def save_policy(policy: Policy, folder: Path) -> None:
    """An ordinary PEFT folder (a model folder after full fine-tuning), safetensors, with tokenizer and template."""
    adapter = hasattr(policy.model, "peft_config")  # PEFT would ask the hub whether its vocabulary has grown
    if not adapter:
        policy.model.generation_config = settings_to_save(policy.chat)
    policy.model.save_pretrained(str(folder), **({"save_embedding_layers": False} if adapter else {}))
    policy.tokenizer.save_pretrained(str(folder))


@contextmanager
def generating(policy: Policy) -> Iterator[None]:
    """Evaluation mode during a rollout; restores the state before it. Unsloth's `generate` changes flags for good:
    mode, checkpointing, cache, padding side."""
    model, tokenizer = policy.model, policy.tokenizer
    flags: list[tuple[object, str]] = [(model.config, "use_cache"), (tokenizer, "padding_side")]
    flags += [(module, "gradient_checkpointing") for module in model.modules()]
    before = [(owner, name, getattr(owner, name)) for owner, name in flags if hasattr(owner, name)]
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
        for module, training in modes:
            module.training = training
