"""What a run survives. The wider study, with its counts, is `python -m tests.harness.faults run`."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import TrainerCallback

from scorefast.data.load import load_dataset
from scorefast.errors import RunError
from scorefast.files.atomic import write_file
from scorefast.files.seal import damage, remove_folder, seal, written_whole
from scorefast.model.load import load_policy
from scorefast.recipe import load_recipe
from scorefast.rl.monitor import remedy, signs
from scorefast.rl.reporter import Reporter
from scorefast.rl.trainer import ScoreTrainer
from scorefast.runs.checkpoint import find_last, open_checkpoint, rotate
from scorefast.runs.folder import lock_run, start_run
from scorefast.runs.job import Job
from scorefast.runs.log import append_metrics, metrics_line, read_metrics
from scorefast.runs.owner import Owner
from scorefast.ui.plots import draw_learning_curve
from scorefast.ui.tables import print_warnings
from tests.conftest import REPOSITORY, SHIPPED, scorefast_here

SMALL = ["stage1.questions_per_step=2", "stage1.samples_per_question=4", "eval.max_questions=6"]


# --- kills and signals: real processes, forked from one that has imported everything ---------------------------------

STRUCK = """
import sys
from pathlib import Path
from tests.harness import faults
faults.import_everything()
faults.SETTINGS += ["rollout.max_new_tokens=10", "stage1.samples_per_question=2"]
work = Path(sys.argv[1])
faults.unbroken(work)
for name in sys.argv[2:]:
    outcome = faults.suffer(getattr(faults, name), work, 0, seed=1)
    print(outcome.equal, *outcome.exit_codes, "|", outcome.fault, sep=" ")
"""


def test_what_strikes_a_run_leaves_no_trace_in_its_result(tmp_path):
    """Weights to the byte and every line of the log are those of the run left alone."""
    strokes = ["kill_in_a_save", "terminate", "hang_up", "disk_full", "newest_damaged"]
    strokes += ["log_struck", "papers_removed", "lock_taken"]
    command = [sys.executable, "-c", STRUCK, str(tmp_path), *strokes]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    seen = dict(zip(strokes, (line.partition("|")[0].split() for line in done.stdout.splitlines()), strict=True))
    assert {name: equal for name, (equal, *_) in seen.items()} == dict.fromkeys(strokes, "True")
    first = {name: int(codes[0]) for name, (_, *codes) in seen.items()}
    assert first["kill_in_a_save"] == first["newest_damaged"] == 128 + signal.SIGKILL
    assert first["terminate"] == 128 + signal.SIGTERM
    assert first["hang_up"] == 128 + signal.SIGHUP
    assert first["disk_full"] == first["log_struck"] == first["lock_taken"] == 0, "the run went on"
    names = {line.partition("| ")[2] for line in done.stdout.splitlines()}
    assert {"metrics.jsonl taken away", ".lock taken away"} <= names, "not through a link; no second writer"


# --- folders that are whole or not there -----------------------------------------------------------------------------


def sealed(folder: Path) -> Path:
    folder.mkdir()
    (folder / "weights").write_bytes(bytes(range(256)))
    (folder / "README.md").write_text("a card")
    seal(folder)
    assert damage(folder) is None
    return folder


def test_every_flipped_bit_cut_and_missing_file_is_damage(tmp_path):
    folder = sealed(tmp_path / "checkpoint-1")
    content = (folder / "weights").read_bytes()
    for position in range(0, 256, 5):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        (folder / "weights").write_bytes(flipped)
        assert damage(folder) == "weights has changed since it was written (SHA-256 differs)"
    (folder / "weights").write_bytes(content[:-1])
    assert damage(folder) == "weights has 255 bytes, but 256 were written"
    (folder / "weights").unlink()
    assert damage(folder) == "weights is missing"
    (tmp_path / "elsewhere").write_bytes(content)
    (folder / "weights").symlink_to(tmp_path / "elsewhere")
    assert "is not a file of the folder" in (damage(folder) or "")
    (folder / "weights").unlink()
    (folder / "weights").write_bytes(content)
    assert damage(folder) is None


def test_a_model_card_may_be_edited(tmp_path):
    folder = sealed(tmp_path / "checkpoint-1")
    (folder / "README.md").write_text("a better card")
    assert damage(folder) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        '{"files": {}}',
        '{"files": []}',
        '{"files": {"weights": {}}}',
        '{"files": {"weights": {"size": "many", "sha256": 1}}}',
        '{"files": {"../outside": {"size": 3, "sha256": "x"}}}',
        '{"files": {"/etc/hostname": {"size": 3, "sha256": "x"}}}',
        '{"files": {"weights": {"size": 1e999, "sha256": "x"}}}',
        "[" * 100_000,
        "\udcff",
    ],
)
def test_a_seal_that_is_none_of_ours_is_damage(tmp_path, text):
    folder = sealed(tmp_path / "checkpoint-1")
    (tmp_path / "outside").write_text("abc")
    (folder / "checkpoint.json").write_bytes(text.encode(errors="surrogateescape"))
    assert damage(folder)


def test_a_seal_that_is_no_file_or_endless_is_damage(tmp_path):
    folder = sealed(tmp_path / "checkpoint-1")
    os.truncate(folder / "checkpoint.json", 2**40)
    assert damage(folder) == "its checkpoint.json is not a seal"
    (folder / "checkpoint.json").unlink()
    os.mkfifo(folder / "checkpoint.json")
    assert damage(folder) == "its checkpoint.json is not a seal"


def test_no_link_out_of_a_run_is_followed(tmp_path):
    """A run that came from somebody else: what is written and removed there stays there."""
    run, outside = tmp_path / "run", tmp_path / "outside"
    run.mkdir()
    outside.write_text("precious")
    for name in ("metrics.jsonl", ".metrics.jsonl.partial"):
        (run / name).symlink_to(outside)
    write_file(run / "metrics.jsonl", "{}\n")
    assert (run / "metrics.jsonl").read_text() == "{}\n"
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").symlink_to(outside)
    with pytest.raises(OSError, match="symbolic links"):
        append_metrics(run, "{}\n")
    assert outside.read_text() == "precious"
    elsewhere = sealed(tmp_path / "elsewhere")
    (run / "checkpoint-2").symlink_to(elsewhere)
    shutil.copytree(elsewhere, run / "checkpoint-4")
    rotate(run, 1, run / "checkpoint-4")
    assert damage(elsewhere) is None
    assert find_last(run)[0] is None, "a link is no checkpoint of the run"
    remove_folder(run / "checkpoint-2")
    assert damage(elsewhere) is None
    assert not (run / "checkpoint-2").is_symlink()


def test_a_folder_is_written_whole_or_not_at_all(tmp_path):
    target = tmp_path / "checkpoint-1"
    with contextlib.suppress(ZeroDivisionError), written_whole(target, tmp_path / ".partial") as folder:
        (folder / "weights").write_text("half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with written_whole(target, tmp_path / ".partial") as folder:
        (folder / "weights").write_text("whole")
        assert not target.exists()
    assert damage(target) is None
    with written_whole(target, tmp_path / ".partial") as folder:
        (folder / "weights").write_text("again")
    assert damage(target) is None
    assert (target / "weights").read_text() == "again"
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-1"]


def test_a_file_is_replaced_whole_and_a_failed_one_leaves_the_old(tmp_path):
    path = tmp_path / "recipe.yaml"
    write_file(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_file(path, "\udcff")
    assert path.read_text() == "old"
    write_file(path, "new")
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.yaml"]


def checkpoints(run: Path, *steps: int) -> None:
    for step in steps:
        folder = run / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "trainer_state.json").write_text("{}")
        seal(folder)


def test_the_last_checkpoint_is_the_newest_whole_one_and_stays(tmp_path):
    checkpoints(tmp_path, 2, 10, 4, 6)
    (tmp_path / "checkpoint-12").mkdir()
    for other in ("x", "012", "١٢", "4.bak", "1e3"):  # the third is 12 in Arabic digits
        shutil.copytree(tmp_path / "checkpoint-4", tmp_path / f"checkpoint-{other}")
    others = {path.name for path in tmp_path.iterdir()} - {f"checkpoint-{n}" for n in (2, 4, 6, 10, 12)}
    (tmp_path / "checkpoint-10" / "trainer_state.json").write_text("{ }")
    last, skipped = find_last(tmp_path)
    assert last == tmp_path / "checkpoint-6"
    assert [line.split(":")[0] for line in skipped] == [f"{tmp_path}/checkpoint-{n} is skipped" for n in (12, 10)]
    rotate(tmp_path, keep=2, saved=last)
    assert {p.name for p in tmp_path.iterdir()} == {f"checkpoint-{n}" for n in (4, 6, 10, 12)} | others
    checkpoints(tmp_path, 14, 16)
    rotate(tmp_path, keep=2, saved=tmp_path / "checkpoint-16")
    assert {p.name for p in tmp_path.iterdir()} == {f"checkpoint-{n}" for n in (14, 16)} | others


def test_what_somebody_has_put_into_a_checkpoint_stays(tmp_path):
    """A checkpoint is rotated away by what its seal names; a folder without a seal was never one."""
    checkpoints(tmp_path, 2, 4)
    (tmp_path / "checkpoint-2/notes.txt").write_text("precious")
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1/thesis.txt").write_text("precious")
    rotate(tmp_path, keep=1, saved=tmp_path / "checkpoint-4")
    assert [p.name for p in (tmp_path / "checkpoint-2").iterdir()] == ["notes.txt"]
    assert [p.name for p in (tmp_path / "checkpoint-1").iterdir()] == ["thesis.txt"]
    assert find_last(tmp_path) == (tmp_path / "checkpoint-4", [])


# --- one run, one owner -----------------------------------------------------------------------------------------------


def test_a_run_has_one_writer_at_a_time(tmp_path):
    with lock_run(tmp_path):
        code = "import sys; from pathlib import Path; from scorefast.runs.folder import lock_run\n"
        code += "with lock_run(Path(sys.argv[1])): pass"
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False, cwd=REPOSITORY
        )
        assert "another scorefast is writing into this run" in done.stderr
    with lock_run(tmp_path):
        pass  # let go when its owner is done


def test_a_lock_that_was_removed_lets_nobody_in_and_is_taken_back(tmp_path):
    """One that another process has got hold of ends the run that lost it: no kernel can say whose the run is then."""
    lock = tmp_path / ".lock"
    try_it = "import sys; from pathlib import Path; from scorefast.runs.folder import lock_run\n"
    try_it += "with lock_run(Path(sys.argv[1])): pass"
    with lock_run(tmp_path) as owner:
        for replace in (lock.unlink, lambda: (lock.unlink(), lock.touch()), lambda: (lock.unlink(), lock.mkdir())):
            replace()
            done = subprocess.run([sys.executable, "-c", try_it, tmp_path], capture_output=True, text=True, check=False)
            assert "another scorefast is writing into this run" in done.stderr
            owner.confirm()
            assert lock.exists()
        lock.rmdir()
        with lock.open("w") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            with pytest.raises(RunError, match=r"\.lock: was replaced, and another process holds it"):
                owner.confirm()
        owner.confirm()
        away = tmp_path.rename(tmp_path.with_name("away"))
        tmp_path.mkdir()
        with pytest.raises(FileNotFoundError, match="the run's folder is not there"):
            owner.confirm()
        tmp_path.rmdir()
        away.rename(tmp_path)
        owner.confirm()


def in_the_way(path: Path, kind: str) -> None:
    """A folder with a file in it, a link to a file, a pipe, or nothing."""
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
        (path / "mine").write_text("precious")
    elif kind == "link":
        path.with_name("precious").write_text("precious")
        path.symlink_to("precious")
    elif kind == "pipe":
        os.mkfifo(path)


class Strike(TrainerCallback):
    """Puts something in the place of files of the run after its second step."""

    def __init__(self, run: Path, names: tuple[str, ...], kind: str):
        self.run, self.names, self.kind = run, names, kind

    def on_step_end(self, args, state, control, **_):
        if state.global_step == 2:
            for name in self.names:
                in_the_way(self.run / name, self.kind)


@pytest.mark.parametrize("kind", ["nothing", "link", "pipe", "folder"])
def test_no_log_decides_over_weights(tmp_path, kind):
    """Whatever becomes of what a run is remembered by: every checkpoint and the policy are saved."""
    notes: list[str] = []
    names = ("metrics.jsonl", "run.json", "README.md", "curve.png", "dropped.jsonl")
    job = begun(tmp_path / "run", "stage1.max_steps=4", "stage1.save_steps=1", "rollout.max_new_tokens=4")
    owner = Owner(job.folder)
    owner.keep("run.json", "recipe.yaml")
    trainer = trainer_of(job, notes, owner=owner, callbacks=[Strike(job.folder, names, kind)])
    trainer.train()
    trainer.checkpoints.save_result()
    draw_learning_curve(trainer.log_file.lines, "run", job.folder / "curve.png") if kind != "folder" else None
    assert damage(job.folder) is None
    assert [p.name for p in sorted(job.folder.glob("checkpoint-*"))] == ["checkpoint-3", "checkpoint-4"]
    if kind == "folder":
        said = sorted(note.removeprefix(f"{job.folder}/") for note in notes)
        assert said == [
            "README.md: not written: Is a directory",
            "metrics.jsonl: not written, kept for later: Is a directory",
            "run.json: not written, kept for later: Is a directory",
        ], "each once"
        assert all((job.folder / name / "mine").read_text() == "precious" for name in names)
    else:
        assert notes == []
        assert [m["step"] for m in read_metrics(job.folder) if "loss" in m] == [1, 2, 3, 4]
        assert json.loads((job.folder / "run.json").read_text()) == {}
    if kind == "link":
        assert (job.folder / "precious").read_text() == "precious"
    last, _ = find_last(job.folder)
    assert [m["step"] for m in read_metrics(last) if "loss" in m] == [1, 2, 3, 4], "a checkpoint holds the log too"


def test_a_second_command_into_a_running_run_is_refused(tmp_path):
    recipe = load_recipe("tiny-cpu")
    (tmp_path / "run").mkdir()
    start_run(tmp_path / "run", recipe, {})
    with lock_run(tmp_path / "run"):
        for extra, said in (([], "already holds files"), (["--resume"], "another scorefast is writing into this run")):
            done = scorefast_here("stage1", "--data", SHIPPED, "--out", "run", *extra, cwd=tmp_path)
            assert done.returncode == 2
            assert said in done.stderr


@pytest.fixture(scope="module")
def examples():
    return load_dataset(str(SHIPPED), load_recipe("tiny-cpu").data).splits["train"]


def begun(folder: Path, *overrides: str) -> Job:
    recipe = load_recipe("tiny-cpu", [*SMALL, *overrides])
    folder.mkdir(exist_ok=True)
    start_run(folder, recipe, {})
    return Job("stage1", recipe, load_dataset(str(SHIPPED), recipe.data), None, folder)


# --- numbers gone bad ------------------------------------------------------------------------------------------------


def trainer_of(job: Job, notes: list[str], **settings) -> ScoreTrainer:
    policy = load_policy(job.recipe, trainable=True)
    quick = replace(job, dataset=replace(job.dataset, splits=job.dataset.splits | {"validation": []}))
    reporter = Reporter()
    reporter.note = notes.append
    return ScoreTrainer(policy, quick, reporter=reporter, **settings)


class BadReward:
    """Not finite in the steps named; else the length of the reply."""

    def __init__(self, *steps: int):
        self.steps, self.calls = steps, 0

    def __call__(self, completions, **_):
        self.calls += 1
        step = (self.calls + 1) // 2  # twice a step: first and second attempts
        return [math.nan if step in self.steps else len(c[0]["content"]) / 50 for c in completions]


def test_a_step_with_a_bad_reward_changes_nothing(tmp_path):
    notes: list[str] = []
    weights: list[torch.Tensor] = []
    job = begun(tmp_path / "run", "stage1.max_steps=4", "stage1.save_steps=1", "stage1.save_total_limit=9")
    trainer = trainer_of(job, notes)
    trainer.reward_function = BadReward(2, 3)
    trainer.train()
    for step in range(1, 5):
        state = torch.load(tmp_path / f"run/checkpoint-{step}/optimizer.pt", weights_only=True)["state"]
        adapter = open_checkpoint(str(tmp_path / f"run/checkpoint-{step}")).path / "adapter_model.safetensors"
        weights.append((adapter.read_bytes(), {int(s["step"]) for s in state.values()}))
    assert weights[0][0] == weights[1][0] == weights[2][0] != weights[3][0]
    assert [steps for _, steps in weights] == [{1}, {1}, {1}, {2}], "nor does the optimizer count it"
    lines = read_metrics(tmp_path / "run")
    assert [m.get("skipped") for m in lines] == [None, 1.0, 1.0, None]
    assert [m["loss"] is None for m in lines] == [False, True, True, False], "no later loss is NaN with it"
    assert notes == [f"step {n} is skipped: a reward is not finite" for n in (2, 3)]


def test_three_bad_steps_in_a_row_stop_the_run_and_name_its_last_checkpoint(tmp_path):
    job = begun(tmp_path / "run", "stage1.max_steps=9", "stage1.save_steps=1")
    trainer = trainer_of(job, [])
    trainer.reward_function = BadReward(3, 4, 6, 7, 8)
    with pytest.raises(RunError, match=r"3 steps in a row were skipped .*after step 8, .*checkpoint-7; start again"):
        trainer.train()
    assert [m["step"] for m in read_metrics(tmp_path / "run") if m.get("skipped")] == [3, 4, 6, 7, 8]


def test_a_gradient_that_is_not_finite_is_not_taken(tmp_path):
    notes: list[str] = []
    job = begun(tmp_path / "run", "stage1.max_steps=2")
    trainer = trainer_of(job, notes)
    before = {n: p.clone() for n, p in trainer.policy.model.named_parameters() if p.requires_grad}
    first = next(p for n, p in trainer.policy.model.named_parameters() if "lora_B" in n)
    first.register_hook(lambda gradient: gradient * math.inf)
    trainer.train()
    assert len(notes) == 2
    assert "gradient is not finite" in notes[0]
    assert all(torch.equal(p, before[n]) for n, p in trainer.policy.model.named_parameters() if n in before)


def test_a_policy_too_far_from_its_reference_is_not_followed(tmp_path):
    job = begun(tmp_path / "run", "stage1.max_steps=9", "stage1.max_kl=1e-9", "stage1.learning_rate=1e-2")
    with pytest.raises(RunError, match=r"KL is above stage1.max_kl\); stopped after step 4"):
        trainer_of(job, []).train()
    lines = read_metrics(tmp_path / "run")
    assert [m.get("skipped") for m in lines] == [None, 1.0, 1.0, 1.0], "at step 1 the KL is 0"


class Spoil(TrainerCallback):
    """An update that overflows."""

    def on_optimizer_step(self, args, state, control, model=None, **_):
        if state.global_step == 2:
            next(p for p in model.parameters() if p.requires_grad).data[0, 0] = math.inf


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    job = begun(tmp_path / "run", "stage1.max_steps=5", "stage1.save_steps=1", "stage1.save_total_limit=9")
    with pytest.raises(RunError, match=r"a weight is not finite after step 3; the last checkpoint is .*checkpoint-2$"):
        trainer_of(job, [], callbacks=[Spoil()]).train()
    assert {p.name for p in (tmp_path / "run").glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-2"}


# --- out of memory ---------------------------------------------------------------------------------------------------


def run_with_room_for(rows: int | None, folder: Path, notes: list[str]) -> list[dict]:
    """Two steps; a pass over more than `rows` trajectories runs out of memory, half of them in the backward pass."""
    sgd = ["stage1.optimizer=sgd", "stage1.learning_rate=1"]  # Adam divides by a gradient's size: rounding grows
    job = begun(folder, "stage1.max_steps=2", "stage1.micro_batch_size=8", "stage1.save_steps=2", *sgd)
    trainer = trainer_of(job, notes)
    passes = 0

    def full(*_) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GB")

    def limited(module, arguments, keywords, output) -> None:
        nonlocal passes
        if rows is None or not keywords.get("return_hidden") or len(keywords["input_ids"]) <= rows:
            return
        passes += 1
        if passes % 2 == 0 and output.requires_grad:
            output.register_hook(full)  # part of the gradient is there already
        elif output.requires_grad:
            full()

    trainer.policy.model.register_forward_hook(limited, with_kwargs=True)
    trainer.train()
    return read_metrics(folder)


@pytest.mark.parametrize(("rows", "halvings"), [(4, [4]), (3, [4, 2]), (1, [4, 2, 1])])
def test_out_of_memory_halves_what_is_held_at_once_and_not_the_loss(tmp_path, rows, halvings):
    notes: list[str] = []
    whole = run_with_room_for(None, tmp_path / "whole", notes)
    assert notes == []
    pieces = run_with_room_for(rows, tmp_path / "pieces", notes)
    assert [n for n in notes if "out of memory" in n] == [
        f"out of memory: from here on {n} trajectories at once; the loss stays the same" for n in halvings
    ]
    for ours, theirs in zip(pieces, whole, strict=True):
        for name in ("loss", "grad_norm", "entropy", "kl_t1", "kl_t2", "acc_t2"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-6), name


def test_no_memory_for_one_trajectory_ends_the_run_in_one_line(tmp_path):
    with pytest.raises(RunError, match="out of memory: CUDA out of memory"):
        run_with_room_for(0, tmp_path / "run", [])


def test_out_of_memory_while_sampling_halves_the_prompts(tmp_path):
    notes: list[str] = []
    job = begun(tmp_path / "run", "stage1.max_steps=1", "rollout.batch_size=8")
    trainer = trainer_of(job, notes)

    def limited(module, arguments, keywords) -> None:
        if not keywords.get("return_hidden") and len(keywords["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GB")

    trainer.policy.model.register_forward_pre_hook(limited, with_kwargs=True)
    trainer.policy.model.get_base_model().register_forward_pre_hook(limited, with_kwargs=True)
    trainer.train()
    assert notes == [f"out of memory while sampling: from here on {n} prompts at once" for n in (4, 2)]


# --- signs of collapse -----------------------------------------------------------------------------------------------

WELL = {
    "loss": 0.1,
    "acc_t2": 0.6,
    "truncated": 0.0,
    "changed": 0.3,
    "edit_distance": 0.2,
    "advantage_zero": 0.3,
    "entropy": 0.5,
    "length_t2": 40.0,
}


@pytest.mark.parametrize(
    ("sign", "gone"),
    [
        ("repeats", {"changed": 0.0}),
        ("repeats", {"edit_distance": 0.01}),
        ("no_signal", {"advantage_zero": 0.95}),
        ("narrow", {"entropy": 0.04}),
        ("wide", {"entropy": 1.6}),
        ("length", {"length_t2": 12.0}),
        ("length", {"length_t2": 121.0}),
        ("cut", {"truncated": 0.3}),
    ],
)
def test_a_sign_shows_when_its_figure_goes_wrong_and_not_before(sign, gone):
    well, wrong = [WELL] * 10, [WELL | gone] * 5
    assert signs(well) == {}
    assert set(signs(well + wrong)) == {sign}
    assert signs(well + wrong[:1]) == {}, "one step is chance"
    assert signs(well + wrong + well) == {}, "it passes when its figure does"
    solved = [m | {"acc_t2": 1.0} for m in wrong]
    assert set(signs(well + solved)) <= {"cut"}, "who answers everything right may repeat himself"
    assert remedy(sign, "stage2")


def test_signs_reach_the_log_and_the_table(tmp_path, capsys):
    """The embedded model repeats itself at first: with no learning to speak of, it goes on doing so."""
    notes: list[str] = []
    job = begun(tmp_path / "run", "stage1.max_steps=6", "stage1.learning_rate=1e-9", "rollout.temperature=0.05")
    trainer_of(job, notes).train()
    lines = read_metrics(tmp_path / "run")
    assert [m.get("warning_repeats") for m in lines] == [None] * 4 + [1.0] * 2
    assert lines[4]["edit_distance"] < 0.02
    assert sum("turn 2 repeats turn 1" in n and "stage1.learning_rate" in n for n in notes) == 1, "said once"
    print_warnings(Console(width=120), lines, "stage1")
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "repeats" in line]
    assert row.split("│")[2:5] == [" 2     ", " 5     ", " 6    "]


# --- the log ---------------------------------------------------------------------------------------------------------


def test_a_line_is_strict_json_and_a_torn_one_is_left_out(tmp_path):
    line = metrics_line({"step": 1, "loss": math.nan, "grad_norm": math.inf, "acc_t1": 0.5})
    assert json.loads(line, parse_constant=pytest.fail) == {"step": 1, "loss": None, "grad_norm": None, "acc_t1": 0.5}
    (tmp_path / "metrics.jsonl").write_text(line + '{"step": 2, "lo')
    assert read_metrics(tmp_path) == [json.loads(line)]


def test_a_damaged_checkpoint_is_one_line(trained, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(trained / "runs/stage1", moved)
    content = bytearray((moved / "adapter_model.safetensors").read_bytes())
    content[-1] ^= 1
    (moved / "adapter_model.safetensors").write_bytes(content)
    for command in (["chat", "moved"], ["eval", "moved", "--data", SHIPPED], ["export", "moved", "--out", "x"]):
        done = scorefast_here(*command, cwd=tmp_path)
        assert done.returncode == 2
        wrong = "adapter_model.safetensors has changed since it was written (SHA-256 differs)"
        assert done.stderr.splitlines()[-1] == (
            f"scorefast: moved: not a complete checkpoint: {wrong}; --resume rewrites it, or use moved/checkpoint-2"
        )
