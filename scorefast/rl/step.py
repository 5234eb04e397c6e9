"""What an optimizer step does: sample, grade, reward, advantage, coefficients, batches. Read it from top to bottom.

Both stages, and the supervised baseline, are this one function; `objective` holds what differs between them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from scorefast.data.example import Example
from scorefast.grading.function import RewardFunction, rewards_of
from scorefast.grading.reward import grade_example
from scorefast.model.chat_format import ChatFormat
from scorefast.rl.batch import Batch, collate
from scorefast.rl.evaluate import grade_all
from scorefast.rl.objective import coefficients, leave_one_out_advantage, turn_rewards
from scorefast.rl.trajectory import Trajectory
from scorefast.schema import Recipe, Stage1, Stage2
from scorefast.stats import Graded

NOT_FINITE = "a reward is not finite"
RewardPair = tuple[float | None, float | None]  # of the two attempts; None where the function does not apply


@dataclass(frozen=True)
class Processes:
    """This process among those that share a step. gather: (n, ...) -> (processes * n, ...), in the order of ranks."""

    rank: int = 0
    gather: Callable[[Tensor], Tensor] = lambda tensor: tensor


@dataclass(frozen=True)
class Step:
    """One optimizer step of this process: B trajectories.

    rewards, advantages: (B, 2) float32, trajectory by turn. normalizer: what the sum of the loss is divided by, counted
    over all processes. problem: why the step must not be taken, or None.
    """

    graded: list[Graded]
    rewards: Tensor
    advantages: Tensor
    batches: list[Batch]
    normalizer: Tensor
    problem: str | None


def make_step(
    examples: Sequence[Example],
    questions: Tensor,
    *,
    sample: Callable[[Sequence[Example]], list[Trajectory]],
    chat: ChatFormat,
    recipe: Recipe,
    stage: Stage1 | Stage2,
    micro_batch: int,
    reward_function: RewardFunction | None = None,
    processes: Processes | None = None,
) -> Step:
    """examples: B of them, a question's K samples in a row. questions: (B,) int64, the same number for the same
    question. micro_batch: trajectories that are trained on at once."""
    processes = processes or Processes()

    trajectories = sample(examples)
    graded = grade_all(trajectories, partial(grade_example, grader=recipe.reward.grader))

    raw = None  # where no function is named, grades are the reward
    if reward_function is not None and stage.on_policy:
        raw = _called(reward_function, trajectories, chat)
    rewards = turn_rewards(stage, [g.first for g in graded], [g.second for g in graded], raw)

    advantages, problem = torch.zeros_like(rewards), None
    if stage.on_policy:
        finite = raw is None or all(r is None or math.isfinite(r) for pair in raw for r in pair)
        advantages, problem = _advantages(rewards, questions, finite, processes)

    weights = coefficients(stage, advantages)
    pad = chat.tokenizer.pad_token_id
    cuts = [slice(i, i + micro_batch) for i in range(0, len(trajectories), micro_batch)]
    batches = [collate(trajectories[cut], weights[cut], pad) for cut in cuts]

    count = len(trajectories)
    if stage.normalize == "token":
        count = sum(int(((b["pg_coef"] != 0) | (b["kl_coef"] != 0)).sum()) for b in batches)
    normalizer = processes.gather(torch.tensor([count])).sum().clamp(min=1)
    return Step(graded, rewards, advantages, batches, normalizer, problem)


def _called(function: RewardFunction, trajectories: Sequence[Trajectory], chat: ChatFormat) -> list[RewardPair]:
    """(r1, r2) of a function in TRL's signature; each call sees the conversation that its attempt was written in."""
    examples = [t.example for t in trajectories]
    first, second = [t.first.text for t in trajectories], [t.second.text for t in trajectories]
    asked = [[chat.asked(e.question)] for e in examples]
    corrected = [[*turns, y1, chat.correction] for turns, y1 in zip(asked, first, strict=True)]
    r1 = rewards_of(function, examples, asked, first)
    r2 = rewards_of(function, examples, corrected, second)
    return list(zip(r1, r2, strict=True))


def _advantages(rewards: Tensor, questions: Tensor, finite: bool, processes: Processes) -> tuple[Tensor, str | None]:
    """(advantages of this process's rewards, why there are none). A question's samples may be spread over processes, so
    the baseline is taken over all of them."""
    everyone, groups = processes.gather(rewards), processes.gather(questions)
    if not finite or everyone.isinf().any():
        return torch.zeros_like(rewards), NOT_FINITE
    own = slice(processes.rank * len(rewards), (processes.rank + 1) * len(rewards))
    return leave_one_out_advantage(everyone, groups)[own], None
