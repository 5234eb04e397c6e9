"""Near duplicates: questions that say the same in almost the same words. Imports no torch.

Two questions are near duplicates if they contain the same numbers in the same order and the Jaccard index of their
words and word pairs, |A & B| / |A | B|, is at least the threshold. Questions with different numbers are different
questions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

_CJK = "\u3040-\u30ff\u3400-\u9fff"  # scripts without spaces: each character counts as a word
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")
_THOUSANDS = re.compile(r"(?<![\d,.(\[{])\d{1,3}(?:,\d{3})+(?![\d,])")
_DIGITS_ALONE = bytes(byte if byte in b"0123456789" else ord(" ") for byte in range(256))
# 64 hashes in 16 bands of 4: a pair of Jaccard index 0.8 shares a band with probability 1 - (1 - 0.8^4)^16 = 0.9998
_HASHES, _BANDS = 64, 16
_WINDOW = 10  # neighbours that each question is compared with where many share a band
_SLACK = 0.1  # two standard deviations of a 64-hash estimate of 0.8; candidates are then measured exactly
_BATCH = 20_000


def shingles(question: str) -> set[str]:
    """The words and the pairs of adjacent words."""
    words = _WORD.findall(question)
    return {*words, *map(" ".join, pairwise(words))}


def jaccard(a: set[str], b: set[str]) -> float:
    return len(a & b) / len(a | b) if a or b else 1.0


def number_keys(questions: Iterable[str]) -> NDArray[np.int64]:
    """(n,) int64: a hash of the numbers in each question, in order. It is the same in every process.

    Questions without numbers share one key. 1,000 is 1000; (1,000) is a pair.
    """
    joined = (_THOUSANDS.sub(lambda m: m[0].replace(",", ""), q) if "," in q else q for q in questions)
    numbers = (b" ".join(q.encode().translate(_DIGITS_ALONE).split()) for q in joined)
    return np.frombuffer(b"".join(blake2b(n, digest_size=8).digest() for n in numbers), ">i8").astype(np.int64)


def near_duplicates(
    keys: NDArray[np.int64],
    texts: Callable[[NDArray[np.bool_]], Iterable[str]],
    threshold: float,
    alive: NDArray[np.bool_] | None = None,
) -> list[tuple[tuple[int, str], tuple[int, str]]]:
    """Pairs of near duplicates, each pair once, the earlier question first: ((position, text), (position, text)).

    MinHash (rensa) with locality-sensitive hashing proposes pairs; their exact Jaccard index decides.

    keys: (n,) `number_keys` of n questions in normal form, without exact repeats. alive: (n,) mask of the questions to
    compare. texts: returns the questions of a (n,) mask in order. It is called at most once, with the questions that
    share a key; only these are held in memory, as texts and signatures.
    """
    _, same_numbers, count = np.unique(keys, return_inverse=True, return_counts=True)
    wanted = count[same_numbers] > 1
    if alive is not None:
        wanted &= alive
    if not wanted.any():
        return []
    held = list(texts(wanted))
    position = np.flatnonzero(wanted).tolist()
    pairs = _proposed(held, same_numbers[wanted], threshold - _SLACK)
    near = [(i, j) for i, j in pairs if jaccard(shingles(held[i]), shingles(held[j])) >= threshold]
    return [((position[i], held[i]), (position[j], held[j])) for i, j in near]


def _proposed(texts: Sequence[str], same_numbers: NDArray[np.intp], threshold: float) -> list[tuple[int, int]]:
    """Pairs with the same numbers and a common band whose signatures agree in at least `threshold` of the hashes."""
    signatures = _signatures(texts)
    bands = [_mixed(np.column_stack([same_numbers, part])) for part in np.split(signatures, _BANDS, axis=1)]
    pairs: set[tuple[int, int]] = set()
    for band, other in zip(bands, bands[1:] + bands[:1], strict=True):
        keys = band << np.uint64(24) | other >> np.uint64(40)  # sorts rows that share a second band together
        order = np.argsort(keys)
        keys = keys[order] >> np.uint64(24)
        for distance in range(1, min(_WINDOW, len(texts) - 1) + 1):
            met = np.flatnonzero(keys[distance:] == keys[:-distance])
            a, b = order[met], order[met + distance]
            close = (signatures[a] == signatures[b]).mean(axis=1) >= threshold
            close &= same_numbers[a] == same_numbers[b]
            pairs.update(zip(np.minimum(a, b)[close].tolist(), np.maximum(a, b)[close].tolist(), strict=True))
    return sorted(pairs)


def _mixed(columns: NDArray[np.integer]) -> NDArray[np.uint64]:
    """(n,) hashes of the rows of an integer matrix: multiply and fold, after FNV."""
    mixed = np.full(len(columns), 0xCBF29CE484222325, dtype=np.uint64)
    for column in columns.T.astype(np.uint64):
        mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(32)
    return mixed


def _signatures(texts: Sequence[str]) -> NDArray[np.uint32]:
    """(n, _HASHES) MinHash signatures: the expected share of equal hashes of two rows is their Jaccard index."""
    from rensa import RMinHash

    signatures = np.empty((len(texts), _HASHES), dtype=np.uint32)
    for start in range(0, len(texts), _BATCH):
        sets = [list(shingles(text)) for text in texts[start : start + _BATCH]]
        signatures[start : start + len(sets)] = RMinHash.digest_matrix_from_token_sets(sets, _HASHES, 0).to_rows()
    return signatures
