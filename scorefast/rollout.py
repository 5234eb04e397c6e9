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
    """ids: as sampled. text: what is graded and shown, without the thoughts before it; empty where these never close.
    truncated: cut by the length limit, or inside a thought; it is graded as it stands."""

    ids: list[int]
    text: str
    truncated: bool
    thoughts: str = ""


@dataclass(frozen=True)
class Trajectory:
    """prompt, first attempt, bridge (the correction turn), second attempt. retold: the second attempt's whole prompt,
    where the template writes the first attempt otherwise into it than it was sampled."""

    example: Example
    prompt: list[int]
    first: Attempt
    bridge: list[int]
    second: Attempt
    retold: list[int] | None = None

    @property
    def sequences(self) -> tuple[tuple[tuple[int, list[int]], ...], ...]:
        """What the model is trained on: one sequence, or where the first attempt is retold, one for each attempt.

        Each is a row of (turn, ids): turn 0 is context, 1 and 2 are the tokens of the attempts.
        """
        first = ((0, self.prompt), (1, self.first.ids))
        if self.retold is None:
            return ((*first, (0, self.bridge), (2, self.second.ids)),)
        return first, ((0, self.retold), (2, self.second.ids))


def attempt(chat: ChatFormat, ids: list[int]) -> Attempt:
    thoughts, answer = chat.answer(ids)
    return Attempt(ids, answer or "", answer is None or not ids or ids[-1] not in chat.end_tokens, thoughts)


def first_attempts(generate: Generate, chat: ChatFormat, examples: Sequence[Example]) -> list[Attempt]:
    return [attempt(chat, ids) for ids in generate([chat.first_turn(e.question) for e in examples])]


def second_attempts(
    generate: Generate, chat: ChatFormat, examples: Sequence[Example], first: Sequence[Attempt]
) -> list[Trajectory]:
    """The correction turn after each given first attempt, and what the model then writes."""
    replies = generate([chat.prompt(e.question, y1.ids) for e, y1 in zip(examples, first, strict=True)])
    return [_joined(chat, e, y1, attempt(chat, y2)) for e, y1, y2 in zip(examples, first, replies, strict=True)]


def _joined(chat: ChatFormat, example: Example, first: Attempt, second: Attempt) -> Trajectory:
    retold = chat.prompt(example.question, first.ids) if chat.retells else None
    prompt, bridge = chat.first_turn(example.question), chat.next_turn(first.ids)
    return Trajectory(example, prompt, first, bridge, second, retold)


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
    return [_joined(chat, e, y1, data_attempt(chat, e.correct_answer)) for e, y1 in zip(examples, first, strict=True)]


def collate(trajectories: Sequence[Trajectory], coefs: TurnCoefficients, pad: int) -> dict[str, Tensor]:
    """Right-padded training tensors: input_ids, attention_mask, turn (B, T) and pg_coef, kl_coef (B, T) float32, with a
    row for each sequence of each trajectory, in order.

    A coefficient stands at its token's own position; it is 0 on context and padding.
    """
    rows = [(i, sequence) for i, trajectory in enumerate(trajectories) for sequence in trajectory.sequences]
    b, t = len(rows), max(sum(len(ids) for _, ids in sequence) for _, sequence in rows)
    input_ids = torch.full((b, t), pad, dtype=torch.int64)
    attention_mask = torch.zeros(b, t, dtype=torch.int64)
    turn = torch.zeros(b, t, dtype=torch.int64)
    for row, (_, sequence) in enumerate(rows):
        start = 0
        for which, ids in sequence:
            input_ids[row, start : start + len(ids)] = torch.tensor(ids, dtype=torch.int64)
            turn[row, start : start + len(ids)] = which
            start += len(ids)
        attention_mask[row, :start] = 1
    of = torch.tensor([i for i, _ in rows])
    padded = [torch.cat([torch.zeros(b, 1), c[of]], dim=1) for c in (coefs.pg, coefs.kl)]  # (B, 3), turn 0 is 0
    pg_coef, kl_coef = (c.gather(1, turn) for c in padded)
    tokens = {"input_ids": input_ids, "attention_mask": attention_mask, "turn": turn}
    return tokens | {"pg_coef": pg_coef, "kl_coef": kl_coef}
