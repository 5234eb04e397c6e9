"""The loss in plain torch: the specification that every faster implementation has to agree with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ScoreStats:
    """Per-token statistics, each (N,) float32 and detached. ref_logp and kl are None without a reference."""

    logp: Tensor
    ref_logp: Tensor | None
    kl: Tensor | None
    entropy: Tensor


def log_softmax_head(hidden: Tensor, weight: Tensor, softcap: float | None, temperature: float) -> Tensor:
    """(N, D), (V, D) -> (N, V): log_softmax(softcap * tanh(h @ W^T / softcap) / temperature), in float32 or wider."""
    logits = hidden @ weight.to(hidden.dtype).T
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
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
    softcap: float | None,
    temperature: float,
) -> tuple[Tensor, ScoreStats]:
    """See `scorefast.kernels.score_loss`. Holds several (N, V) tensors."""
    logps = log_softmax_head(hidden, weight, softcap, temperature)  # (N, V)
    probs = logps.exp()
    logp = logps.gather(-1, targets[:, None]).squeeze(-1)  # (N,)
    loss = -(pg_coef * logp).sum()
    ref_logp = kl = None
    if ref_hidden is not None:
        with torch.no_grad():
            ref_logps = log_softmax_head(ref_hidden, weight, softcap, temperature)
        kl = (probs * (logps - ref_logps)).sum(-1)
        ref_logp = ref_logps.gather(-1, targets[:, None]).squeeze(-1)
        loss = loss + (kl_coef * kl).sum()
        kl = kl.detach().float()
        ref_logp = ref_logp.float()
    entropy = -(probs * logps).sum(-1).detach().float()
    return loss, ScoreStats(logp.detach().float(), ref_logp, kl, entropy)
