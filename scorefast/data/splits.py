"""Assign a question to a split by a hash of its text. Imports no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from scorefast.data.example import SPLITS, Split
from scorefast.files.text import normalized
from scorefast.schema import Data


def question_digest(normal_form: str) -> bytes:
    return hashlib.sha256(normal_form.encode()).digest()


def hash_positions(digests: Sequence[bytes]) -> NDArray[np.floating]:
    """The first 48 bits of each digest as a fraction in [0, 1)."""
    return (np.frombuffer(b"".join(digests), ">u8")[::4] >> np.uint64(16)) * 2.0**-48


def split_position(question: str) -> float:
    """Position of a question in [0, 1), by SHA-256 of its normal form: the same on every machine and in every version.

    A split is an interval of positions, so adding rows never moves a row from one split to another.
    """
    return float(hash_positions([question_digest(normalized(question))])[0])


def split_of(question: str, settings: Data) -> Split:
    """test = [0, t), validation = [t, t + v), train = [t + v, 1) of `split_position`."""
    return SPLITS[splits_at(np.array([split_position(question)]), settings)[0]]


def splits_at(positions: NDArray[np.floating], settings: Data) -> NDArray[np.intp]:
    """Indices into SPLITS."""
    test, validation = settings.test_fraction, settings.validation_fraction
    return np.select([positions < test, positions < test + validation], [2, 1], 0)


def split_settings(settings: Data) -> dict[str, float]:
    """The settings that determine the split of a question."""
    return settings.model_dump(include={"test_fraction", "validation_fraction", "near_duplicates"})
