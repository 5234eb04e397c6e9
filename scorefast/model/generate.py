"""Replies to prompts, sampled or greedy, exactly as the loss scores them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scorefast.model.backends import new_generation_config
from scorefast.model.policy import Policy, generating

if TYPE_CHECKING:
    from transformers import GenerationConfig
    from transformers.generation import BaseStreamer


def generate(
    policy: Policy,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    batch_size: int,
    streamer: BaseStreamer | None = None,
    on_token: Callable[[], None] | None = None,
    on_replies: Callable[[int], None] = lambda count: None,
) -> list[list[int]]:
    """New token ids for each prompt, up to and including the closing token. temperature 0 is greedy.

    Samples come from the whole softmax of logits / temperature (no top-k, no top-p), which is what the loss scores.
    A streamer needs batch_size 1. on_token is called after each token of a batch; what it raises ends the generation.
    on_replies is called after each batch with its size. Raises UserError if a prompt leaves no room for a reply.
    """
    policy.require_room(max(map(len, prompts), default=0), max_new_tokens)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    replies: dict[int, list[int]] = {}
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        new = _generate_batch(policy, [prompts[i] for i in chosen], max_new_tokens, temperature, streamer, on_token)
        replies.update(zip(chosen, new, strict=True))
        on_replies(len(chosen))
    return [replies[i] for i in range(len(prompts))]


def _generate_batch(
    policy: Policy,
    prompts: list[list[int]],
    max_new_tokens: int,
    temperature: float,
    streamer: BaseStreamer | None,
    on_token: Callable[[], None] | None,
) -> list[list[int]]:
    pad, ends = policy.tokenizer.pad_token_id, policy.chat.end_tokens
    width = max(len(p) for p in prompts)
    device = next(policy.model.parameters()).device
    # (B, T), left-padded
    input_ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=device)
    attention_mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    with generating(policy), torch.no_grad():
        output = policy.model.generate(  # (B, T + new)
            input_ids=input_ids,
            attention_mask=attention_mask,
            generation_config=generation_config(pad, ends, max_new_tokens, temperature),
            streamer=streamer,
            stopping_criteria=None if on_token is None else [_never_stopping(on_token)],
        )
    return [_until_end(row, ends) for row in output[:, width:].tolist()]


def _never_stopping(on_token: Callable[[], None]) -> Callable[..., Tensor]:
    def criterion(input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        on_token()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    return criterion


def generation_config(pad: int, ends: set[int], max_new_tokens: int, temperature: float) -> GenerationConfig:
    sampling: dict[str, bool | float] = {"do_sample": False}
    if temperature > 0:
        # Every truncation is switched off by name: transformers' defaults fill in what is left unset.
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    return new_generation_config(
        max_new_tokens=max_new_tokens, eos_token_id=sorted(ends), pad_token_id=pad, repetition_penalty=1.0, **sampling
    )


def _until_end(ids: list[int], ends: set[int]) -> list[int]:
    for position, token in enumerate(ids):
        if token in ends:
            return ids[: position + 1]
    return ids
