"""One optimizer step: sample, grade, reward, advantage, coefficients, batches. `make_step` reads from top to bottom.

The Trainer then minimizes, over all tokens t of the step's attempts,

    loss = sum_t [ -pg_t * log p(y_t) + kl_t * KL(p_t || q_t) ] / normalizer

where p is the policy and q the reference. Both stages and the supervised baseline use this one function; they differ
in the rewards and in the coefficients pg and kl (`objective`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from scorefast.data.example import Example
from scorefast.data.trajectory import Trajectory
from scorefast.grading.graded_example import grade_example
from scorefast.grading.reward_function import RewardFunction, rewards_of
from scorefast.model.chat_format import ChatFormat
from scorefast.rl.batch import Batch, collate
from scorefast.rl.objective import coefficients, leave_one_out_advantage, turn_rewards
from scorefast.rl.rollout import grade_all
from scorefast.schema import Recipe, Stage1, Stage2
from scorefast.stats import Graded

NOT_FINITE = "a reward is not finite"
RewardPair = tuple[float | None, float | None]  # (r1, r2); None if the function does not apply to the attempt


@dataclass(frozen=True)
class Processes:
    """The processes that share a step. rank: of this one. gather: (n, ...) -> (processes * n, ...), in rank order."""

    rank: int = 0
    gather: Callable[[Tensor], Tensor] = lambda tensor: tensor


@dataclass(frozen=True)
class Step:
    """One optimizer step of this process: B trajectories.

    graded: trajectories and grades, B of them. rewards, advantages: (B, 2) float32, trajectory by turn. batches: the
    micro-batches, in order. normalizer: () int64, the divisor of the loss, counted over all processes. problem: why the
    step must be skipped, or None.
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
    """Sample B trajectories and make the micro-batches that the Trainer trains on.

    examples: B of them; the K samples of a question are adjacent. questions: (B,) int64, the number of each example's
    question. sample: one trajectory per example. micro_batch: trajectories per micro-batch.
    """
    processes = processes or Processes()

    trajectories = sample(examples)  # B of them
    graded = grade_all(trajectories, partial(grade_example, grader=recipe.reward.grader))

    raw = None  # without a reward function, the grades are the reward
    if reward_function is not None and stage.on_policy:
        raw = _call_reward_function(reward_function, trajectories, chat)
    rewards = turn_rewards(stage, [g.first for g in graded], [g.second for g in graded], raw)  # (B, 2)

    advantages, problem = torch.zeros_like(rewards), None  # (B, 2)
    if stage.on_policy:
        # In `rewards`, NaN means that no reward applies, so a NaN of the reward function is detected in `raw`.
        finite = raw is None or all(r is None or math.isfinite(r) for pair in raw for r in pair)
        advantages, problem = _advantages(rewards, questions, finite, processes)

    coefs = coefficients(stage, advantages)  # pg and kl, (B, 2) each
    pad = chat.tokenizer.pad_token_id
    slices = [slice(i, i + micro_batch) for i in range(0, len(trajectories), micro_batch)]
    batches = [collate(trajectories[rows], coefs[rows], pad) for rows in slices]  # tensors of (rows, T)

    count = len(trajectories)
    if stage.normalize == "token":
        count = sum(int(((b["pg_coef"] != 0) | (b["kl_coef"] != 0)).sum()) for b in batches)
    normalizer = processes.gather(torch.tensor([count])).sum().clamp(min=1)
    return Step(graded, rewards, advantages, batches, normalizer, problem)


def _call_reward_function(
    function: RewardFunction, trajectories: Sequence[Trajectory], chat: ChatFormat
) -> list[RewardPair]:
    """(r1, r2) of a reward function with TRL's signature. Its prompts are the conversation before each attempt."""
    examples = [t.example for t in trajectories]
    first, second = [t.first.text for t in trajectories], [t.second.text for t in trajectories]
    asked = [[chat.asked(e.question)] for e in examples]
    corrected = [[*turns, y1, chat.correction] for turns, y1 in zip(asked, first, strict=True)]
    r1 = rewards_of(function, examples, asked, first)
    r2 = rewards_of(function, examples, corrected, second)
    return list(zip(r1, r2, strict=True))


def _advantages(rewards: Tensor, questions: Tensor, finite: bool, processes: Processes) -> tuple[Tensor, str | None]:
    """(advantages (B, 2), why there are none or None). rewards: (B, 2). questions: (B,).

    The samples of a question can be spread over processes, so the baseline uses the rewards of all processes.
    """
    all_rewards, groups = processes.gather(rewards), processes.gather(questions)  # (processes * B, 2), (processes * B,)
    if not finite or all_rewards.isinf().any():
        return torch.zeros_like(rewards), NOT_FINITE
    own = slice(processes.rank * len(rewards), (processes.rank + 1) * len(rewards))
    return leave_one_out_advantage(all_rewards, groups)[own], None
