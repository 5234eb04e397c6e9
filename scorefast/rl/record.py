"""The metrics of an optimizer step: of its rollout, its loss and its speed."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from scorefast.kernels import ScoreStats
from scorefast.rl.batch import Batch
from scorefast.stats import rates

if TYPE_CHECKING:
    from scorefast.rl.step import Step

# Metrics of the machine. Two equal runs do not share them.
TIMING_METRICS = {f"{part}_{what}" for part in ("rollout", "update") for what in ("seconds", "tokens_per_second")}
TIMING_METRICS |= {"gpu_allocated_gb", "gpu_reserved_gb"}


def rollout_metrics(step: Step, turns_sampled: int, seconds: float) -> dict[str, float]:
    """Metrics of B trajectories. lengths in tokens, edit_distance in [0, 1] between the texts of the two attempts,
    advantage_zero: the share of second attempts that have a reward and no advantage."""
    lengths = [(len(g.trajectory.first.ids), len(g.trajectory.second.ids)) for g in step.graded]
    length_t1, length_t2 = (sum(column) / len(lengths) for column in zip(*lengths, strict=True))
    metrics = {"length_t1": length_t1, "length_t2": length_t2}
    if turns_sampled == 2:  # attempts that the data gives say nothing of the policy
        given = [turn[~turn.isnan()] for turn in step.rewards.T]  # the rewards that apply
        texts = [(g.trajectory.first.text, g.trajectory.second.text) for g in step.graded]
        distances = [Levenshtein.normalized_distance(first, second) for first, second in texts]
        metrics = {
            **rates(step.graded),
            **{f"reward_t{turn + 1}": known.mean().item() for turn, known in enumerate(given) if len(known)},
            "advantage_zero": 1 - (step.advantages[:, 1] != 0).sum().item() / max(len(given[1]), 1),
            "edit_distance": sum(distances) / len(distances),
            **metrics,
        }
    if turns_sampled:
        written = sum(sum(attempts[:turns_sampled]) for attempts in lengths)
        metrics |= {"rollout_seconds": seconds, "rollout_tokens_per_second": written / seconds}
    return metrics


@dataclass
class StepRecord:
    """What is known of the optimizer step in the making."""

    rollout: dict[str, float] = field(default_factory=dict)
    problem: str | None = None  # why the step must not be taken
    batches: list[Batch] = field(default_factory=list)  # whose gradient has been taken
    trajectories: int = 0
    sums: dict[str, float] = field(default_factory=dict)  # of the loss's statistics, over tokens
    tokens: dict[str, int] = field(default_factory=dict)
    update_began: float = field(default_factory=time.perf_counter)

    def add_loss(self, stats: ScoreStats, turn: Tensor, trajectories: int) -> None:
        """Statistics of N tokens of so many trajectories. turn: (N,). A statistic that the loss did not need is NaN."""
        self.trajectories += trajectories
        found = {"entropy": stats.entropy}
        if stats.kl is not None:
            found |= {f"kl_t{k}": stats.kl[turn == k] for k in (1, 2)}
        for name, values in found.items():
            if len(measured := values[~values.isnan()]):
                self.sums[name] = self.sums.get(name, 0.0) + measured.sum().item()
                self.tokens[name] = self.tokens.get(name, 0) + len(measured)

    def forget_loss(self) -> None:
        """The gradient is taken again from the first micro-batch on."""
        self.trajectories, self.sums, self.tokens = 0, {}, {}

    def metrics(self) -> dict[str, float]:
        """Of rollout and loss: entropy in nats a token, KL in nats a reply."""
        kl = {name: total / self.trajectories for name, total in self.sums.items() if name != "entropy"}
        entropy = {"entropy": self.sums["entropy"] / self.tokens["entropy"]} if "entropy" in self.sums else {}
        return self.rollout | entropy | kl

    def speed(self) -> dict[str, float]:
        """Of the update that ends now: forward, backward and optimizer, over all tokens of the trajectories.

        gpu_allocated_gb, gpu_reserved_gb: the most of the card that tensors took since the process began, and that
        torch held for them, in 10^9 bytes.
        """
        seconds = time.perf_counter() - self.update_began
        tokens = sum(int(batch["attention_mask"].sum()) for batch in self.batches)
        gpu = {}
        if torch.cuda.is_available():
            allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
            gpu = {"gpu_allocated_gb": allocated / 1e9, "gpu_reserved_gb": reserved / 1e9}
        return {"update_seconds": seconds, "update_tokens_per_second": tokens / seconds} | gpu

    def highest_kl(self) -> float:
        """Of the two turns, in nats a token."""
        return max((self.sums[n] / self.tokens[n] for n in ("kl_t1", "kl_t2") if n in self.sums), default=0.0)
