"""The loss in plain torch: the specification that every faster implementation has to agree with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ScoreStats:
    """Per-token statistics, each (N,) float32 and detached.

    logp and entropy are NaN where both coefficients are 0. ref_logp and kl are NaN where kl_coef is 0, and None without
    ref_hidden.

    dropped: with skip > 0, the share of ||d loss / d logits_n||_1 that was left out of the gradient (at most skip).
    """

    logp: Tensor
    ref_logp: Tensor | None
    kl: Tensor | None
    entropy: Tensor
    dropped: Tensor | None = None


def log_softmax_head(
    hidden: Tensor, weight: Tensor, softcap: float | None, temperature: float, bias: Tensor | None = None
) -> Tensor:
    """(N, D), (V, D) -> (N, V): log_softmax(softcap * tanh((h @ W^T + bias) / softcap) / temperature), >= float32."""
    logits = hidden @ weight.to(hidden.dtype).T
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if bias is not None:
        logits = logits + bias
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return torch.log_softmax(logits / temperature, dim=-1)


def score_loss(
    hidden: Tensor,
    ref_hidden: Tensor | None,
    weight: Tensor,
    targets: Tensor,
    pg_coef: Tensor,
    kl_coef: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    temperature: float,
) -> tuple[Tensor, ScoreStats]:
    """See `scorefast.kernels.score_loss`. Holds several (N, V) tensors."""
    with_kl = kl_coef != 0
    active = with_kl | (pg_coef != 0)
    targets = targets.masked_fill(~active, 0)  # idle rows may hold anything
    hidden = hidden.masked_fill(~active[:, None], 0)
    ref_hidden = None if ref_hidden is None else ref_hidden.masked_fill(~active[:, None], 0)
    logps = log_softmax_head(hidden, weight, softcap, temperature, bias)  # (N, V)
    probs = logps.exp()
    logp = logps.gather(-1, targets[:, None]).squeeze(-1)  # (N,)
    loss = -(pg_coef * logp).sum()
    ref_logp = kl = None
    if ref_hidden is not None:
        with torch.no_grad():
            ref_logps = log_softmax_head(ref_hidden, weight, softcap, temperature, bias)
        kl = (probs * (logps - ref_logps)).sum(-1)
        ref_logp = ref_logps.gather(-1, targets[:, None]).squeeze(-1)
        loss = loss + (kl_coef * kl).sum()
        kl, ref_logp = _only(with_kl, kl), _only(with_kl, ref_logp)
    with torch.no_grad():
        entropy = -(probs * logps).sum(-1)
    return loss, ScoreStats(_only(active, logp), ref_logp, kl, _only(active, entropy))


def _only(rows: Tensor, values: Tensor) -> Tensor:
    return values.detach().float().masked_fill(~rows, torch.nan)
