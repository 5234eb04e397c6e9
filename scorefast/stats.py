"""Statistics of paired attempts: rates, differences and confidence intervals. Pure functions; imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from scorefast.grading.answer import Grade

if TYPE_CHECKING:
    from scorefast.data.trajectory import Trajectory
    from scorefast.files.bounded import JsonObject

Interval = tuple[float, float]
Z95 = 1.959963984540054


class Rate(TypedDict):
    """right_after: the share that is right after turn 2, None if n is 0. ci95: its Wilson interval."""

    right_after: float | None
    ci95: Interval
    n: int


ProbeRates = dict[str, Rate]  # by the kind of replacement


@dataclass(frozen=True)
class Result:
    """The metrics of one checkpoint, as fractions.

    ci95: Wilson intervals of the four rates, and paired bootstrap intervals of delta and of the gains over a baseline.
    """

    name: str
    acc_t1: float
    acc_t2: float
    delta: float
    delta_i2c: float
    delta_c2i: float
    n: int
    ci95: dict[str, Interval]
    mcnemar_p: float
    changed: float
    truncated: float
    unsure: float = 0.0
    gain_t1: float | None = None
    gain_t2: float | None = None

    def as_json(self) -> JsonObject:
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Graded:
    """One question's two attempts and their grades."""

    trajectory: Trajectory
    first: Grade
    second: Grade

    def as_json(self) -> dict[str, str | bool]:
        example = self.trajectory.example
        return {
            "id": example.id,
            "question": example.question,
            "correct_answer": example.correct_answer,
            "attempt1": self.trajectory.first.text,
            "attempt2": self.trajectory.second.text,
            "correct1": self.first.correct,
            "correct2": self.second.correct,
            "reason1": self.first.reason,
            "reason2": self.second.reason,
            "unsure1": self.first.unsure,
            "unsure2": self.second.unsure,
        }


def wilson(successes: int, n: int) -> Interval:
    """95 % Wilson score interval of a proportion. Unlike the bootstrap, it keeps a width at 0 and 1."""
    if n == 0:
        return (0.0, 1.0)
    p, z2 = successes / n, Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # At 0 and n the bounds are exactly p; rounding must not move them past it.
    return (max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)))


def paired_bootstrap(before: Sequence[bool], after: Sequence[bool], samples: int, seed: int = 0) -> Interval:
    """95 % percentile interval of mean(after) - mean(before), resampling questions.

    A resample depends only on the counts of (lost, tied, won) pairs, so it is one multinomial draw. The counts are
    smoothed by (1/2, 1, 1/2), as Agresti and Min (2005) do for paired proportions. The interval then keeps a width
    where no pair, or every pair, changed.
    """
    difference = np.asarray(after, dtype=int) - np.asarray(before, dtype=int)
    n = len(difference)
    counts = np.array([(difference == d).sum() for d in (-1, 0, 1)])
    smoothed = (counts + np.array([0.5, 1.0, 0.5])) / (n + 2)
    draws = np.random.default_rng(seed).multinomial(n, smoothed, size=samples)
    low, high = np.percentile((draws[:, 2] - draws[:, 0]) / n, [2.5, 97.5])
    return (float(low), float(high))


def mcnemar_exact(before: Sequence[bool], after: Sequence[bool]) -> float:
    """Two-sided p-value of McNemar's exact test: a binomial test with p = 1/2 on the pairs that changed."""
    won = sum(b and not a for a, b in zip(before, after, strict=True))
    lost = sum(a and not b for a, b in zip(before, after, strict=True))
    n, k = won + lost, min(won, lost)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)


def rates(graded: Sequence[Graded]) -> dict[str, float]:
    """The paired rates as fractions.

    changed: the graded answers of the two turns differ. unsure: the share of all replies that the grader's rules cannot
    decide and count as wrong.
    """
    n = len(graded)
    i2c = sum(not g.first.correct and g.second.correct for g in graded) / n
    c2i = sum(g.first.correct and not g.second.correct for g in graded) / n
    acc_t1, acc_t2 = (sum(getattr(g, turn).correct for g in graded) / n for turn in ("first", "second"))
    return {
        "acc_t1": acc_t1,
        "acc_t2": acc_t2,
        "delta": acc_t2 - acc_t1,
        "delta_i2c": i2c,
        "delta_c2i": c2i,
        "changed": sum(g.first.answer != g.second.answer for g in graded) / n,
        "truncated": sum(g.trajectory.first.truncated or g.trajectory.second.truncated for g in graded) / n,
        "unsure": sum(g.first.unsure + g.second.unsure for g in graded) / (2 * n),
    }


def summarize(name: str, graded: Sequence[Graded], samples: int, baseline: Sequence[Graded] | None = None) -> Result:
    """The metrics of one checkpoint. Gains over `baseline` are paired by question."""
    n, found = len(graded), rates(graded)
    c1, c2 = [g.first.correct for g in graded], [g.second.correct for g in graded]
    ci95 = {name: wilson(round(found[name] * n), n) for name in ("acc_t1", "acc_t2", "delta_i2c", "delta_c2i")}
    ci95["delta"] = paired_bootstrap(c1, c2, samples)
    gains: dict[str, float] = {}
    if baseline is not None:
        if [g.trajectory.example.id for g in baseline] != [g.trajectory.example.id for g in graded]:
            raise ValueError("summarize: the baseline answered different questions, so pairing is impossible")
        for turn, after in (("first", c1), ("second", c2)):
            before = [getattr(g, turn).correct for g in baseline]
            key = "gain_t1" if turn == "first" else "gain_t2"
            gains[key] = (sum(after) - sum(before)) / n
            ci95[key] = paired_bootstrap(before, after, samples)
    return Result(name=name, n=n, ci95=ci95, mcnemar_p=mcnemar_exact(c1, c2), **found, **gains)
