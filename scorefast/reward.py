"""Rewards of attempts, from grades or a function of the user's, and their shaping in Stage II. Imports no torch."""

from __future__ import annotations

import importlib
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from scorefast.answers import Grade
from scorefast.data import Example
from scorefast.grading import auto_grader, grade, unusable_reference
from scorefast.recipe import GraderName, OriginReward, UserError
from scorefast.untrusted import shortened

# TRL's signature: completions (and prompts) as lists of chat messages, every column as a keyword list; one float each.
RewardFunction = Callable[..., Sequence[float]]


def chosen_grader(example: Example, grader: GraderName) -> GraderName:
    """The row's own grader, else `grader`; where that is auto, the one that fits the reference."""
    own = example.grader or grader
    return auto_grader(example.correct_answer) if own == "auto" else own


def check_references(examples: Iterable[Example], grader: GraderName, *, some: bool = False) -> list[str]:
    """One line for each reason why no reply can be right by some rows' reference and grader.

    Raises UserError where that is so for every row and `some` have to be usable.
    """
    rows = list(examples)
    reasons = Counter(unusable_reference(e.correct_answer, e.grader or grader) for e in rows)
    usable = reasons.pop(None, 0)
    if some and reasons and not usable:
        raise UserError(f"no reply can ever be graded right, by any of {len(rows)} rows: {next(iter(reasons))}")
    return [f"{n} of {len(rows)} rows can never be graded right: {reason}" for reason, n in reasons.items()]


def grade_example(reply: str, example: Example, grader: GraderName) -> Grade:
    """By the row's own grader where the data names one, else by `grader`."""
    return grade(reply, example.correct_answer, example.grader or grader, example.question)


def correctness_reward(
    completions: Sequence[Any], correct_answer: Sequence[str], grader: GraderName = "auto", **_: Any
) -> list[float]:
    """1.0 for each correct completion, else 0.0, in TRL's signature: for use in a TRL trainer, and as a pattern."""
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [float(grade(text, answer, grader).correct) for text, answer in zip(texts, correct_answer, strict=True)]


def load_reward(name: str) -> RewardFunction:
    """The function of `module:function`; modules beside the working directory are found. Raises UserError."""
    module, colon, function = name.partition(":")
    if not colon or not module or not function:
        raise UserError(f"reward.function {name!r}: expected module:function, for example my_rewards:length_reward")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # to stay: the function may import its neighbours when it is called
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(f"reward.function {name!r}: {error}") from None
    except Exception as error:  # the module is the user's: it can fail in any way
        raise UserError(f"reward.function {name!r}: {module} fails when imported: {_with_type(error)}") from None
    if not callable(found):
        raise UserError(f"reward.function {name!r}: is not a function")
    return found


def rewards_of(
    function: RewardFunction, examples: Sequence[Example], prompts: Sequence[list[str]], replies: Sequence[str]
) -> list[float]:
    """What `function` gives each reply. prompts: the messages before each reply, user and assistant in turn.

    Raises UserError where the function fails or returns anything but one number a reply, and names the row.
    """
    try:
        return _called(function, examples, prompts, replies)
    except (Exception, SystemExit) as error:
        for example, prompt, reply in zip(examples, prompts, replies, strict=True):
            try:
                _called(function, [example], [prompt], [reply])
            except (Exception, SystemExit) as alone:
                raise UserError(f"reward function: row {_row(example)}: {_with_type(alone)}") from alone
        raise UserError(f"reward function: {_with_type(error)} (on {len(replies)} rows at once)") from error


def try_reward(function: RewardFunction, examples: Sequence[Example], correction: str) -> None:
    """Call it as training will, on the first attempts and the correct answers of a few rows.

    Raises UserError, also where a reward is not finite (a step in training that meets one is skipped).
    """
    few = list(examples[:4])
    for replies in ([e.original_answer or "" for e in few], [e.correct_answer for e in few]):
        for turns in ([[e.question] for e in few], [[e.question, e.original_answer or "", correction] for e in few]):
            for example, value in zip(few, rewards_of(function, few, turns, replies), strict=True):
                if not math.isfinite(value):
                    raise UserError(f"reward function: row {_row(example)}: returned {value}, which is not finite")


def _called(
    function: RewardFunction, examples: Sequence[Example], prompts: Sequence[list[str]], replies: Sequence[str]
) -> list[float]:
    others = {name for e in examples for name in e.extra or {}}
    if taken := others & {"prompts", "completions"}:
        raise ValueError(
            f"a column of the data is called {min(taken)}, which TRL's signature has for itself: rename it"
        )
    columns: dict[str, list[Any]] = {name: [(e.extra or {}).get(name) for e in examples] for name in others}
    columns.setdefault("solution", [e.correct_answer for e in examples])  # the name that TRL's own rewards use
    for name in ("id", "question", "original_answer", "correct_answer"):
        columns[name] = [getattr(e, name) for e in examples]
    roles = ("user", "assistant")
    result = function(
        prompts=[[{"role": roles[i % 2], "content": text} for i, text in enumerate(p)] for p in prompts],
        completions=[[{"role": "assistant", "content": reply}] for reply in replies],
        **columns,
    )
    values = list(result)
    if len(values) != len(replies):
        raise ValueError(f"returned {len(values)} rewards for {len(replies)} completions")
    return [_number(value) for value in values]


def _number(value: Any) -> float:
    try:
        return float(value)  # NumPy's and torch's scalars too
    except (TypeError, ValueError):
        raise ValueError(f"returned {value!r}, which is no number") from None


def _row(example: Example) -> str:
    return f"{example.id} ({example.question[:60]!r})"


def _with_type(error: BaseException) -> str:
    return f"{type(error).__name__}: {shortened(str(error))}"


def paper_shaped(r1: float, r2: float, alpha: float) -> float:
    """r2 + alpha * (r2 - r1): the second attempt's reward in Stage II (arXiv 2409.12917, section 5.2)."""
    return r2 + alpha * (r2 - r1)


def origin_shaped(first: Grade, second: Grade, values: OriginReward) -> float:
    """The origin's reward: what the second attempt did to the first decides, not its correctness alone."""
    if second.correct:
        return values.kept if first.correct else values.corrected
    if first.correct or second.score < first.score:
        return values.worse
    return values.partial if second.score > first.score else values.unchanged
