"""One loss for every method: policy gradient and exact KL, from hidden states. Imports torch only."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from scorefast.kernels import reference
from scorefast.kernels.reference import ScoreStats

__all__ = ["Impl", "ScoreStats", "score_loss"]

Impl = Literal["auto", "reference"]


def score_loss(
    hidden: Tensor,
    ref_hidden: Tensor | None,
    weight: Tensor,
    targets: Tensor,
    pg_coef: Tensor,
    kl_coef: Tensor,
    *,
    softcap: float | None = None,
    temperature: float = 1.0,
    impl: Impl = "auto",
) -> tuple[Tensor, ScoreStats]:
    """loss = sum_n [ -pg_coef_n * log p_n(target_n) + kl_coef_n * KL(p_n || q_n) ]

    p and q are the softmax of softcap * tanh(h @ W^T / softcap) / temperature for h = hidden and h = ref_hidden.

    Args:
        hidden: (N, D) last hidden states of the policy at the positions that predict the targets.
        ref_hidden: (N, D) the same of the reference; None is allowed where every kl_coef is 0.
        weight: (V, D) the output head. A gradient reaches it through the policy alone: q is a constant.
        targets: (N,) int64 token ids.
        pg_coef, kl_coef: (N,) float32 coefficients, constants for autograd.
        softcap: the model's final-logit soft cap (30.0 in Gemma-2), or None.
        temperature: the sampling temperature, so that scores are those of the distribution sampled from.
        impl: `reference`, or `auto` for the fastest that runs here.

    Returns:
        The scalar loss (float32 or wider, NOT divided by anything) and detached per-token statistics.

    Raises:
        ValueError: shapes disagree, a kl_coef is not 0 without ref_hidden, or impl is unknown.
    """
    n, d = hidden.shape
    if weight.shape[1] != d or any(t.shape != (n,) for t in (targets, pg_coef, kl_coef)):
        raise ValueError(
            f"score_loss: hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)}, targets {tuple(targets.shape)}, "
            f"pg_coef {tuple(pg_coef.shape)}, kl_coef {tuple(kl_coef.shape)}: expected (N, D), (V, D), (N,), (N,), (N,)"
        )
    if ref_hidden is None and bool((kl_coef != 0).any()):
        raise ValueError("score_loss: kl_coef is not 0 but there is no ref_hidden to measure KL against")
    if ref_hidden is not None and ref_hidden.shape != hidden.shape:
        raise ValueError(f"score_loss: ref_hidden {tuple(ref_hidden.shape)} differs from hidden {tuple(hidden.shape)}")
    if impl not in ("auto", "reference"):
        raise ValueError(f"score_loss: impl {impl!r} is not one of auto, reference")
    return reference.score_loss(hidden, ref_hidden, weight, targets, pg_coef, kl_coef, softcap, temperature)
