"""Collate trajectories into padded tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from scorefast.data.trajectory import Trajectory
from scorefast.rl.objective import TurnCoefficients

Batch = dict[str, Tensor]  # the output of `collate`; the Trainer moves a dict of tensors to the device


def collate(trajectories: Sequence[Trajectory], coefs: TurnCoefficients, pad: int) -> Batch:
    """Right-padded training tensors, one row per sequence of each trajectory, in order.

    input_ids, attention_mask, turn: (B, T) int64. turn is 1 or 2 on the tokens of an attempt and 0 on context and
    padding. pg_coef, kl_coef: (B, T) float32, the coefficients of the token at that position, 0 where turn is 0.
    coefs: pg and kl, each (trajectories, 2). pad: the token id of the padding.
    """
    rows = [(i, sequence) for i, trajectory in enumerate(trajectories) for sequence in trajectory.sequences]
    b, t = len(rows), max(sum(len(ids) for _, ids in sequence) for _, sequence in rows)
    input_ids = torch.full((b, t), pad, dtype=torch.int64)
    attention_mask = torch.zeros(b, t, dtype=torch.int64)
    turn = torch.zeros(b, t, dtype=torch.int64)
    for row, (_, sequence) in enumerate(rows):
        start = 0
        for number, ids in sequence:
            input_ids[row, start : start + len(ids)] = torch.tensor(ids, dtype=torch.int64)
            turn[row, start : start + len(ids)] = number
            start += len(ids)
        attention_mask[row, :start] = 1
    trajectory_of_row = torch.tensor([i for i, _ in rows])  # (B,)
    by_turn = [torch.cat([torch.zeros(b, 1), c[trajectory_of_row]], dim=1) for c in (coefs.pg, coefs.kl)]  # (B, 3)
    pg_coef, kl_coef = (c.gather(1, turn) for c in by_turn)  # (B, T); column 0 of by_turn is 0
    tokens = {"input_ids": input_ids, "attention_mask": attention_mask, "turn": turn}
    return tokens | {"pg_coef": pg_coef, "kl_coef": kl_coef}
