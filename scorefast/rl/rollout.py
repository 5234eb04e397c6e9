"""Roll out two attempts at each question: the prompts, and the replies of the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import torch

from scorefast.data.example import Example
from scorefast.data.trajectory import Attempt, Trajectory
from scorefast.grading.answer import Grade
from scorefast.model.chat_format import ChatFormat
from scorefast.model.engine import Engine, Follow, Noise, Reply
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
    """What writes replies, by the settings of a recipe. temperature 0 is greedy. batch_size: default, the recipe's."""
    if rollout.engine == "own":
        engine = Engine(policy, batch_size or rollout.batch_size, rollout.max_new_tokens)
        return EngineGenerate(engine, temperature, on_token or (lambda: None), on_replies)
    return partial(
        generate,
        policy,
        max_new_tokens=rollout.max_new_tokens,
        temperature=temperature,
        batch_size=batch_size or rollout.batch_size,
        on_token=on_token,
        on_replies=on_replies,
    )


@dataclass
class EngineGenerate:
    """The rollout engine as a `Generate`, which also writes both turns of a conversation without encoding one again.

    Samples depend on torch's initial seed, the number of the call, the conversation, the turn and the position.
    """

    engine: Engine
    temperature: float
    on_token: Callable[[], None]
    on_replies: Callable[[int], None]
    calls: int = 0

    def __call__(self, prompts: Sequence[list[int]]) -> list[list[int]]:
        return [replies[0].ids for replies in self._converse(prompts, 1)]

    def two_turns(self, chat: ChatFormat, examples: Sequence[Example]) -> list[Trajectory]:
        """One trajectory per example. A question that comes several times in a row is encoded once."""
        runs = [len(list(group)) for _, group in groupby(e.question for e in examples)]
        samples = runs[0] if len(set(runs)) == 1 else 1
        prompts = [chat.first_turn(e.question) for e in examples[::samples]]

        def follow(index: int, replies: list[Reply]) -> list[int] | None:
            return chat.next_turn(replies[0].ids) if len(replies) == 1 else None

        pairs = self._converse(prompts, samples, follow)
        attempts = [[attempt(chat, reply.ids) for reply in replies] for replies in pairs]
        return [_trajectory(chat, e, y1, y2) for e, (y1, y2) in zip(examples, attempts, strict=True)]

    def _converse(
        self, prompts: Sequence[list[int]], samples: int, follow: Follow = lambda index, replies: None
    ) -> list[list[Reply]]:
        noise = Noise(torch.initial_seed() % 2**63, self.calls)
        self.calls += 1
        return self.engine.converse(
            prompts,
            samples,
            follow,
            temperature=self.temperature,
            noise=noise,
            on_token=self.on_token,
            on_replies=self.on_replies,
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
    if isinstance(generate, EngineGenerate) and examples and not chat.retells:
        return generate.two_turns(chat, examples)
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
    return grade_all(two_turn_rollout(generate, chat, examples), grade)


def grade_all(trajectories: Sequence[Trajectory], grade: GradeReply) -> list[Graded]:
    return [Graded(t, grade(t.first.text, t.example), grade(t.second.text, t.example)) for t in trajectories]


def attempt(chat: ChatFormat, ids: list[int]) -> Attempt:
    """The attempt with these sampled token ids."""
    thoughts, answer = chat.answer(ids)
    return Attempt(ids, answer or "", answer is None or not ids or ids[-1] not in chat.end_tokens, thoughts)


def data_attempt(chat: ChatFormat, text: str) -> Attempt:
    """An attempt whose text comes from the data."""
    return attempt(chat, chat.reply(text))
