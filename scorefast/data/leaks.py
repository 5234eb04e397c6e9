"""Near duplicates across splits, and of a benchmark that must not stand in the data. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from scorefast.data.duplicates import near_duplicates, number_keys
from scorefast.data.example import HELD_OUT_FIRST, SPLITS, Split
from scorefast.data.reading import Kept
from scorefast.files.text import normalized

FAMILY = 0.1  # share of a split's questions left out as near duplicates that is worth a word


class Index:
    """What is held in memory of the kept rows of each split: their `number_keys` and places, 16 bytes a row."""

    def __init__(self) -> None:
        self._parts: dict[Split, list[np.ndarray]] = {name: [np.empty((2, 0), dtype=np.int64)] for name in SPLITS}

    def add(self, part: Kept) -> None:
        both = np.stack([part.keys, part.places])
        for i, name in enumerate(SPLITS):
            self._parts[name].append(both[:, part.splits == i])

    def keys(self, name: Split) -> np.ndarray:
        return np.concatenate([keys for keys, _ in self._parts[name]])

    def places(self, name: Split) -> list[int]:
        found: list[int] = np.concatenate([places for _, places in self._parts[name]]).tolist()
        return found


def find_leaks(
    questions: Mapping[Split, Iterable[str]],
    index: Index,
    threshold: float,
    against: Sequence[str] = (),
    name: str = "",
) -> tuple[dict[Split, dict[int, tuple[str, str]]], int]:
    """Near duplicates across splits, and of the questions of `against`: the copy nearer to training is to be dropped.

    questions: by split, read only where a key of the index comes more than once. threshold: of the Jaccard index; 0
    looks for none. Returns ({split: {position in it: (reason, normal form of the question that it nearly repeats)}},
    pairs of near duplicates within one split, which stay).
    """
    leaks: dict[Split, dict[int, tuple[str, str]]] = {}
    if not threshold:
        return leaks, 0
    benchmark = f"question of {name}"
    sources = {benchmark: against} | {f"{split} question": questions[split] for split in HELD_OUT_FIRST}
    parts = [number_keys(map(normalized, against)), *map(index.keys, HELD_OUT_FIRST)]
    keys = np.concatenate(parts)
    starts = np.cumsum([0, *map(len, parts)]).tolist()
    group = np.repeat(np.arange(4), list(map(len, parts)))

    def texts(wanted: np.ndarray) -> Iterator[str]:
        everywhere = (question for asked in sources.values() for question in asked)
        return (normalized(question) for question, is_wanted in zip(everywhere, wanted, strict=True) if is_wanted)

    names = list(sources)
    alive = np.ones(len(keys), dtype=bool)
    while True:  # among many alike, one pass compares each with its neighbours only
        found = near_duplicates(keys, texts, threshold, alive)
        across = [pair for pair in found if group[pair[0][0]] != group[pair[1][0]]]
        for (i, earlier), (j, _) in across:
            split = leaks.setdefault(HELD_OUT_FIRST[group[j] - 1], {})
            split.setdefault(j - starts[group[j]], (f"near duplicate of a {names[group[i]]}", earlier))
            alive[j] = False
        if not across:
            return leaks, sum(int(group[i]) > 0 for (i, _), _ in found)


def note_families(
    leaks: Mapping[Split, Mapping[int, Any]], questions: Mapping[Split, Iterable[str]], note: Callable[[str], None]
) -> None:
    """Says where so many of a split's questions are left out that they may be variants meant to stay."""
    for name, found in leaks.items():
        if len(found) > FAMILY * (rows := sum(1 for _ in questions[name])):
            note(
                f"{len(found)} of {rows} {name} questions nearly repeat held-out ones and are left out; if they are "
                "other questions to you, raise data.near_duplicates (0 looks for none)"
            )
