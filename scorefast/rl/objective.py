"""Every method as two coefficients per turn: pg scales log p, and kl scales KL, on the tokens of each attempt.

All methods have the same loss, a sum over the tokens of a whole optimizer step:

    sum_t [ -pg_t * log p(y_t) + kl_t * KL(p_t || q_t) ] / (trajectories, or trained tokens)

All tokens of an attempt have the same coefficient. The discount gamma is 0, so an attempt is credited with its own
turn's reward only: y1 with r1, y2 with the (shaped) r2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefast.grading.answer import Grade
from scorefast.schema import OriginReward, Stage1, Stage2


@dataclass(frozen=True)
class TurnCoefficients:
    """pg and kl, each (B, 2) float32, trajectory by turn. A slice selects trajectories."""

    pg: Tensor
    kl: Tensor

    def __getitem__(self, rows: slice) -> TurnCoefficients:
        return TurnCoefficients(self.pg[rows], self.kl[rows])


def turn_rewards(
    stage: Stage1 | Stage2,
    first: Sequence[Grade],
    second: Sequence[Grade],
    raw: Sequence[tuple[float | None, float | None]] | None = None,
) -> Tensor:
    """(B, 2) float32: the reward of each turn before any baseline; NaN if no reward applies.

    Stage I (arXiv 2409.12917, eq. 3) rewards the second attempt only: (0, r2). Stage II (eq. 4) rewards both attempts,
    the second one shaped. raw: (r1, r2) of a reward function; default: 1 for a correct attempt, else 0. None means that
    no reward applies; an improvement computed from it does not apply either.
    """
    pairs = list(zip(first, second, strict=True))
    rewards = [(float(g1.correct), float(g2.correct)) for g1, g2 in pairs]
    if raw is not None:
        rewards = [(math.nan if r1 is None else r1, math.nan if r2 is None else r2) for r1, r2 in raw]
    if isinstance(stage, Stage1):
        rows = [(0.0, r2) for _, r2 in rewards]
    elif stage.shaping == "paper":
        rows = [(r1, paper_shaped(r1, r2, stage.alpha)) for r1, r2 in rewards]
    else:
        rows = [(r1, origin_shaped(g1, g2, stage.origin)) for (r1, _), (g1, g2) in zip(rewards, pairs, strict=True)]
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 2)


def leave_one_out_advantage(rewards: Tensor, groups: Tensor) -> Tensor:
    """RLOO: each reward minus the mean of the other samples of its group (arXiv 2402.14740).

    rewards (B, 2), groups (B,) int64 -> (B, 2). A NaN reward enters no mean, and its advantage is 0, as in TRL. The
    advantage of the only reward in a group that is not NaN is 0 too. Raises ValueError if a group has one sample.
    """
    _, member, count = torch.unique(groups, return_inverse=True, return_counts=True)
    if bool((count < 2).any()):
        raise ValueError("leave_one_out_advantage: a group has one sample only, so there is no baseline for it")
    applies = ~rewards.isnan()  # (B, 2)
    known = torch.where(applies, rewards, 0.0)
    zeros = torch.zeros(len(count), rewards.shape[1], dtype=rewards.dtype)  # (groups, 2)
    total = zeros.index_add(0, member, known)[member]  # (B, 2): the sum of the group's rewards
    n = zeros.index_add(0, member, applies.to(rewards.dtype))[member]  # (B, 2): how many there are
    advantage = known - (total - known) / (n - 1).clamp(min=1)
    return torch.where(applies & (n > 1), advantage, 0.0)


def coefficients(stage: Stage1 | Stage2, advantages: Tensor) -> TurnCoefficients:
    """advantages (B, 2) -> the coefficients of log p and KL for each turn, where b1 = beta1 and b2 = beta2.

    supervised: pg (0, 1),   kl (b2, 0): cross-entropy on the second attempt, KL holds the first near the reference
    Stage I:    pg (0, A2),  kl (b2, b1)
    Stage II:   pg (A1, A2), kl (b1, b1)
    """
    b = len(advantages)
    if isinstance(stage, Stage2):
        kl = (stage.beta1, stage.beta1)
    else:
        kl = (stage.beta2, stage.beta1 if stage.on_policy else 0.0)
    pg = advantages if stage.on_policy else torch.tensor([[0.0, 1.0]]).expand(b, 2)
    return TurnCoefficients(pg, torch.tensor([kl], dtype=torch.float32).expand(b, 2))


def paper_shaped(r1: float, r2: float, alpha: float) -> float:
    """r2 + alpha * (r2 - r1): the second attempt's reward in Stage II (arXiv 2409.12917, section 5.2)."""
    return r2 + alpha * (r2 - r1)


def origin_shaped(first: Grade, second: Grade, values: OriginReward) -> float:
    """The reward of the original project. It depends on how the second attempt changes the grade of the first."""
    if second.correct:
        return values.kept if first.correct else values.corrected
    if first.correct or second.score < first.score:
        return values.worse
    return values.partial if second.score > first.score else values.unchanged
