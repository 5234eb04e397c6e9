"""Attention over keys and values that lie in slots, put under transformers' decoders by its attention interface."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

NAME = "scorefast_slots"
KINDS = {"full_attention", "sliding_attention"}
MOVING = {"dynamic", "longrope"}


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """softmax(cap(scaling * Q K^T) + mask) V, with cap(s) = softcap * tanh(s / softcap) where there is a softcap.

    query (B, H, L, D), key and value (B, Hkv, T, D), attention_mask (B, 1, L, T) added to scores -> (B, L, H, D).
    The H / Hkv query heads of a group share a key head without copies of it. The softmax is taken in float32.
    """
    batch, heads, length, size = query.shape
    shared = key.shape[1]
    grouped = query.reshape(batch, shared, heads // shared * length, size)
    scores = torch.matmul(grouped, key.transpose(2, 3))  # (B, Hkv, H/Hkv * L, T)
    scaling = size**-0.5 if scaling is None else scaling
    if softcap is None:
        scores.mul_(scaling)
    else:
        scores.mul_(scaling / softcap).tanh_().mul_(softcap)
    scores = scores.view(batch, shared, heads // shared, length, -1).add_(attention_mask[:, :, None])
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype).view(*grouped.shape[:3], -1)
    mixed = torch.matmul(weights, value).view(batch, heads, length, size)
    return mixed.transpose(1, 2).contiguous(), None


def windows(config: Any) -> dict[str, int | None]:
    """How far each kind of layer looks back, in tokens, its own included; None is without a limit.

    The key "all" stands for a model whose layers are of one kind. Raises ValueError for other kinds of layers, and for
    rotary frequencies that change with the longest conversation in a pass.
    """
    kinds = set(getattr(config, "layer_types", None) or ())
    if not kinds <= KINDS:
        raise ValueError(f"has layers of the kind {min(kinds - KINDS)}")
    rope = getattr(config, "rope_parameters", None) or {}
    for part in (rope, *rope.values()):  # of all layers, or of each kind
        if isinstance(part, dict) and part.get("rope_type") in MOVING:
            raise ValueError(f"has rotary frequencies that change with length ({part['rope_type']})")
    window = getattr(config, "sliding_window", None)
    if "sliding_attention" in kinds:
        return {"full_attention": None, "sliding_attention": window}
    return {"all": None if kinds or not getattr(config, "use_sliding_window", True) else window}


def masks(
    looking_back: dict[str, int | None], positions: Tensor, upto: int, dtype: torch.dtype
) -> Tensor | dict[str, Tensor]:
    """What is added to scores: 0 where a token at position p sees position t, window excepted, else the least number.

    positions (B, L) -> (B, 1, L, upto) for a model with one kind of layer, else one such tensor for each kind. A token
    sees t <= p, and t > p - window. Slots hold position t in column t, so nothing else has to be masked.
    """
    column = torch.arange(upto, device=positions.device)
    at = positions[:, None, :, None]
    seen = column <= at
    shown = torch.zeros((), dtype=dtype, device=positions.device)
    hidden = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=positions.device)
    full = torch.where(seen, shown, hidden)

    def of(window: int | None) -> Tensor:
        if window is None or window >= upto:
            return full
        return torch.where(seen & (column > at - window), shown, hidden)

    made = {kind: of(window) for kind, window in looking_back.items()}
    return made.get("all", made)


@contextmanager
def attending_to_slots(config: Any) -> Iterator[None]:
    """Lets the decoder of this configuration call `attend`; the implementation that it had comes back."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


@contextmanager
def window_of(tokens: int, config: Any) -> Iterator[None]:
    """Layers with a sliding window look back so many tokens; transformers reads it anew for each mask."""
    before = getattr(config, "sliding_window", None)
    if before is not None:
        config.sliding_window = tokens
    try:
        yield
    finally:
        if before is not None:
            config.sliding_window = before
