"""What once failed, again; and a few new inputs of each kind. `python -m tests.harness.fuzz run` tries many."""

from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import HealthCheck, given, settings

from scorefast.errors import UserError
from tests.harness.fuzz import CORPUS
from tests.harness.fuzz_inputs import inputs
from tests.harness.fuzz_targets import TARGETS, TooSlow, bounded, check

EXAMPLES = {"recipe": 200, "set": 200, "source": 150, "answer": 200, "math": 5, "checkpoint": 20, "model": 20}
EXAMPLES |= {"parquet": 150, "prepared": 150, "run": 4, "chat": 10, "tokenizer": 10, "generation": 15}


@pytest.fixture(scope="module", autouse=True)
def everything_is_imported():
    """The limit of an input's time is for the input, not for what is imported and made with the first one."""
    for target, sound in (
        ("prepared", b""),
        ("parquet", b""),
        ("checkpoint", b"[]"),
        ("model", b"[]"),
        ("run", b"[]"),
        ("chat", b"1 + 1?"),
        ("math", b"1"),
    ):
        with contextlib.suppress(UserError):
            TARGETS[target](sound)


@pytest.mark.parametrize("name", sorted(f"{path.parent.name}/{path.name}" for path in CORPUS.glob("*/*")))
def test_what_once_failed_is_taken_or_refused(name):
    check(name.split("/")[0], (CORPUS / name).read_bytes())


@pytest.mark.parametrize("target", TARGETS)
def test_new_inputs_are_taken_or_refused(target):
    found = {True: 0, False: 0}

    @settings(max_examples=EXAMPLES[target], derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
    @given(inputs(target))
    def tried(data):
        found[check(target, data)] += 1

    tried()
    assert sum(found.values()) >= EXAMPLES[target]
    if target in ("recipe", "checkpoint", "model", "parquet", "prepared"):
        assert min(found.values()) > 0, "inputs of which none is ever taken, or none refused, show little"


def test_an_input_that_takes_too_long_is_found():
    with pytest.raises(TooSlow, match="more than 1 s"), bounded(1):
        time.sleep(60)
