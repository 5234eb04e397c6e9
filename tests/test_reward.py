"""Reward functions: TRL's signature, checked at the start, and never a silent 0."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from scorefast.data.example import Example
from scorefast.data.load import load_dataset
from scorefast.errors import UserError
from scorefast.grading.graded_example import correctness_reward, grade_example
from scorefast.grading.reward_function import load_reward, rewards_of, try_reward
from scorefast.recipe import load_recipe
from scorefast.schema import Data
from scorefast.ui.options import overrides
from tests.conftest import QUICK, SHIPPED, scorefast

ROWS = [Example(f"id{i}", f"What is {i} + 1?", str(i), str(i + 1), extra={"level": i}) for i in range(4)]


def call(function, replies=("1", "2", "3", "4")):
    return rewards_of(function, ROWS, [[e.question] for e in ROWS], replies)


def test_the_shipped_reward_has_trls_signature():
    chats = [[{"role": "assistant", "content": "it is 4"}], "it is 5"]
    rewards = correctness_reward(completions=chats, prompts=["2+2", "2+2"], correct_answer=["4", "4"])
    assert rewards == [1.0, 0.0]
    assert call(correctness_reward, ["1", "9", "It is 3", ""]) == [1.0, 0.0, 1.0, 0.0]


def test_trls_own_reward_runs_as_it_is():
    """Completions are chat messages, and the reference stands under the name that TRL uses."""
    accuracy_reward = load_reward("trl.rewards:accuracy_reward")
    wrapped = [Example("a", "q", None, r"\boxed{\frac{1}{2}}"), Example("b", "q", None, r"\boxed{3}")]
    replies = [r"so \boxed{0.5}", r"so \boxed{4}"]
    assert rewards_of(accuracy_reward, wrapped, [["q"], ["q"]], replies) == [1.0, 0.0]


def test_what_a_function_is_given():
    seen = {}

    def function(completions, **columns):
        seen.update(columns, completions=completions)
        return [0.5] * len(completions)

    prompts = [[e.question, "first try", "Check it."] for e in ROWS]
    assert rewards_of(function, ROWS, prompts, ["a", "b", "c", "d"]) == [0.5] * 4
    assert seen["completions"][1] == [{"role": "assistant", "content": "b"}]
    assert [m["role"] for m in seen["prompts"][0]] == ["user", "assistant", "user"]
    assert seen["correct_answer"] == seen["solution"] == ["1", "2", "3", "4"]
    assert seen["level"] == [0, 1, 2, 3]
    assert set(seen) == {
        *("completions", "prompts", "id", "question", "original_answer", "correct_answer", "solution", "level")
    }


def test_scalars_of_numpy_and_torch_are_rewards():
    assert call(lambda completions, **_: np.array([0.5, 1, 0, 2], dtype=np.float32)) == [0.5, 1.0, 0.0, 2.0]
    assert call(lambda completions, **_: torch.tensor([1, 0, 1, 0])) == [1.0, 0.0, 1.0, 0.0]


def test_columns_of_the_data_keep_their_names():
    """A column `solution` of the data is the data's; one that TRL's signature has for itself is refused by name."""
    rows = [ROWS[0]._replace(extra={"solution": "theirs"})]
    seen = {}
    rewards_of(lambda completions, **columns: seen.update(columns) or [0.0], rows, [["q"]], ["a"])
    assert seen["solution"] == ["theirs"]
    with pytest.raises(UserError, match="the data has a column completions"):
        rewards_of(correctness_reward, [ROWS[0]._replace(extra={"completions": 1})], [["q"]], ["a"])


def raises_on_three(completions, **_):
    return [1 / (int(c[0]["content"]) - 3) for c in completions]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (raises_on_three, r"row id2 \('What is 2 \+ 1\?'\): ZeroDivisionError"),
        (lambda completions, **_: [0.0], r"returned 1 rewards for 4 completions"),
        (lambda completions, **_: ["much"] * len(completions), "row id0 .*returned 'much', which is not a number"),
        (lambda completions, **_: None, "row id0 .*TypeError"),
        (lambda completions: [0.0], "row id0 .*TypeError"),
        (lambda completions, **_: sys.exit(0), "row id0 .*SystemExit"),
    ],
)
def test_a_failing_function_stops_with_the_row_named(function, message):
    with pytest.raises(UserError, match=message) as caught:
        call(function)
    assert "\n" not in str(caught.value)


async def patient(completions, level, **_):
    await asyncio.sleep(0.001 * (4 - level[0]))
    return [None if n == 2 else float(c[0]["content"]) for c, n in zip(completions, level, strict=True)]


def test_an_async_function_is_awaited_from_anywhere():
    """Also where a loop runs already, as in a notebook; always in one loop, as what it keeps may belong to that."""
    loops = set()

    async def function(completions, **columns):
        loops.add(asyncio.get_running_loop())
        return await patient(completions, **columns)

    async def notebook():
        return call(function)

    assert call(function) == asyncio.run(notebook()) == call(function) == [1.0, 2.0, None, 4.0]
    assert len(loops) == 1


def test_an_async_function_that_fails_names_the_row():
    async def function(completions, level, **_):
        await asyncio.sleep(0)
        return [1 / (n - 2) for n in level]

    async def leaves(completions, **_):
        sys.exit(3)

    async def yields(completions, **_):
        yield 1.0

    for failing, message in ((function, "row id2 .*ZeroDivisionError"), (leaves, "id0 .*SystemExit"), (yields, "id0")):
        with pytest.raises(UserError, match=message):
            call(failing)
    assert call(patient) == [1.0, 2.0, None, 4.0]


def test_none_is_a_reward_and_nan_is_none():
    try_reward(lambda completions, **_: [None] * len(completions), ROWS, "Check it.")
    assert call(lambda completions, **_: [None, 0, None, True]) == [None, 0.0, None, 1.0]


def test_a_function_gets_the_sources_columns_under_their_own_names(tmp_path):
    (tmp_path / "d.csv").write_text(
        "id,question,answer,level\n7,1 + 1?,1+1=<<1+1=2>>2\n#### 2,easy\n".replace("2\n#", "2 #")
    )
    rows = [e for rows in load_dataset(str(tmp_path / "d.csv"), Data()).splits.values() for e in rows]
    seen = {}

    def function(completions, answer, correct_answer, level, **others):
        seen.update(others, answer=answer, correct_answer=correct_answer, level=level)
        return [0.0] * len(completions)

    assert rewards_of(function, rows, [["q"]], ["a"]) == [0.0]
    assert (seen["answer"], seen["correct_answer"]) == (["1+1=<<1+1=2>>2 #### 2"], ["1+1=2 #### 2"])
    assert (seen["id"], seen["level"], seen["question"]) == (["7"], ["easy"], ["1 + 1?"])
    graded = [ROWS[0]._replace(grader="exact"), ROWS[1]]
    rewards_of(lambda completions, **columns: seen.update(columns) or [0, 0], graded, [["q"], ["q"]], ["a", "b"])
    assert seen["grader"] == ["exact", None]


def test_a_function_of_a_file_is_had_by_its_path(tmp_path, monkeypatch):
    folder = tmp_path / "my rewards"
    folder.mkdir()
    (folder / "json.py").write_text(
        "import beside_it\ncalls = []\ndef reward(completions, **_): return [beside_it.one]\n"
    )
    (folder / "beside_it.py").write_text("one = 1.0\n")
    monkeypatch.chdir(folder)
    names = ["json.py:reward", "./json.py:reward", f"{folder}/json.py:reward", "../my rewards/json.py:reward"]
    found = [load_reward(name) for name in names]
    assert found[0](["x"]) == [1.0]
    assert len(set(found)) == 1, "the file is run once"
    (flags,) = {overrides(None, None, None, None, None, name)[0] for name in names}
    assert flags == f'reward.function="{folder}/json.py:reward"'
    assert overrides(None, None, None, None, None, "my.module:f") == ['reward.function="my.module:f"']


def test_a_reward_that_is_not_finite_is_found_before_training():
    with pytest.raises(UserError, match=r"row id2 .*returned nan, which is not finite"):
        try_reward(lambda completions, id, **_: [math.nan if i == "id2" else 0.0 for i in id], ROWS, "Check it.")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_colon", "expected module:function or file.py:function"),
        ("no_such_module_here:f", "No module named"),
        ("./absent.py:f", "absent.py: no such file"),
        ("absent.py", "expected module:function or file.py:function"),
        ("json:no_such_function", "has no attribute"),
        ("json:__doc__", "is not a function"),
    ],
)
def test_a_function_that_cannot_be_had_is_named(name, message):
    with pytest.raises(UserError, match=message):
        load_reward(name)


def test_a_trial_calls_it_as_training_will():
    lengths = []

    def function(prompts, completions, **_):
        lengths.append([len(p) for p in prompts])
        return [0.0] * len(completions)

    try_reward(function, ROWS, "Check it.")
    assert lengths == [[1] * 4, [3] * 4] * 2


def test_a_rows_own_grader_goes_before_the_recipes():
    assert not grade_example("It is 18.", Example("a", "q", None, "18", grader="exact"), "numeric").correct
    assert grade_example("It is 18.", Example("a", "q", None, "18"), "numeric").correct


REWARD = """
def brief(completions, correct_answer, **kwargs):
    return [-len(c[0]["content"]) / 10 for c in completions]

async def some(completions, answer, correct_answer, **kwargs):
    assert answer != correct_answer
    return [None if i % 3 == 0 else float(len(c[0]["content"])) for i, c in enumerate(completions)]

def broken(completions, **kwargs):
    if "Step" in str(completions):
        raise RuntimeError("no steps, please")
    return [0.0] * len(completions)
"""


def test_a_stage_trains_on_the_functions_rewards(tmp_path):
    (tmp_path / "mine.py").write_text(REWARD)
    done = scorefast("stage2", "--data", SHIPPED, "--reward", "mine:brief", *QUICK, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first = json.loads((tmp_path / "runs/stage2/metrics.jsonl").read_text().splitlines()[1])
    assert first["reward_t1"] < -0.5, "minus a tenth of a reply's length in characters"
    assert "function: mine:brief" in (tmp_path / "runs/stage2/recipe.yaml").read_text()


def test_a_stage_trains_where_the_function_applies(tmp_path):
    """GSM8K's columns, an async function out of a file, None for a third of the samples; resumed from elsewhere."""
    rows = "".join(f"What is {i} + {i}?,It is <<{i}+{i}={2 * i}>>{2 * i} #### {2 * i}\n" for i in range(60))
    (tmp_path / "gsm.csv").write_text("Question,answer\n" + rows)
    (tmp_path / "my file.py").write_text(REWARD)
    given = ["stage2", "--data", tmp_path / "gsm.csv", "--out", tmp_path / "run", "--reward"]
    done = scorefast(*given, "my file.py:some", *QUICK, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    steps = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all(m["reward_t1"] > 0 and not m.get("skipped") for m in steps if "loss" in m)
    (tmp_path / "elsewhere").mkdir()
    more = ["../my file.py:some", "--resume", "--set", "stage2.max_steps=3"]
    done = scorefast(*given, *more, cwd=tmp_path / "elsewhere")
    assert done.returncode == 0, done.stderr


def test_a_stage_stops_on_a_function_that_fails_and_names_the_row(tmp_path):
    (tmp_path / "mine.py").write_text(REWARD)
    done = scorefast(
        "stage2", "--data", SHIPPED, "--reward", "mine:broken", *QUICK, "--set", "stage2.max_steps=20", cwd=tmp_path
    )
    assert done.returncode == 2
    assert "reward function: row " in done.stderr
    assert "RuntimeError: no steps, please" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_origins_shaping_compares_grades_and_takes_no_function():
    from scorefast import train
    from scorefast.runs.job import Job

    recipe = load_recipe(
        "tiny-cpu", ["reward.function=scorefast.grading.graded_example:correctness_reward", "stage2.shaping=origin"]
    )
    with pytest.raises(UserError, match=r"stage2\.shaping=paper"):
        train.check(Job("stage2", recipe, load_dataset(str(SHIPPED), recipe.data), None, Path()))
