"""Rank and world size, as torchrun sets them. Imports no torch."""

from __future__ import annotations

import os
from typing import NamedTuple

from scorefast.errors import UserError
from scorefast.files.text import shortened

TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE")


class World(NamedTuple):
    """This process's rank among the `size` processes of a run."""

    rank: int
    size: int


def world() -> World:
    """The rank and world size in torchrun's variables, (0, 1) without them. Raises UserError naming a variable that is
    not a whole number or is out of range."""
    found = {name: _whole_number(name, os.environ[name]) for name in TORCHRUN if name in os.environ}
    size = found.get("WORLD_SIZE", 1)
    if size < 1:
        raise UserError(f"WORLD_SIZE={size}: expected at least 1; torchrun sets it, unset it otherwise")
    for name in ("RANK", "LOCAL_RANK"):
        if not 0 <= found.get(name, 0) < size:
            raise UserError(
                f"{name}={found[name]}: expected 0 to {size - 1}, as WORLD_SIZE is "
                f"{os.environ.get('WORLD_SIZE', 'not set, so 1')}; torchrun sets both, unset them otherwise"
            )
    return World(found.get("RANK", 0), size)


def _whole_number(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UserError(
            f"{name}={shortened(text, 50)}: expected a whole number; torchrun sets it, unset it otherwise"
        ) from None
