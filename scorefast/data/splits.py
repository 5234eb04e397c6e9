"""The split of a question, decided by a hash of its text. Imports no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from scorefast.data.example import SPLITS, Split
from scorefast.files.text import normalized
from scorefast.schema import Data


def question_digest(normal_form: str) -> bytes:
    return hashlib.sha256(normal_form.encode()).digest()


def hash_positions(digests: Sequence[bytes]) -> np.ndarray:
    """The first 48 bits of each digest as a fraction."""
    return (np.frombuffer(b"".join(digests), ">u8")[::4] >> np.uint64(16)) * 2.0**-48


def split_position(question: str) -> float:
    """Where a question stands in [0, 1), by SHA-256 of its normal form: the same on every machine, for ever.

    A split is an interval of it, so adding rows never moves a row from one split to another.
    """
    return float(hash_positions([question_digest(normalized(question))])[0])


def split_of(question: str, settings: Data) -> Split:
    """test = [0, t), validation = [t, t + v), train = [t + v, 1) of `split_position`."""
    return SPLITS[splits_at(np.array([split_position(question)]), settings)[0]]


def splits_at(positions: np.ndarray, settings: Data) -> np.ndarray:
    """Positions in SPLITS."""
    test, validation = settings.test_fraction, settings.validation_fraction
    return np.select([positions < test, positions < test + validation], [2, 1], 0)


def split_settings(settings: Data) -> dict[str, float]:
    """What decides which side of a split a question stands on."""
    return settings.model_dump(include={"test_fraction", "validation_fraction", "near_duplicates"})
