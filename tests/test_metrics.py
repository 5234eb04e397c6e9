"""Intervals and tests against known values, exhaustive counts and simulation."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from scorefast.data.example import Example
from scorefast.data.trajectory import Attempt, Trajectory
from scorefast.grading.answer import Grade
from scorefast.stats import Graded, mcnemar_exact, paired_bootstrap, summarize, wilson


def graded(pairs: list[tuple[bool, bool]], prefix: str = "q") -> list[Graded]:
    def one(i: int, c1: bool, c2: bool) -> Graded:
        attempts = [Attempt([1], f"{c}", False) for c in (c1, c2)]
        trajectory = Trajectory(Example(f"{prefix}{i}", "?", None, "!"), [], attempts[0], [], attempts[1])
        return Graded(trajectory, Grade(c1, float(c1), str(c1)), Grade(c2, float(c2), str(c2)))

    return [one(i, c1, c2) for i, (c1, c2) in enumerate(pairs)]


def test_summary_of_a_counted_table():
    pairs = [(True, True)] * 50 + [(True, False)] * 5 + [(False, True)] * 20 + [(False, False)] * 25
    r = summarize("x", graded(pairs), samples=2000)
    assert (r.acc_t1, r.acc_t2, r.delta_i2c, r.delta_c2i, r.n) == (0.55, 0.70, 0.20, 0.05, 100)
    assert r.delta == pytest.approx(r.delta_i2c - r.delta_c2i)
    assert r.changed == 0.25
    for name in ("acc_t1", "acc_t2", "delta", "delta_i2c", "delta_c2i"):
        low, high = r.ci95[name]
        assert low <= getattr(r, name) <= high


def test_gains_are_paired_with_the_baseline():
    base, after = graded([(False, False)] * 40), graded([(False, True)] * 30 + [(False, False)] * 10)
    r = summarize("after", after, 2000, base)
    assert (r.gain_t1, r.gain_t2) == (0.0, 0.75)
    with pytest.raises(ValueError, match="different questions"):
        summarize("after", after, 10, graded([(False, False)] * 40, prefix="other"))


def test_wilson_reference_values():
    # Newcombe (1998), table I: 81/263, 15/148, 0/20, 1/29.
    for successes, n, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson(0, 0) == (0.0, 1.0)


def test_mcnemar_reference_values():
    # 10 won, 2 lost: 2 * sum_{i<=2} C(12, i) / 2^12 = 2 * 79 / 4096.
    before = [False] * 10 + [True] * 2 + [True] * 30
    after = [True] * 10 + [False] * 2 + [True] * 30
    assert mcnemar_exact(before, after) == pytest.approx(158 / 4096)
    assert mcnemar_exact([True, False], [True, False]) == 1.0


def test_the_bootstrap_is_reproducible_and_has_a_width_where_nothing_changed():
    same = [True] * 100
    low, high = paired_bootstrap(same, same, 10_000)
    assert -0.05 < low < 0 < high < 0.05
    assert paired_bootstrap(same, same, 10_000) == (low, high)


def test_the_paired_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(1)
    cells, truth = list(product([0, 1], repeat=2)), 0.15 - 0.05
    probability = [0.3, 0.15, 0.05, 0.5]  # (0,0), (0,1) won, (1,0) lost, (1,1)
    hits = 0
    for trial in range(400):
        drawn = rng.choice(4, size=120, p=probability)
        before, after = zip(*(cells[i] for i in drawn), strict=True)
        low, high = paired_bootstrap(before, after, 1000, seed=trial)
        hits += low <= truth <= high
    assert 0.92 <= hits / 400 <= 0.985  # 0.95 within three standard errors of 400 trials
