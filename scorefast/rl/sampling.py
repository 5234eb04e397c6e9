"""Sample attempts from the policy, seeded by step and process, with as many prompts at once as memory allows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from scorefast.data.example import Example
from scorefast.data.trajectory import Trajectory
from scorefast.model.policy import Policy
from scorefast.rl.oom import AutoBatchSize
from scorefast.rl.reporter import Reporter
from scorefast.rl.rollout import Generate, RollOut, generator
from scorefast.schema import Rollout, Stage1, Stage2


@dataclass
class Sampler:
    """Rolls out the policy. seconds: the duration of the last call of `trajectories`."""

    policy: Policy
    rollout: Rollout
    stage: Stage1 | Stage2
    roll_out: RollOut
    seed: int
    auto_batch: AutoBatchSize
    reporter: Reporter
    seconds: float = 0.0

    def trajectories(self, examples: Sequence[Example], step: int, rank: int) -> list[Trajectory]:
        """One trajectory per example. The random state depends only on seed, step and rank, so a resumed run draws the
        same samples as an uninterrupted one."""

        def sample() -> list[Trajectory]:
            with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
                torch.manual_seed((self.seed << 31) + (step << 10) + rank)
                generate = self.generate(self.rollout.temperature, self.stage.turns_sampled * len(examples))
                return self.roll_out(generate, self.policy.chat, examples)

        began = time.perf_counter()
        sampled = self.auto_batch.retry_sampling(sample)
        self.seconds = time.perf_counter() - began
        return sampled

    def generate(self, temperature: float, due: int) -> Generate:
        """A `Generate` function. temperature 0 is greedy. due: the number of replies that will be sampled with it."""
        done = 0

        def count(replies: int) -> None:
            nonlocal done
            done += replies
            self.reporter.count(done, due)

        return generator(
            self.policy,
            self.rollout,
            temperature,
            batch_size=self.auto_batch.prompts,
            on_token=self.reporter.interrupt,
            on_replies=count,
        )
