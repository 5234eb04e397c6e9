"""`--resume`: what it goes on from, what may change, and what it refuses in one line."""

from __future__ import annotations

import json
import os
import pickle
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from scorefast import train
from scorefast.data.load import content_sha256, load_dataset
from scorefast.errors import UserError
from scorefast.files.seal import damage, seal
from scorefast.recipe import dump_recipe, load_recipe
from scorefast.runs.checkpoint import find_last
from scorefast.runs.folder import has_begun, start_run
from scorefast.runs.job import Job
from scorefast.runs.log import metrics_line, read_metrics
from scorefast.runs.resume import changes_allowed
from tests.conftest import QUICK, REPOSITORY, SHIPPED, scorefast_here
from tests.harness import faults
from tests.test_faults import begun

LONGER = ["--set", "stage1.max_steps=3"]


@pytest.fixture
def finished(trained, tmp_path) -> Path:
    """A copy of a finished Stage I, of 2 steps, on the shipped data."""
    folder = tmp_path / "run"
    shutil.copytree(trained / "runs/stage1", folder)
    facts = json.loads((folder / "run.json").read_text()) | {"data_sha256": content_sha256(str(SHIPPED))}
    (folder / "run.json").write_text(json.dumps(facts))
    return folder


def resume(folder: Path, *more: str):
    return scorefast_here("stage1", "--data", SHIPPED, "--out", folder.name, "--resume", *more, cwd=folder.parent)


def refusal(done) -> str:
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


def test_resume_names_the_key_that_must_not_change():
    began = load_recipe("tiny-cpu")
    for key, value in (("stage2.alpha", 3), ("seed", 5), ("model.lora.r", 3), ("rollout.temperature", 0.5)):
        with pytest.raises(UserError, match=f"began with {key} = .*; it cannot change when a run is resumed"):
            changes_allowed(Path("run"), "stage2", began, load_recipe("tiny-cpu", [f"{key}={value}"]))
    allowed = [
        "stage2.micro_batch_size=3",
        "stage2.max_steps=99",
        "stage1.beta2=9",
        "loss.buffer_mb=7",
        "stage2.max_kl=3",
    ]
    assert changes_allowed(Path("run"), "stage2", began, load_recipe("tiny-cpu", allowed)) == {
        "stage2.micro_batch_size": (began.stage2.micro_batch_size, 3),
        "stage2.max_steps": (began.stage2.max_steps, 99),
        "loss.buffer_mb": (None, 7),
        "stage2.max_kl": (5.0, 3.0),
    }
    linear = load_recipe("tiny-cpu", ["stage2.lr_scheduler=linear"])
    longer = load_recipe("tiny-cpu", ["stage2.lr_scheduler=linear", "stage2.max_steps=99"])
    with pytest.raises(UserError, match="max_steps cannot change because lr_scheduler = linear depends on it"):
        changes_allowed(Path("run"), "stage2", linear, longer)


def test_resume_does_not_import_code_that_only_the_run_names(tmp_path):
    """The run may be somebody else's; the command that began it, given again, names the function itself."""
    (tmp_path / "evil.py").write_text("open('was-run', 'w')\n")
    recipe = load_recipe("tiny-cpu", ["reward.function=evil:reward"])
    (tmp_path / "run").mkdir()
    facts = {"stage": "stage1", "data_sha256": content_sha256(str(SHIPPED)), "from": None}
    start_run(tmp_path / "run", recipe, facts)
    command = ["stage1", "--data", SHIPPED, "--out", "run", "--resume", "--dry-run"]
    done = scorefast_here(*command, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.endswith("to allow it, add --reward evil:reward\n")
    assert not (tmp_path / "was-run").exists()
    done = scorefast_here(*command, "--reward", "evil:reward", cwd=tmp_path)
    assert "evil" in done.stderr.splitlines()[-1], "now it is looked for"
    assert "to allow it" not in done.stderr


def test_resume_begins_what_has_not_begun_and_refuses_what_is_no_run(tmp_path):
    assert not has_begun(tmp_path / "absent")
    (tmp_path / ".lock").touch()
    (tmp_path / "recipe.yaml").touch()
    (tmp_path / ".run.json.partial").touch()
    assert not has_begun(tmp_path), "killed before it had begun"
    (tmp_path / "thesis.doc").touch()
    with pytest.raises(UserError, match="no run to resume here"):
        has_begun(tmp_path)


def test_a_prolonged_run_is_the_longer_run(tmp_path):
    """With a constant learning rate, 3 steps and then 3 more are 6; the reward function's own random numbers too."""
    (tmp_path / "noisy.py").write_text(
        "import random, numpy, torch\n"
        "def reward(completions, **_):\n"
        "    return [random.random() + numpy.random.rand() + torch.rand(()).item() for _ in completions]\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        noisy = ["reward.function=noisy:reward", "stage1.save_steps=3", "stage1.eval_steps=3"]
        quiet = Console(quiet=True)
        train.run(begun(tmp_path / "whole", *noisy, "stage1.max_steps=6"), quiet)
        torch.rand(5)  # whatever has been drawn before, a run begins with its seed
        train.run(begun(tmp_path / "parts", *noisy, "stage1.max_steps=3"), quiet)
        torch.rand(7)
        train.run(replace(begun(tmp_path / "parts", *noisy, "stage1.max_steps=6"), begun=True), quiet)
    finally:
        sys.path.remove(str(tmp_path))
    ours, theirs = faults.outcome_of(tmp_path / "parts"), faults.outcome_of(tmp_path / "whole")
    assert ours[0] == theirs[0]
    for a, b in zip(ours[1], theirs[1], strict=True):
        assert {k: v for k, v in a.items() if k != "epoch"} == {k: v for k, v in b.items() if k != "epoch"}


def test_a_run_killed_before_it_had_begun_is_begun_by_the_same_command(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for left in (".lock", "recipe.yaml", ".recipe.yaml.partial", ".run.json.partial", "dropped.jsonl"):
        (folder / left).touch()
    done = resume(folder, *QUICK, "--set", "stage1.max_steps=1")
    assert done.returncode == 0, done.stderr
    assert [m["step"] for m in read_metrics(folder) if "loss" in m] == [1]


def test_a_prolonged_run_is_prolonged_for_good(finished):
    """The recipe of the run is what it goes on with, so that the printed command needs no --set; its old result is no
    result any more, until there is the new one."""
    done = resume(finished, *LONGER)
    assert done.returncode == 0, done.stderr
    assert load_recipe(str(finished / "recipe.yaml")).stage1.max_steps == 3
    assert damage(finished) is None
    (finished / "adapter_model.safetensors").write_bytes(b"")
    done = resume(finished)
    assert done.returncode == 0, done.stderr
    assert damage(finished) is None
    assert [m["step"] for m in read_metrics(finished) if "loss" in m] == [1, 2, 3]


def test_a_changed_recipe_unseals_the_result_it_does_not_belong_to(finished):
    from scorefast.runs.resume import change_recipe

    began = load_recipe(str(finished / "recipe.yaml"))
    change_recipe(finished, began)
    assert damage(finished) is None
    change_recipe(finished, load_recipe(str(finished / "recipe.yaml"), ["stage1.max_steps=9"]))
    done = scorefast_here("eval", "run", "--data", SHIPPED, cwd=finished.parent)
    assert refusal(done).endswith("has not finished; continue it with --resume, or use run/checkpoint-2")


@pytest.mark.parametrize("spoil", [b'{"step": 1, garbage', b"\xff\xfe", b"[1]", b'{"loss": 1}', b""])
def test_a_spoiled_log_is_written_anew_from_the_checkpoint(finished, spoil):
    before = read_metrics(finished)
    path = finished / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    number = next(i for i, line in enumerate(lines) if b'"loss"' in line)
    path.write_bytes(b"".join([*lines[:number], spoil + b"\n" if spoil else b"", *lines[number + 1 :]]))
    done = resume(finished)
    assert done.returncode == 0, done.stderr
    wrong = f":{number + 1}: not a line of metrics" if spoil else ": lacks step 1"
    assert f"run/metrics.jsonl{wrong}; rewritten from run/checkpoint-2" in done.stderr
    assert read_metrics(finished) == before


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_pickle_in_a_checkpoint_is_not_run(finished, name):
    """Sealed anew by whoever put it there: torch's restricted reader refuses it, in one line."""
    (finished / "checkpoint-2" / name).write_bytes(pickle.dumps(Evil()))
    seal(finished / "checkpoint-2")
    said = refusal(resume(finished, *LONGER))
    assert said.startswith("scorefast: run/checkpoint-2: cannot be resumed from: ")
    assert not (finished.parent / "was-run").exists()


class Evil:
    def __reduce__(self):
        return (os.system, ("touch was-run",))


def _state(**changed: object) -> str:
    return json.dumps({"global_step": 2, "log_history": [], "train_batch_size": 8} | changed)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("[]", "expected a JSON object"),
        ("{}", "not a valid trainer state"),
        ('{"unheard_of": 1}', "not a valid trainer state"),
        (_state(train_batch_size="x"), "not a valid trainer state: train_batch_size: Input should be a valid integer"),
        (_state(save_steps=None), "not a valid trainer state: save_steps: Input should be a valid integer"),
        (_state(logging_steps={}), "not a valid trainer state: logging_steps"),
        (_state(total_flos="none"), "not a valid trainer state: total_flos"),
        (_state(log_history=[{"loss": 1.0}]), "log_history has a line without a step"),
        (_state(global_step=1), "is of step 1: the folder was renamed"),
    ],
)
def test_a_checkpoint_that_is_not_the_step_it_says_is_refused(finished, state, message):
    (finished / "checkpoint-2" / "trainer_state.json").write_text(state)
    seal(finished / "checkpoint-2")
    assert message in refusal(resume(finished, *LONGER))


def test_a_folder_of_the_users_own_is_not_taken_for_one_that_a_kill_left(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text("seed: 1  # mine\n")
    assert "no run to resume here" in refusal(resume(folder))
    assert (folder / "recipe.yaml").read_text() == "seed: 1  # mine\n"


def test_what_is_refused_changes_nothing(finished):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    for extra in ([], ["--dry-run"]):
        said = refusal(resume(finished, "--set", "stage1.max_steps=1", *extra))
        assert said.endswith("checkpoint-2: the run is already past stage1.max_steps = 1")
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_a_finished_run_without_checkpoints_is_not_trained_again(finished):
    shutil.rmtree(finished / "checkpoint-2")
    assert (
        refusal(resume(finished))
        == "scorefast: run: has finished, and has no checkpoint left to resume from; name another --out"
    )
    assert damage(finished) is None


def test_a_reward_function_that_fails_in_the_night_costs_no_step(tmp_path):
    """Whatever it raises: what is trained is saved, and resumed once the function is mended."""
    judge = tmp_path / "judge.py"
    judge.write_text(
        "import pathlib\n"
        "def reward(completions, **_):\n"
        "    log = pathlib.Path('run/metrics.jsonl')\n"
        "    if log.exists() and log.read_text().count('loss') >= 2 and not pathlib.Path('mended').exists():\n"
        "        raise ConnectionError('the judge is down')\n"
        "    return [1.0 * len(c) for c in completions]\n"
    )
    command = ["stage1", "--data", SHIPPED, *QUICK, "--reward", "judge:reward", "--out", "run"]
    longer = ["--set", "stage1.max_steps=4"]
    done = scorefast_here(*command, *longer, cwd=tmp_path)
    assert done.returncode == 1
    assert "the judge is down" in done.stderr
    assert done.stderr.endswith("the last checkpoint is run/checkpoint-2, continue from it with --resume\n")
    (tmp_path / "mended").touch()
    done = scorefast_here(*command, *longer, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [m["step"] for m in read_metrics(tmp_path / "run") if "loss" in m] == [1, 2, 3, 4]


def test_what_a_run_stands_on_must_not_change(trained, tmp_path):
    """Its base model, where it came from, its data: by content, not by name."""
    base, start = tmp_path / "base", tmp_path / "start"
    shutil.copytree(REPOSITORY / "scorefast/assets/tiny-gemma2", base)
    flags = [*QUICK, "--set", "model.name=base", "--set", "stage1.max_steps=1"]
    data = tmp_path / "data.csv"
    shutil.copy(SHIPPED, data)
    first = ["stage1", "--data", "data.csv", *flags]
    assert scorefast_here(*first, "--out", "start", cwd=tmp_path).returncode == 0
    second = ["stage1", "--data", "data.csv", "--from", "start", "--out", "run"]
    assert scorefast_here(*second, cwd=tmp_path).returncode == 0
    assert scorefast_here(*second, "--resume", "--dry-run", cwd=tmp_path).returncode == 0

    def says(message: str, *command: str) -> None:
        said = refusal(scorefast_here(*(command or second), "--resume", "--dry-run", cwd=tmp_path))
        assert said == f"scorefast: run: {message}; to begin another run, name a new --out"

    says("it is a run of stage1, not of stage2", "stage2", *second[1:])
    (tmp_path / "start").rename(tmp_path / "elsewhere")  # the same by content
    moved = [word.replace("start", "elsewhere") for word in second]
    assert scorefast_here(*moved, "--resume", "--dry-run", cwd=tmp_path).returncode == 0
    (tmp_path / "elsewhere").rename(tmp_path / "start")
    says(f"it began from {start}, not from the base model", *second[:3], *second[5:])
    with data.open("a") as file:
        file.write("1 + 1 = ?,2,2\n")
    says("data.csv is not the data that it began with; give that data")
    shutil.copy(SHIPPED, data)
    (base / "config.json").write_text((base / "config.json").read_text() + "\n")
    says("its base model's folder has changed since it began")
    shutil.copy(REPOSITORY / "scorefast/assets/tiny-gemma2/config.json", base)
    shutil.copy(trained / "runs/stage2/adapter_model.safetensors", start)
    seal(start)
    says(f"{start} has changed since it began from there")


def test_a_run_of_other_versions_goes_on_and_says_so(finished):
    facts = json.loads((finished / "run.json").read_text())
    for versions, said in ((facts["versions"] | {"torch": "1.0"}, True), ([1], False), (None, False), ("abc", False)):
        (finished / "run.json").write_text(json.dumps(facts | {"versions": versions}))
        done = resume(finished, "--dry-run")
        assert done.returncode == 0
        assert ("torch: 1.0 when this run began, " in done.stderr) is said


def test_nobody_has_to_hear_what_a_run_says(tmp_path):
    """Its log on a full disk, its stderr closed: it trains on."""
    command = [
        sys.executable,
        "-m",
        "scorefast",
        "stage1",
        "--data",
        str(SHIPPED),
        *QUICK,
        "--set",
        "stage1.max_steps=1",
    ]
    for number, stderr in enumerate(("2>/dev/full", "2>&-")):
        done = subprocess.run(
            f"{shlex.join(command)} --out run{number} {stderr}", shell=True, cwd=tmp_path, check=False
        )
        assert done.returncode == 0
        assert find_last(tmp_path / f"run{number}")[0]
    refused = subprocess.run(f"{shlex.join(command)} --data nowhere 2>/dev/full", shell=True, cwd=tmp_path, check=False)
    assert refused.returncode == 2


def test_a_recipe_edited_in_the_run_is_refused_by_what_its_checkpoint_was_trained_by(finished):
    recipe = (finished / "recipe.yaml").read_text()
    (finished / "recipe.yaml").write_text(recipe.replace("beta2: 1.0", "beta2: 0.5", 1))
    assert "began with stage1.beta2 = 1.0, not 0.5" in refusal(resume(finished, *LONGER))


def test_a_run_that_does_not_say_what_it_is_of_is_refused(finished):
    (finished / "run.json").write_text("{}")
    assert "run.json: lacks data_sha256" in refusal(resume(finished, *LONGER))


@pytest.mark.parametrize(
    "spoiled", [{"edit_distance": "9"}, {"length_t1": [1]}, {"warning_unheard_of": 1.0, "truncated": None}]
)
def test_figures_of_another_kind_in_the_log_do_not_end_the_run(finished, spoiled):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    steps = [line | spoiled if "loss" in line else line for line in lines]
    (finished / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in steps))
    done = resume(finished, *LONGER)
    assert done.returncode == 0, done.stderr
    assert [m["step"] for m in read_metrics(finished) if "loss" in m] == [1, 2, 3]
    assert ("rewritten" in done.stderr) == ("truncated" not in spoiled)


@pytest.mark.parametrize("harm", ["shape", "rate", "lacks"])
def test_an_optimizer_of_other_moments_or_settings_is_one_line(finished, harm):
    path = finished / "checkpoint-2" / "optimizer.pt"
    saved = torch.load(path, weights_only=True)
    if harm == "shape":
        saved["state"][0]["exp_avg"] = torch.zeros(3)
    elif harm == "rate":
        saved["param_groups"][0]["lr"] = "x"
    else:
        del saved["param_groups"][0]["betas"]
    torch.save(saved, path)
    seal(finished / "checkpoint-2")
    assert "checkpoint-2: cannot be resumed from: optimizer.pt: " in refusal(resume(finished, *LONGER))


def test_a_checkpoint_that_cannot_be_read_is_no_reason_to_begin_again(finished, monkeypatch):
    """A disk that is slow to come back would cost the night."""
    shutil.copytree(finished / "checkpoint-2", finished / "checkpoint-1")
    own, unread = Path.open, finished / "checkpoint-2" / "optimizer.pt"

    def unreadable(path, *given, **more):
        if path == unread:
            raise PermissionError(13, "Permission denied", str(path))
        return own(path, *given, **more)

    monkeypatch.setattr(Path, "open", unreadable)
    with pytest.raises(UserError, match=r"optimizer\.pt: Permission denied; fix that, or remove the checkpoint"):
        find_last(finished)


@pytest.mark.parametrize("optimizer", ["adafactor", "sgd", "lion_8bit", "adamw_8bit", "ademamix_8bit", "rmsprop"])
def test_every_planned_optimizer_resumes(optimizer, tmp_path):
    begin = ["stage1", "--data", SHIPPED, "--out", "run", *QUICK, "--set", f"stage1.optimizer={optimizer}"]
    few = ["--set", "rollout.max_new_tokens=4", "--set", "eval.max_questions=1", "--set", "stage1.save_steps=1"]
    assert scorefast_here(*begin, *few, cwd=tmp_path).returncode == 0
    done = resume(tmp_path / "run", *LONGER)
    assert done.returncode == 0, done.stderr
    assert [m["step"] for m in read_metrics(tmp_path / "run") if "loss" in m] == [1, 2, 3]


@pytest.mark.parametrize("history", ["in the state", "in a file"])
def test_a_run_of_many_steps_resumes(finished, history):
    """30,000 steps make a log of more than the 16 MiB that any other JSON file may have. A checkpoint of an earlier
    version holds it in trainer_state.json."""
    steps, last = 30_000, finished / "checkpoint-30000"
    (finished / "checkpoint-2").rename(last)
    (line,) = (m for m in read_metrics(finished) if m["step"] == 2 and "loss" in m)
    lines = [line | {"step": step} for step in range(1, steps + 1)]
    state = json.loads((last / "trainer_state.json").read_text()) | {"global_step": steps, "epoch": 0.0}
    assert state["log_history"] == [], "the log is not kept twice in a checkpoint"
    (last / "metrics.jsonl").write_text("".join(metrics_line(m) for m in lines))
    if history == "in the state":
        (last / "metrics.jsonl").unlink()
        state["log_history"] = lines
    (last / "trainer_state.json").write_text(json.dumps(state, indent=2))
    assert sum(path.stat().st_size for path in last.glob("*.json*")) > 2**24
    recipe = load_recipe(str(finished / "recipe.yaml"), [f"stage1.max_steps={steps + 1}"])
    for folder in (last, finished):
        (folder / "recipe.yaml").write_text(dump_recipe(recipe))
    seal(last)
    (finished / "checkpoint.json").unlink()
    (finished / "metrics.jsonl").unlink()
    done = resume(finished)
    assert done.returncode == 0, done.stderr
    assert f"metrics.jsonl: lacks step 1; rewritten from run/{last.name}" in done.stderr
    assert [m["step"] for m in read_metrics(finished) if "loss" in m] == list(range(1, steps + 2))
    os.truncate(finished / "metrics.jsonl", 2**40)  # a file with a hole costs a stranger nothing
    damaged = resume(finished, "--dry-run")
    assert damaged.returncode == 0, damaged.stderr
    assert "bytes that the log of this run may have; rewritten from run/checkpoint-30001" in damaged.stderr


def test_a_run_removed_while_its_model_loads_is_not_made_again(recipe, tmp_path):
    job = Job("stage1", recipe, load_dataset(str(SHIPPED), recipe.data), None, tmp_path / "gone")
    with pytest.raises(UserError, match="was removed while the model was loading"):
        train.run(job, Console(quiet=True))
    assert not (tmp_path / "gone").exists()
