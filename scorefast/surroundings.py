"""What a process finds around it: its streams, and its place among other processes. Imports no torch."""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
from typing import NamedTuple

from scorefast.untrusted import UserError, shortened

TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
LAUNCHERS = (*TORCHRUN, "ACCELERATE_", "FORK_LAUNCHED", "HF_", "MV2_", "OMPI_", "PMI_")  # how their variables begin


class Place(NamedTuple):
    """One process among those of a run."""

    rank: int
    processes: int


def settle_in() -> None:
    """Once, as a command begins: all three streams are there, and none fails on a character that its encoding lacks.

    What cannot be written becomes \\uXXXX, which JSON reads back; what cannot be read becomes U+FFFD. A variable of a
    launcher that is empty counts as one that is not set: accelerate and huggingface_hub fail on some of them.
    """
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by who called, as with 2>&-
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace" if name == "stdin" else ESCAPED)
    for name in [name for name, value in os.environ.items() if name.startswith(LAUNCHERS) and not value.strip()]:
        del os.environ[name]


def _escape(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


ESCAPED = "scorefast.escaped"
codecs.register_error(ESCAPED, _escape)


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
