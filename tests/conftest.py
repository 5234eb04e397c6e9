"""Everything here runs the real embedded model; nothing is mocked."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scorefast.data.example import Dataset, Example
from scorefast.runs.job import Job
from scorefast.schema import Recipe, StageName

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side, and the tensors are tiny
os.environ["HF_HUB_OFFLINE"] = "1"

REPOSITORY = Path(__file__).parent.parent
NO_NETWORK = REPOSITORY / "tests" / "no_network"
SHIPPED = REPOSITORY / "data" / "score.csv"


def scorefast(
    *arguments: object, cwd: Path, stdin: str | None = None, offline: bool = False
) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it, in its own process, which ends with exit code 97 where it reaches for the
    network: every test of a command is also a test that it does not. `offline`: as with HF_HUB_OFFLINE=1."""
    environment = {name: value for name, value in os.environ.items() if offline or name != "HF_HUB_OFFLINE"}
    path = [str(NO_NETWORK), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [sys.executable, "-m", "scorefast", *map(str, arguments)],
        cwd=cwd,
        env=environment | {"PYTHONPATH": os.pathsep.join(path)},
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def scorefast_here(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command's own `main` in this process: for what ends early, without importing everything once more."""
    from scorefast.cli import main

    out, err, code, before = io.StringIO(), io.StringIO(), None, sys.argv
    sys.argv = ["scorefast", *map(str, arguments)]
    try:
        with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as end:
        code = end.code
    finally:
        sys.argv = before
    assert isinstance(code, int)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def job_on(name: StageName, recipe: Recipe, examples: list[Example], folder: Path) -> Job:
    """A job that trains on these examples, and validates on none."""
    return Job(name, recipe, Dataset("test", len(examples), {}, {"train": examples, "validation": []}), None, folder)


# A few short steps on a few questions: enough to exercise everything, not to learn.
QUICK = [
    *("--set", "stage1.max_steps=2", "--set", "stage2.max_steps=2"),
    *("--set", "stage1.questions_per_step=2", "--set", "stage2.questions_per_step=2"),
    *("--set", "stage1.eval_steps=2", "--set", "stage2.eval_steps=2"),
    *("--set", "eval.max_questions=12"),
]


@pytest.fixture(scope="session")
def recipe():
    from scorefast.recipe import load_recipe

    return load_recipe("tiny-cpu", ["rollout.max_new_tokens=40"])


@pytest.fixture(scope="session")
def chat(recipe):
    from scorefast.model.chat_format import ChatFormat
    from scorefast.model.tokenizer import load_tokenizer

    return ChatFormat(load_tokenizer("tiny-gemma2"), recipe.prompt.correction)


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A folder with runs/data, runs/stage1 and runs/stage2, made by the commands themselves."""
    folder = tmp_path_factory.mktemp("trained")
    for arguments in (
        ["prepare", SHIPPED, *QUICK],
        ["stage1", "--data", "runs/data", *QUICK],
        ["stage2", "--data", "runs/data", "--from", "runs/stage1"],
    ):
        done = scorefast(*arguments, cwd=folder)
        assert done.returncode == 0, done.stderr
        made = done.stdout.splitlines()
        assert made == [f"runs/{arguments[0].replace('prepare', 'data')}"], "stdout is the path of what was made"
    return folder
