"""Two-turn trajectories: token ids exactly as sampled, and which turn each of them belongs to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefast.data import Example
from scorefast.objective import TurnCoefficients
from scorefast.prompts import ChatFormat

# Prompts in, the new tokens of each out (closing token included where one was sampled).
Generate = Callable[[Sequence[list[int]]], list[list[int]]]


@dataclass(frozen=True)
class Attempt:
    ids: list[int]
    text: str
    truncated: bool  # cut by the length limit: it is graded as it stands


@dataclass(frozen=True)
class Trajectory:
    """prompt, first attempt, bridge (the correction turn), second attempt."""

    example: Example
    prompt: list[int]
    first: Attempt
    bridge: list[int]
    second: Attempt

    @property
    def segments(self) -> tuple[tuple[int, list[int]], ...]:
        """(turn, ids) in order; turn 0 is context, 1 and 2 are the tokens of the attempts."""
        return ((0, self.prompt), (1, self.first.ids), (0, self.bridge), (2, self.second.ids))


def attempt(chat: ChatFormat, ids: list[int]) -> Attempt:
    return Attempt(ids, chat.decode(ids), truncated=not ids or ids[-1] not in chat.end_tokens)


def first_attempts(generate: Generate, chat: ChatFormat, examples: Sequence[Example]) -> list[Attempt]:
    return [attempt(chat, ids) for ids in generate([chat.first_turn(e.question) for e in examples])]


def second_attempts(
    generate: Generate, chat: ChatFormat, examples: Sequence[Example], first: Sequence[Attempt]
) -> list[Trajectory]:
    """The correction turn after each given first attempt, and what the model then writes."""
    prompts = [chat.first_turn(e.question) for e in examples]
    bridges = [chat.next_turn(y1.ids) for y1 in first]
    replies = generate([p + y1.ids + b for p, y1, b in zip(prompts, first, bridges, strict=True)])
    return [
        Trajectory(e, p, y1, b, attempt(chat, y2))
        for e, p, y1, b, y2 in zip(examples, prompts, first, bridges, replies, strict=True)
    ]


def two_turn_rollout(generate: Generate, chat: ChatFormat, examples: Sequence[Example]) -> list[Trajectory]:
    """One trajectory an example: repeat an example to sample it more than once."""
    return second_attempts(generate, chat, examples, first_attempts(generate, chat, examples))


def data_attempt(chat: ChatFormat, text: str) -> Attempt:
    """A reply that stands in the data, as token ids."""
    return attempt(chat, chat.reply(text))


def supervised_trajectories(
    chat: ChatFormat, examples: Sequence[Example], first: Sequence[Attempt]
) -> list[Trajectory]:
    """Trajectories whose second attempt is the data's correct answer."""
    return [
        Trajectory(e, chat.first_turn(e.question), y1, chat.next_turn(y1.ids), data_attempt(chat, e.correct_answer))
        for e, y1 in zip(examples, first, strict=True)
    ]


def collate(trajectories: Sequence[Trajectory], coefs: TurnCoefficients, pad: int) -> dict[str, Tensor]:
    """Right-padded training tensors: input_ids, attention_mask, turn (B, T) and pg_coef, kl_coef (B, T) float32.

    A coefficient stands at its token's own position; it is 0 on context and padding.
    """
    b, t = len(trajectories), max(sum(len(ids) for _, ids in y.segments) for y in trajectories)
    input_ids = torch.full((b, t), pad, dtype=torch.int64)
    attention_mask = torch.zeros(b, t, dtype=torch.int64)
    turn = torch.zeros(b, t, dtype=torch.int64)
    for row, trajectory in enumerate(trajectories):
        start = 0
        for which, ids in trajectory.segments:
            input_ids[row, start : start + len(ids)] = torch.tensor(ids, dtype=torch.int64)
            turn[row, start : start + len(ids)] = which
            start += len(ids)
        attention_mask[row, :start] = 1
    padded = [torch.cat([torch.zeros(b, 1), c], dim=1) for c in (coefs.pg, coefs.kl)]  # (B, 3), turn 0 is 0
    pg_coef, kl_coef = (c.gather(1, turn) for c in padded)
    tokens = {"input_ids": input_ids, "attention_mask": attention_mask, "turn": turn}
    return tokens | {"pg_coef": pg_coef, "kl_coef": kl_coef}
