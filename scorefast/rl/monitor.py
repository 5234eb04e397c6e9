"""Detect signs of collapse in a run's metrics, and name a remedy for each. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

WINDOW = 5  # steps in each average: the last ones and the first ones of a run
SOLVED = 0.98  # above this accuracy of second attempts, attempts that are all alike are not a warning

NEEDED = {"truncated", "acc_t2", "changed", "edit_distance", "advantage_zero", "length_t2"}
# By sign; {stage} is the stage of the recipe.
REMEDIES = {
    "cut": "raise rollout.max_new_tokens",
    "repeats": "raise {stage}.learning_rate or rollout.temperature; Stage II: raise stage2.alpha, or start it from a "
    "Stage I checkpoint with --from",
    "no_signal": "raise {stage}.samples_per_question or rollout.temperature, or take questions that are sometimes "
    "answered right",
    "narrow": "raise {stage}.beta1 or lower {stage}.learning_rate",
    "wide": "raise {stage}.beta1 or lower {stage}.learning_rate",
    "length": "read the transcripts; raise {stage}.beta1 or lower {stage}.learning_rate",
    "skipped": "lower {stage}.learning_rate; look at the reward function and at {stage}.max_kl",
}


def signs(history: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """{sign: one line on it} for the last WINDOW on-policy steps of `history`, the lines of metrics.jsonl.

    cut: attempts reach the length limit. repeats: second attempts repeat the first ones. no_signal: all samples of a
    question have the same reward. narrow, wide: the sampling entropy, against that of the run's first WINDOW steps.
    length: the length of second attempts, against the same steps.
    """
    steps = [m for m in history if "loss" in m and "acc_t2" in m and not m.get("skipped")]
    if len(steps) < WINDOW:
        return {}
    now, start = (_means(part) for part in (steps[-WINDOW:], steps[:WINDOW]))
    found: dict[str, str] = {}
    if not now.keys() & start.keys() >= NEEDED:  # some metric was not finite or is missing
        return found
    if now["truncated"] > 0.2:
        found["cut"] = f"{now['truncated']:.0%} of attempts are cut off"
    if now["acc_t2"] >= SOLVED:
        return found
    if now["changed"] < 0.02 or now["edit_distance"] < 0.02:
        found["repeats"] = (
            f"turn 2 repeats turn 1: {now['changed']:.0%} of answers change, edit distance {now['edit_distance']:.3f}"
        )
    if now["advantage_zero"] > 0.9:
        found["no_signal"] = (
            f"{now['advantage_zero']:.0%} of samples have no advantage: all samples of their question have the same "
            "reward, or none has one"
        )
    if len(steps) < 2 * WINDOW:
        return found
    if "entropy" in now and "entropy" in start:
        change = f"entropy went from {start['entropy']:.3f} to {now['entropy']:.3f} nats a token"
        if now["entropy"] < 0.1 * start["entropy"]:
            found["narrow"] = f"sampling has narrowed: {change}"
        if now["entropy"] > max(1.0, 3 * start["entropy"]):
            found["wide"] = f"sampling has become nearly random: {change}"
    if not start["length_t2"] / 3 <= now["length_t2"] <= 3 * start["length_t2"]:
        found["length"] = f"second attempts went from {start['length_t2']:.0f} to {now['length_t2']:.0f} tokens"
    return found


def remedy(sign: str, stage: str) -> str:
    """The keys to change, or an empty string for an unknown sign."""
    return REMEDIES.get(sign, "").format(stage=stage)


def consecutive_skips(history: Sequence[Mapping[str, Any]]) -> int:
    """The number of skipped steps at the end of `history`."""
    count = 0
    for line in reversed([m for m in history if "loss" in m]):
        if not line.get("skipped"):
            break
        count += 1
    return count


def _means(steps: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean of every metric that is a finite number in all steps."""
    names = set.intersection(*(set(m) for m in steps))
    columns = {name: [m[name] for m in steps] for name in names}
    return {
        name: sum(values) / len(values)
        for name, values in columns.items()
        if all(isinstance(v, int | float) and math.isfinite(v) for v in values)
    }
