"""This process among those that torchrun started. Imports no torch."""

from __future__ import annotations

import os
from typing import NamedTuple

from scorefast.errors import UserError
from scorefast.files.text import shortened

TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE")


class Place(NamedTuple):
    """One process among those of a run."""

    rank: int
    processes: int


def place() -> Place:
    """By torchrun's variables. Raises UserError naming one that is no whole number, or out of range."""
    found = {name: _whole_number(name, os.environ[name]) for name in TORCHRUN if name in os.environ}
    processes = found.get("WORLD_SIZE", 1)
    if processes < 1:
        raise UserError(f"WORLD_SIZE={processes}: expected at least 1; torchrun sets it, unset it otherwise")
    for name in ("RANK", "LOCAL_RANK"):
        if not 0 <= found.get(name, 0) < processes:
            raise UserError(
                f"{name}={found[name]}: expected 0 to {processes - 1}, as WORLD_SIZE is "
                f"{os.environ.get('WORLD_SIZE', 'not set, so 1')}; torchrun sets both, unset them otherwise"
            )
    return Place(found.get("RANK", 0), processes)


def _whole_number(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UserError(
            f"{name}={shortened(text, 50)}: expected a whole number; torchrun sets it, unset it otherwise"
        ) from None
