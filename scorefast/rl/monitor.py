"""Signs that a run goes wrong, read from its own metrics: what is seen, and what to turn. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

WINDOW = 5  # steps that a figure is averaged over, now and at the beginning
SOLVED = 0.98  # where second attempts are this accurate, attempts that all look alike are no bad sign

NEEDED = {"truncated", "acc_t2", "changed", "edit_distance", "advantage_zero", "length_t2"}
# What to turn, by sign; {stage} is the stage of the recipe.
TURN = {
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
    """{name: what is seen} in the last WINDOW on-policy steps of `history`, the lines of metrics.jsonl.

    repeats: second attempts are the first ones again; no_signal: the samples of a question are all rewarded alike;
    narrow, wide: the entropy of sampling against that of the run's first steps; length: that of second attempts,
    likewise; cut: attempts reach the length limit.
    """
    steps = [m for m in history if "loss" in m and "acc_t2" in m and not m.get("skipped")]
    if len(steps) < WINDOW:
        return {}
    now, start = (_means(part) for part in (steps[-WINDOW:], steps[:WINDOW]))
    found: dict[str, str] = {}
    if not now.keys() & start.keys() >= NEEDED:  # they were not finite, or the log is not of ours
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
            f"{now['advantage_zero']:.0%} of samples have no advantage: their question's are all alike, or unrewarded"
        )
    if len(steps) < 2 * WINDOW:
        return found
    if "entropy" in now and "entropy" in start:
        change = f"entropy went from {start['entropy']:.3f} to {now['entropy']:.3f} nats a token"
        if now["entropy"] < 0.1 * start["entropy"]:
            found["narrow"] = f"sampling has narrowed: {change}"
        if now["entropy"] > max(1.0, 3 * start["entropy"]):
            found["wide"] = f"replies dissolve: {change}"
    if not start["length_t2"] / 3 <= now["length_t2"] <= 3 * start["length_t2"]:
        found["length"] = f"second attempts went from {start['length_t2']:.0f} to {now['length_t2']:.0f} tokens"
    return found


def remedy(name: str, stage: str) -> str:
    return TURN.get(name, "").format(stage=stage)


def consecutive_skips(history: Sequence[Mapping[str, Any]]) -> int:
    """How many of the last steps were not taken."""
    count = 0
    for line in reversed([m for m in history if "loss" in m]):
        if not line.get("skipped"):
            break
        count += 1
    return count


def _means(steps: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of every metric that each step has as a finite number."""
    names = set.intersection(*(set(m) for m in steps))
    columns = {name: [m[name] for m in steps] for name in names}
    return {
        name: sum(values) / len(values)
        for name, values in columns.items()
        if all(isinstance(v, int | float) and math.isfinite(v) for v in values)
    }
