"""Two attempts at each question: what the model is asked, and what it writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from scorefast.data.example import Example
from scorefast.model.chat_format import ChatFormat
from scorefast.rl.trajectory import Attempt, Trajectory, attempt, data_attempt

# Prompts in, the new tokens of each out (closing token included where one was sampled).
Generate = Callable[[Sequence[list[int]]], list[list[int]]]


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


def supervised_trajectories(
    chat: ChatFormat, examples: Sequence[Example], first: Sequence[Attempt]
) -> list[Trajectory]:
    """Trajectories whose second attempt is the data's correct answer."""
    return [_joined(chat, e, y1, data_attempt(chat, e.correct_answer)) for e, y1 in zip(examples, first, strict=True)]
