"""The metrics of an optimizer step: rollout, loss and speed."""

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

# Metrics that differ between two otherwise equal runs.
TIMING_METRICS = {f"{part}_{what}" for part in ("rollout", "update") for what in ("seconds", "tokens_per_second")}
TIMING_METRICS |= {"gpu_allocated_gb", "gpu_reserved_gb"}


def rollout_metrics(step: Step, turns_sampled: int, seconds: float) -> dict[str, float]:
    """Metrics of the B trajectories of a rollout that took `seconds`.

    length_t1, length_t2: mean tokens of an attempt. edit_distance: in [0, 1], between the texts of the two attempts.
    advantage_zero: the share of rewarded second attempts whose advantage is 0.
    """
    lengths = [(len(g.trajectory.first.ids), len(g.trajectory.second.ids)) for g in step.graded]
    length_t1, length_t2 = (sum(column) / len(lengths) for column in zip(*lengths, strict=True))
    metrics = {"length_t1": length_t1, "length_t2": length_t2}
    if turns_sampled == 2:  # attempts from the data do not measure the policy
        given = [turn[~turn.isnan()] for turn in step.rewards.T]  # the rewards that apply, by turn
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
    """The current optimizer step: its metrics so far, and its micro-batches."""

    rollout: dict[str, float] = field(default_factory=dict)
    problem: str | None = None  # why the step must be skipped
    batches: list[Batch] = field(default_factory=list)  # micro-batches whose gradient is computed
    trajectories: int = 0
    sums: dict[str, float] = field(default_factory=dict)  # statistics of the loss, summed over tokens
    tokens: dict[str, int] = field(default_factory=dict)  # the number of tokens in each sum
    update_began: float = field(default_factory=time.perf_counter)

    def add_loss(self, stats: ScoreStats, turn: Tensor, trajectories: int) -> None:
        """Add the statistics of N tokens. turn: (N,). A statistic is NaN on tokens where the loss did not need it."""
        self.trajectories += trajectories
        found = {"entropy": stats.entropy}
        if stats.kl is not None:
            found |= {f"kl_t{k}": stats.kl[turn == k] for k in (1, 2)}
        for name, values in found.items():
            if len(measured := values[~values.isnan()]):
                self.sums[name] = self.sums.get(name, 0.0) + measured.sum().item()
                self.tokens[name] = self.tokens.get(name, 0) + len(measured)

    def forget_loss(self) -> None:
        """Reset the statistics of the loss, before the step's gradient is recomputed."""
        self.trajectories, self.sums, self.tokens = 0, {}, {}

    def metrics(self) -> dict[str, float]:
        """Metrics of rollout and loss: entropy in nats per token, KL in nats per reply."""
        kl = {name: total / self.trajectories for name, total in self.sums.items() if name != "entropy"}
        entropy = {"entropy": self.sums["entropy"] / self.tokens["entropy"]} if "entropy" in self.sums else {}
        return self.rollout | entropy | kl

    def speed(self) -> dict[str, float]:
        """Speed of the update that ends now: forward, backward and optimizer, over all tokens of the trajectories.

        gpu_allocated_gb, gpu_reserved_gb: the peak of torch's allocated and reserved GPU memory since the process
        began, in 10^9 bytes.
        """
        seconds = time.perf_counter() - self.update_began
        tokens = sum(int(batch["attention_mask"].sum()) for batch in self.batches)
        gpu = {}
        if torch.cuda.is_available():
            allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
            gpu = {"gpu_allocated_gb": allocated / 1e9, "gpu_reserved_gb": reserved / 1e9}
        return {"update_seconds": seconds, "update_tokens_per_second": tokens / seconds} | gpu

    def highest_kl(self) -> float:
        """The larger mean KL of the two turns, in nats per token; 0 if none was measured."""
        return max((self.sums[n] / self.tokens[n] for n in ("kl_t1", "kl_t2") if n in self.sums), default=0.0)
