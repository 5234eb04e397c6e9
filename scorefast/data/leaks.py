"""Find near duplicates across splits, and of benchmark questions that must not be trained on. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from scorefast.data.duplicates import near_duplicates, number_keys
from scorefast.data.example import HELD_OUT_FIRST, SPLITS, Split
from scorefast.data.reading import Kept
from scorefast.files.text import normalized

NOTED_SHARE = 0.1  # share of a split's questions dropped as near duplicates, above which a note is given


class Index:
    """The `number_keys` and places of the kept rows of each split: 16 bytes of memory per row."""

    def __init__(self) -> None:
        self._parts: dict[Split, list[NDArray[np.int64]]] = {
            name: [np.empty((2, 0), dtype=np.int64)] for name in SPLITS
        }

    def add(self, part: Kept) -> None:
        both = np.stack([part.keys, part.places])
        for i, name in enumerate(SPLITS):
            self._parts[name].append(both[:, part.splits == i])

    def keys(self, name: Split) -> NDArray[np.int64]:
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
    """Find near duplicates across splits and of the questions in `against`.

    Of each pair the copy nearer to training is the leak to drop; pairs within one split stay.

    questions: by split, read only if a key of the index repeats. threshold: of the Jaccard index; 0 turns the search
    off. name: of the benchmark `against`. Returns ({split: {position: (reason, normal form of the question that it
    nearly repeats)}}, number of pairs within one split).
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

    def texts(wanted: NDArray[np.bool_]) -> Iterator[str]:
        every = (question for asked in sources.values() for question in asked)
        return (normalized(question) for question, is_wanted in zip(every, wanted, strict=True) if is_wanted)

    names = list(sources)
    alive = np.ones(len(keys), dtype=bool)
    while True:  # one pass compares each question with its neighbours only
        found = near_duplicates(keys, texts, threshold, alive)
        across = [pair for pair in found if group[pair[0][0]] != group[pair[1][0]]]
        for (i, earlier), (j, _) in across:
            split = leaks.setdefault(HELD_OUT_FIRST[group[j] - 1], {})
            split.setdefault(j - starts[group[j]], (f"near duplicate of a {names[group[i]]}", earlier))
            alive[j] = False
        if not across:
            return leaks, sum(int(group[i]) > 0 for (i, _), _ in found)


def note_heavy_losses(
    leaks: Mapping[Split, Mapping[int, object]], questions: Mapping[Split, Iterable[str]], note: Callable[[str], None]
) -> None:
    """Notes a split that loses many questions as near duplicates: they may be intended variants."""
    for name, found in leaks.items():
        if len(found) > NOTED_SHARE * (rows := sum(1 for _ in questions[name])):
            note(
                f"{len(found)} of {rows} {name} questions nearly repeat held-out ones and are left out; to keep such "
                "variants, raise data.near_duplicates (0 turns the search off)"
            )
