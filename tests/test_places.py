"""Which folder a model comes from: where a run had it, from wherever one looks, and what it hides of the hub."""

from __future__ import annotations

import json
import shutil

import pytest

from scorefast.errors import UserError
from scorefast.recipe import EMBEDDED_MODELS
from scorefast.runs.checkpoint import find_base
from scorefast.runs.recipe_choice import model_location
from scorefast.schema import Recipe
from tests.conftest import QUICK, SHIPPED, scorefast, scorefast_here

MINE = ["--set", "model.name=models/mine"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a model under a relative name, and a run of it."""
    folder = tmp_path_factory.mktemp("home")
    shutil.copytree(EMBEDDED_MODELS["tiny-gemma2"], folder / "models/mine")
    done = scorefast("stage1", "--data", SHIPPED, *QUICK, *MINE, "--out", "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert f"model: models/mine, the folder {folder}/models/mine, not the hub's model of that name" in done.stderr
    return folder


def test_a_run_goes_on_from_another_folder(home, tmp_path):
    run = home / "run"
    assert json.loads((run / "run.json").read_text())["base"] == str(home / "models/mine")
    done = scorefast_here("stage2", "--data", SHIPPED, *QUICK, "--from", run, "--out", "s2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"model: models/mine, the folder {home}/models/mine that its run recorded" in done.stderr
    more = ["--set", "stage1.max_steps=3", "--resume", "--out", run]
    assert scorefast_here("stage1", "--data", SHIPPED, *more, cwd=tmp_path).returncode == 0
    assert "name: models/mine" in (tmp_path / "s2/recipe.yaml").read_text(), "as it was given"
    for command in (
        ["eval", "base", "s2", "--data", SHIPPED, "--set", "eval.max_questions=2"],
        ["export", "s2", "--out", "x"],
    ):
        done = scorefast_here(*command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr


def test_a_model_that_is_gone_is_not_sought_on_the_hub(home, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(home, moved)
    facts = json.loads((moved / "run/run.json").read_text())
    (moved / "run/run.json").write_text(json.dumps(facts | {"base": "/gone/mine"}))
    for command in (["stage2", "--from", "moved/run"], ["stage1", "--resume", "--out", "moved/run"]):
        done = scorefast_here(*command, "--data", SHIPPED, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        last = done.stderr.splitlines()[-1]
        assert f"looked for it at /gone/mine and {tmp_path}/models/mine and did not find it" in last
    done = scorefast_here("stage2", "--from", "run", "--data", SHIPPED, "--dry-run", cwd=moved)
    assert done.returncode == 0, "the path leads to it from here"


def test_two_runs_that_mean_other_folders_by_one_name_are_not_mixed(tmp_path):
    from scorefast import recipe

    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps({"base": str(tmp_path / name)}))
    recipe.RECORDED_FOLDERS.clear()
    try:
        find_base(tmp_path / "a", "models/x")
        find_base(tmp_path / "a", "models/x")
        with pytest.raises(UserError, match=f"its model 'models/x' is {tmp_path}/b, not {tmp_path}/a"):
            find_base(tmp_path / "b", "models/x")
    finally:
        recipe.RECORDED_FOLDERS.clear()


def test_a_folder_that_hides_a_model_of_the_hub(tmp_path, monkeypatch):
    hub = Recipe.model_validate({"model": {"name": "google/gemma-2-2b-it"}}).model.name
    monkeypatch.chdir(tmp_path)
    assert model_location(hub) == f"model: {hub}, from the Hugging Face hub or its cache"
    (tmp_path / hub).mkdir(parents=True)
    done = scorefast_here("stage1", "--data", SHIPPED, "--recipe", "gemma-2-2b-it", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        f"{hub}: the folder {tmp_path}/{hub} has no config.json and hides the hub's model"
        in done.stderr.splitlines()[-1]
    )
    shutil.copytree(EMBEDDED_MODELS["tiny-gemma2"], tmp_path / hub, dirs_exist_ok=True)
    done = scorefast_here("stage1", "--data", SHIPPED, "--set", f"model.name={hub}", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(f"model: {hub}, the folder {tmp_path}/{hub}, not the hub's model of that name") == 1
    (tmp_path / "tiny-gemma2").mkdir()
    assert (
        model_location("tiny-gemma2") == f"model: tiny-gemma2, the embedded one, not the folder {tmp_path}/tiny-gemma2"
    )


@pytest.mark.parametrize("name", ["./models/x", "a/b/c", "~/models/x"])
def test_a_path_to_no_folder_says_where_it_was_sought(tmp_path, name):
    done = scorefast_here("chat", "base", "--recipe", "tiny-cpu", "--set", f"model.name={name}", cwd=tmp_path)
    assert done.returncode == 2
    sought = tmp_path / name
    assert f"model.name: {name}: no such folder at {sought};" in done.stderr.splitlines()[-1]
