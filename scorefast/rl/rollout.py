"""Roll out two attempts at each question: the prompts, and the replies of the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from scorefast.data.example import Example
from scorefast.data.trajectory import Attempt, Trajectory
from scorefast.grading.answer import Grade
from scorefast.model.chat_format import ChatFormat
from scorefast.model.generate import generate
from scorefast.model.policy import Policy
from scorefast.schema import Rollout, Stage1, Stage2
from scorefast.stats import Graded

# Token ids of prompts in; the new token ids of each out, with the closing token if it was sampled.
Generate = Callable[[Sequence[list[int]]], list[list[int]]]
GradeReply = Callable[[str, Example], Grade]
RollOut = Callable[[Generate, ChatFormat, Sequence[Example]], list[Trajectory]]


def generator(
    policy: Policy,
    rollout: Rollout,
    temperature: float,
    *,
    batch_size: int | None = None,
    on_token: Callable[[], None] | None = None,
    on_replies: Callable[[int], None] = lambda count: None,
) -> Generate:
    """`generate` with the settings of a recipe. temperature 0 is greedy. batch_size: default, the recipe's."""
    return partial(
        generate,
        policy,
        max_new_tokens=rollout.max_new_tokens,
        temperature=temperature,
        batch_size=batch_size or rollout.batch_size,
        on_token=on_token,
        on_replies=on_replies,
    )


def roll_out(stage: Stage1 | Stage2) -> RollOut:
    """The rollout function of a stage: one trajectory per example. Repeat an example to sample it more than once.

    On-policy: the model writes both attempts. Supervised: the second attempt is the data's correct answer; the first
    is sampled, or it is the data's original answer.
    """
    if stage.on_policy:
        return two_turn_rollout
    return sampled_then_corrected if stage.turns_sampled == 1 else given_then_corrected


def two_turn_rollout(generate: Generate, chat: ChatFormat, examples: Sequence[Example]) -> list[Trajectory]:
    return second_attempts(generate, chat, examples, first_attempts(generate, chat, examples))


def sampled_then_corrected(generate: Generate, chat: ChatFormat, examples: Sequence[Example]) -> list[Trajectory]:
    return supervised_trajectories(chat, examples, first_attempts(generate, chat, examples))


def given_then_corrected(generate: Generate, chat: ChatFormat, examples: Sequence[Example]) -> list[Trajectory]:
    return supervised_trajectories(chat, examples, [data_attempt(chat, e.original_answer or "") for e in examples])


def first_attempts(generate: Generate, chat: ChatFormat, examples: Sequence[Example]) -> list[Attempt]:
    return [attempt(chat, ids) for ids in generate([chat.first_turn(e.question) for e in examples])]


def second_attempts(
    generate: Generate, chat: ChatFormat, examples: Sequence[Example], first: Sequence[Attempt]
) -> list[Trajectory]:
    """Append the correction turn to each first attempt and sample the second attempt."""
    replies = generate([chat.prompt(e.question, y1.ids) for e, y1 in zip(examples, first, strict=True)])
    return [_trajectory(chat, e, y1, attempt(chat, y2)) for e, y1, y2 in zip(examples, first, replies, strict=True)]


def supervised_trajectories(
    chat: ChatFormat, examples: Sequence[Example], first: Sequence[Attempt]
) -> list[Trajectory]:
    """Trajectories whose second attempt is the data's correct answer."""
    seconds = [data_attempt(chat, e.correct_answer) for e in examples]
    return [_trajectory(chat, e, y1, y2) for e, y1, y2 in zip(examples, first, seconds, strict=True)]


def _trajectory(chat: ChatFormat, example: Example, first: Attempt, second: Attempt) -> Trajectory:
    retold = chat.prompt(example.question, first.ids) if chat.retells else None
    prompt, bridge = chat.first_turn(example.question), chat.next_turn(first.ids)
    return Trajectory(example, prompt, first, bridge, second, retold)


def evaluate(generate: Generate, chat: ChatFormat, examples: Sequence[Example], grade: GradeReply) -> list[Graded]:
    """Sample and grade both attempts at each question. `generate` sets the decoding; reported results are greedy."""
    first = first_attempts(generate, chat, examples)
    return grade_all(second_attempts(generate, chat, examples, first), grade)


def grade_all(trajectories: Sequence[Trajectory], grade: GradeReply) -> list[Graded]:
    return [Graded(t, grade(t.first.text, t.example), grade(t.second.text, t.example)) for t in trajectories]


def attempt(chat: ChatFormat, ids: list[int]) -> Attempt:
    """The attempt with these sampled token ids."""
    thoughts, answer = chat.answer(ids)
    return Attempt(ids, answer or "", answer is None or not ids or ids[-1] not in chat.end_tokens, thoughts)


def data_attempt(chat: ChatFormat, text: str) -> Attempt:
    """An attempt whose text comes from the data."""
    return attempt(chat, chat.reply(text))
