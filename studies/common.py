"""What the studies share: a model that answers in two turns, and rates with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, markdown_table
from scorefast.grading.grade import grade
from scorefast.model.generate import generate
from scorefast.model.load import load_policy
from scorefast.model.policy import Policy
from scorefast.runs.checkpoint import open_checkpoint
from scorefast.schema import Recipe
from scorefast.stats import wilson

RESULTS = ROOT / "studies" / "results"
RATES = ("acc_t1", "acc_t2", "delta", "delta_i2c", "delta_c2i")
HEADINGS = ("acc@t1", "acc@t2", "delta", "wrong->right", "right->wrong")


@dataclass(frozen=True)
class Model:
    """A loaded policy and the recipe that says how it decodes. Replies are token ids, closing token included."""

    policy: Policy
    recipe: Recipe

    def first(self, questions: Sequence[str], temperature: float = 0.0) -> list[list[int]]:
        """A first attempt at each question."""
        return self._written([self.policy.chat.first_turn(question) for question in questions], temperature)

    def second(self, questions: Sequence[str], first: Sequence[list[int]], temperature: float = 0.0) -> list[list[int]]:
        """A second attempt after each given first one and the correction turn."""
        pairs = zip(questions, first, strict=True)
        return self._written([self.policy.chat.prompt(question, reply) for question, reply in pairs], temperature)

    def _written(self, prompts: list[list[int]], temperature: float) -> list[list[int]]:
        settings = self.recipe.rollout
        return generate(
            self.policy,
            prompts,
            max_new_tokens=settings.max_new_tokens,
            temperature=temperature,
            batch_size=settings.batch_size,
        )

    def reply(self, text: str) -> list[int]:
        """The ids of a whole reply with this text."""
        return self.policy.chat.reply(text)

    def text(self, reply: list[int]) -> str:
        """What a reply says after its thoughts; empty where these never close."""
        return self.policy.chat.answer(reply)[1] or ""


def load_model(recipe: Recipe, checkpoint: Path | None = None) -> Model:
    """The checkpoint, or without one the recipe's base model."""
    return Model(load_policy(recipe, open_checkpoint(str(checkpoint)) if checkpoint else None), recipe)


def is_number(text: str, reference: str) -> bool:
    """Whether the reply's number is the reference's, by the numeric grader."""
    return grade(text, reference, "numeric").correct


def rate(hits: Sequence[bool]) -> dict[str, Any]:
    """The share of hits with its 95 % Wilson interval, under the names of `eval --probe`."""
    return {"right_after": sum(hits) / len(hits), "ci95": wilson(sum(hits), len(hits)), "n": len(hits)}


def percent(value: float, interval: Sequence[float], sign: str = "") -> str:
    """A fraction and its interval in per cent: 36.3 [31.1, 41.9]. sign: "+" shows it."""
    low, high = interval
    return f"{100 * value:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


def rates_table(results: Sequence[dict[str, Any]]) -> list[str]:
    """One row a checkpoint: the rates of `eval --json` with their intervals."""
    rows = [[r["name"], *(percent(r[key], r["ci95"][key]) for key in RATES)] for r in results]
    return markdown_table(["", *HEADINGS], rows)
