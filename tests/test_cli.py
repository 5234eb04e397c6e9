"""The commands as people run them: what they print, what they make, how they say no."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scorefast.rl.record import TIMING_METRICS
from scorefast.schema import CORRECTION
from tests.conftest import QUICK, REPOSITORY, SHIPPED, scorefast, scorefast_here

RATES = ("acc_t1", "acc_t2", "delta", "delta_i2c", "delta_c2i")


def test_help_and_wrong_flags_load_no_torch():
    """`--help`, a wrong flag and a missing file have to answer at once."""
    code = "import sys, scorefast.cli; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_run_is_an_ordinary_peft_folder(trained):
    from huggingface_hub import ModelCard
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = trained / "runs/stage2"
    base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(folder))
    assert model.peft_config["default"].r == 8
    assert "start_of_turn" in AutoTokenizer.from_pretrained(str(folder)).chat_template
    files = {path.name for path in folder.iterdir()}
    assert {"adapter_model.safetensors", "recipe.yaml", "run.json", "metrics.jsonl", "curve.png"} <= files
    began = json.loads((trained / "runs/stage2/run.json").read_text())
    assert (began["backend"], began["loss"]) == ("transformers", "chunked"), "what `auto` chose is on record"
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert not list(folder.rglob("training_args.bin"))
    card = ModelCard.load(folder / "README.md")
    assert (card.data.library_name, card.data.tags) == ("peft", ["score", "self-correction", "lora"])
    assert card.text.endswith(f"\n> {CORRECTION}\n")
    assert "More Information Needed" not in card.text


def test_stage2_inherits_the_recipe_of_the_run_it_starts_from(trained):
    from scorefast.recipe import load_recipe

    recipes = [load_recipe(str(trained / f"runs/{stage}/recipe.yaml")) for stage in ("stage1", "stage2")]
    assert recipes[0] == recipes[1]
    assert recipes[0].stage1.max_steps == 2


def test_eval_prints_one_json_object_and_writes_reports_beside_the_checkpoints(trained):
    done = scorefast(
        "eval", "base", "runs/stage1", "runs/stage2", "--data", "runs/data", "--json", "--probe", cwd=trained
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    report = json.loads(line)
    assert [r["name"] for r in report["results"]] == ["base", "stage1", "stage2"]
    for result in report["results"]:
        assert result["n"] == 12
        assert result["delta"] == pytest.approx(result["acc_t2"] - result["acc_t1"], abs=1e-9)
        for name in RATES:
            low, high = result["ci95"][name]
            assert -1 <= low <= result[name] <= high <= 1
    assert set(report["probe"]["stage2"]) == {"correct", "wrong", "unrelated", "empty"}
    assert "gain_t2" in report["results"][1]
    assert "gain_t2" not in report["results"][0]
    beside = json.loads((trained / "runs/stage2/report.json").read_text())
    assert {k: beside["results"][0][k] for k in RATES} == {k: report["results"][2][k] for k in RATES}
    transcripts = [json.loads(t) for t in (trained / "runs/stage2/transcripts.jsonl").read_text().splitlines()]
    assert len(transcripts) == 12
    assert sum(t["correct2"] for t in transcripts) / 12 == report["results"][2]["acc_t2"]


def test_eval_reads_the_test_split_only(trained):
    from scorefast.data.load import load_dataset
    from scorefast.recipe import load_recipe

    scorefast("eval", "runs/stage1", "--data", "runs/data", cwd=trained)
    dataset = load_dataset(str(trained / "runs/data"), load_recipe("tiny-cpu").data)
    test_ids = {e.id for e in dataset.splits["test"]}
    seen = {json.loads(t)["id"] for t in (trained / "runs/stage1/transcripts.jsonl").read_text().splitlines()}
    assert seen <= test_ids
    assert not test_ids & {e.id for name in ("train", "validation") for e in dataset.splits[name]}


def test_the_same_seed_gives_the_same_metrics_and_another_does_not(tmp_path):
    runs = []
    for seed in (3, 3, 4):
        out = f"runs/{len(runs)}"
        done = scorefast("stage1", "--data", SHIPPED, *QUICK, "--seed", seed, "--out", out, "--quiet", cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        lines = [json.loads(m) for m in (tmp_path / out / "metrics.jsonl").read_text().splitlines()]
        runs.append([{k: v for k, v in m.items() if k not in TIMING_METRICS} for m in lines])
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_two_processes_take_the_same_step_as_one(tmp_path):
    """Without sampling (supervised on the CSV) the loss and the gradient must not depend on the number of processes."""
    flags = ["--set", "stage1.method=supervised", "--set", "stage1.questions_per_step=8", "--set", "stage1.max_steps=3"]
    steps = {}
    for processes in (1, 2):
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes), "-m", "scorefast"]
        command += ["stage1", "--data", str(SHIPPED), *QUICK, *flags, "--out", f"run{processes}"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
        assert (done.returncode, done.stdout) == (0, f"run{processes}\n"), done.stderr
        lines = [json.loads(m) for m in (tmp_path / f"run{processes}/metrics.jsonl").read_text().splitlines()]
        steps[processes] = [(m["loss"], m["grad_norm"]) for m in lines if "loss" in m]
    assert len(steps[1]) == 3
    assert [x for step in steps[2] for x in step] == pytest.approx([x for step in steps[1] for x in step], rel=1e-3)


def test_chat_answers_a_line_with_a_json_line(trained):
    questions = "What is 123 + 456?\n\n대한민국의 수도는?\n" + "long " * 600 + "\n"
    done = scorefast("chat", "runs/stage2", "--json", cwd=trained, stdin=questions)
    assert done.returncode == 0, done.stderr
    first, second, third = (json.loads(line) for line in done.stdout.splitlines())
    assert first["question"] == "What is 123 + 456?"
    assert len(first["attempts"]) == 2
    assert first["attempts"][0] == "The answer is 579"
    assert first["changed"] == (first["attempts"][0] != first["attempts"][1])
    assert second["question"] == "대한민국의 수도는?"
    assert "max_seq_length" in third["error"]


def test_chat_agrees_with_eval(trained):
    """The conversation is the one that was evaluated: same prompt, same decoding."""
    scorefast("eval", "runs/stage2", "--data", "runs/data", cwd=trained)
    transcripts = [json.loads(t) for t in (trained / "runs/stage2/transcripts.jsonl").read_text().splitlines()]
    done = scorefast("chat", "runs/stage2", cwd=trained, stdin="\n".join(t["question"] for t in transcripts))
    attempts = [json.loads(line)["attempts"] for line in done.stdout.splitlines()]
    assert attempts == [[t["attempt1"], t["attempt2"]] for t in transcripts]


def test_prepare_writes_a_manifest_that_adds_up(trained):
    manifest = json.loads((trained / "runs/data/manifest.json").read_text())
    assert manifest["rows_read"] == manifest["rows_kept"] + sum(manifest["dropped"].values())
    assert manifest["rows_kept"] == sum(manifest["splits"].values())
    assert manifest["token_lengths"]["prompt"]["max"] >= manifest["token_lengths"]["prompt"]["p50"] > 0
    assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in manifest["sha256"].values())


def test_dry_run_prints_the_resolved_recipe_and_makes_nothing(tmp_path):
    done = scorefast_here("stage2", "--data", SHIPPED, "--dry-run", "--set", "stage2.alpha=7", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    assert "alpha: 7.0" in done.stderr
    assert "plan: stage2" in done.stderr
    assert not list(tmp_path.iterdir())


def test_dry_run_prints_what_a_recipe_and_its_base_resolve_to(tmp_path):
    (tmp_path / "base.yaml").write_text("extends: tiny-cpu\nseed: 5\nstage2: {alpha: 3}\n")
    (tmp_path / "mine.yaml").write_text("extends: base.yaml\nstage2: {beta1: 0.5}\n")
    given = ["--recipe", "mine.yaml", "--set", "stage1.beta2=0.25", "--seed", "6"]
    done = scorefast_here("stage2", "--data", SHIPPED, "--dry-run", *given, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    lines = [line.strip() for line in done.stderr.splitlines()]
    assert {"seed: 6", "alpha: 3.0", "beta1: 0.5", "beta2: 0.25", "micro_batch_size: 64"} <= set(lines)
    assert not any(line.startswith("extends") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stage1", "--data", "absent.csv"], "absent.csv: no such file"),
        (["stage1"], "--data"),
        (["stage1", "--dta", "x"], "No such option"),
        (["stage1", "--data", "DATA", "--set", "stage1.max_step=1"], "did you mean 'stage1.max_steps'"),
        (["stage1", "--data", "DATA", "--recipe", "absent"], "no recipe 'absent': give a .yaml file or one of"),
        (["stage1", "--data", "DATA", "--set", "extends=tiny-cpu"], "--set extends: only a recipe file can extend"),
        (
            ["stage1", "--data", "DATA", "--set", "stage1.lr_scheduler=slow"],
            "stage1.lr_scheduler: slow is not a valid",
        ),
        (
            ["stage1", "--data", "DATA", "--set", "stage1.optimizer=magic"],
            "stage1.optimizer: magic is not a valid",
        ),
        (["stage1", "--data", "DATA", "--set", "report_to=paper"], "'paper' is not installed here"),
        (["stage2", "--data", "DATA", "--set", "loss.skip=0.1"], "loss: skip = 0.1 needs impl: triton"),
        (["stage1", "--data", "DATA", "--set", "stage1.lr_scheduler=warmup_stable_decay"], "stage1.lr_scheduler: "),
        (["stage1", "--data", "DATA", "--seed", "4294967296"], "seed"),
        (["stage1", "--data", "DATA", "--out", "empty.csv/run"], "cannot be created"),
        (["stage1", "--data", "DATA", "--set", "model.tuning=full", "--set", "model.dtype=bfloat16"], "float32"),
        (["stage1", "--data", "DATA", "--set", "model.lora.target_modules=[q_proj,lm_head]"], "lm_head"),
        (["stage1", "--data", "DATA", "--set", "model.name=nobody/nothing"], "no tokenizer to be had"),
        (["chat", "torn"], "not a complete safetensors file"),
        (["stage1", "--data", "DATA", "--resume"], "--out"),
        (["stage1", "--data", "DATA", "--resume", "--out", "torn"], "no run to resume here"),
        (["stage2", "--data", "DATA", "--from", "."], "not a checkpoint"),
        (["stage2", "--data", "DATA", "--from", "absent"], "absent: no such checkpoint folder"),
        (["eval", "absent", "--data", "DATA"], "absent: no such checkpoint folder"),
        (["eval", "base", "--data", "DATA", "--split", "dev"], "expected one of train, validation, test"),
        (["chat", "absent"], "absent: no such checkpoint folder"),
        (["prepare", "absent.csv"], "absent.csv: no such file"),
        (["stage1", "--data", "columns.csv"], "has the columns question, reply; expected question,"),
        (["stage1", "--data", "empty.csv"], "the file is empty"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(tmp_path, arguments, message):
    (tmp_path / "columns.csv").write_text("question,reply\na,b\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn/adapter_config.json").write_text("{}")
    (tmp_path / "torn/adapter_model.safetensors").write_bytes(b"")
    done = scorefast_here(*[SHIPPED if a == "DATA" else a for a in arguments], cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert message in done.stderr
    *_, last = done.stderr.splitlines()
    assert last.startswith(("scorefast: ", "╰")), "one line of ours, or the box Typer draws around a wrong flag"
    assert not (tmp_path / "runs").exists(), "nothing is left behind"


@pytest.mark.skipif(torch.cuda.is_available(), reason="triton can run here: there is a CUDA GPU")
def test_a_loss_that_cannot_run_here_is_refused_before_a_model_is_loaded(tmp_path):
    done = scorefast_here("stage1", "--data", SHIPPED, "--set", "loss.impl=triton", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "scorefast: loss.impl: impl 'triton' cannot run here: it needs a CUDA GPU, the device is cpu; use 'chunked'"
    )
    assert not (tmp_path / "runs").exists()


def test_a_folder_with_files_is_not_overwritten(trained):
    before = (trained / "runs/stage1/adapter_model.safetensors").read_bytes()
    done = scorefast_here("stage1", "--data", "runs/data", "--out", "runs/stage1", cwd=trained)
    assert done.returncode == 2
    assert "already holds files" in done.stderr
    assert (trained / "runs/stage1/adapter_model.safetensors").read_bytes() == before


def test_a_checkpoint_of_another_base_is_refused(trained):
    for command in (["stage2", "--from", "runs/stage1"], ["eval", "runs/stage1"]):
        done = scorefast_here(*command, "--data", "runs/data", "--recipe", "gemma-2-2b-it", cwd=trained)
        assert done.returncode == 2
        assert "trained on 'tiny-gemma2', but the recipe's model.name is 'google/gemma-2-2b-it'" in done.stderr


def test_a_run_with_other_splits_is_not_evaluated_as_if_it_were_held_out(trained):
    for command in (["stage2", "--from", "runs/stage1"], ["eval", "runs/stage1"]):
        done = scorefast_here(*command, "--data", SHIPPED, "--set", "data.test_fraction=0.5", cwd=trained)
        assert done.returncode == 2
        assert "its run had data.test_fraction = 0.4, this recipe has 0.5" in done.stderr


def test_data_of_which_no_row_can_be_graded_right_is_refused(tmp_path):
    (tmp_path / "d.csv").write_text("question,correct_answer\n1 + 1?,plum\n2 + 2?,apple\n")
    done = scorefast_here("eval", "base", "--data", "d.csv", "--grader", "numeric", cwd=tmp_path)
    assert done.returncode == 2
    assert "no reply to any of 2 rows can be graded right: correct_answer contains no number" in done.stderr


def test_resume_with_other_data_is_refused(trained, tmp_path):
    done = scorefast_here("stage1", "--data", SHIPPED, "--out", "runs/stage1", "--resume", cwd=trained)
    assert done.returncode == 2
    assert "is not the data that it began with" in done.stderr


def test_supervised_without_first_attempts_says_what_to_do(tmp_path):
    (tmp_path / "d.csv").write_text("question,correct_answer\n" + "".join(f"q{i},{i}\n" for i in range(50)))
    done = scorefast_here("stage1", "--data", "d.csv", "--set", "stage1.method=supervised", cwd=tmp_path)
    assert done.returncode == 2
    assert "first_attempt=sampled" in done.stderr


def test_a_question_too_long_for_the_model_is_named_before_it_is_cut(tmp_path):
    rows = "".join(f"q{i} {'many words ' * 400 if i % 3 == 0 else ''},1,2\n" for i in range(30))
    (tmp_path / "d.csv").write_text("question,original_answer,correct_answer\n" + rows)
    for command in (["stage1"], ["eval", "base", "--out", "out"]):
        done = scorefast_here(*command, "--data", "d.csv", cwd=tmp_path)
        assert done.returncode == 2
        assert "many words many words" in done.stderr.splitlines()[-1]
        assert "max_seq_length is 512" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"d.csv"}


def test_a_place_where_nothing_can_be_made_is_one_line(tmp_path):
    (tmp_path / "runs").symlink_to(tmp_path / "nowhere")
    done = scorefast_here("prepare", SHIPPED, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("scorefast: runs/data: cannot be created: ")
    (tmp_path / "runs").unlink()
    (tmp_path / "runs").write_text("a file")
    assert scorefast_here("prepare", SHIPPED, cwd=tmp_path).returncode == 2


@pytest.mark.parametrize(
    ("key", "name", "why"),
    [
        ("optimizer", "galore_adamw", "install `galore_torch`"),
        ("optimizer", "lomo", "install `lomo_optim`"),
        ("optimizer", "adamw_anyprecision", "torchdistx"),
        ("optimizer", "schedule_free_adamw", "install `schedulefree`"),
        ("lr_scheduler", "reduce_lr_on_plateau", "it follows a metric"),
        ("lr_scheduler", "greedy", "it follows a metric"),
        ("lr_scheduler", "cosine_with_min_lr", "min_lr"),
        ("lr_scheduler", "warmup_stable_decay", "num_decay_steps"),
    ],
)
def test_an_optimizer_or_scheduler_that_cannot_be_used_is_one_line(tmp_path, key, name, why):
    """Before a model is loaded, or a folder made."""
    done = scorefast_here("stage1", "--data", SHIPPED, "--out", "a/b", "--set", f"stage1.{key}={name}", cwd=tmp_path)
    assert done.returncode == 2
    said = done.stderr.splitlines()[-1]
    assert said.startswith(f"scorefast: stage1.{key}: {name} cannot be used here: ")
    assert why in said
    assert "; use another, such as " in said
    assert not list(tmp_path.iterdir())


def test_python_may_leave_out_assertions_and_docstrings(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONOPTIMIZE", "2")
    assert "Stage I: reward the second attempt" in scorefast("stage1", "--help", cwd=tmp_path).stdout
    done = scorefast("stage1", "--data", SHIPPED, "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_stage_that_fails_leaves_a_folder_that_was_there_before(tmp_path):
    """Folders that it made are removed; here the base model has no weights."""
    (tmp_path / "base").mkdir()
    for path in (REPOSITORY / "scorefast/assets/tiny-gemma2").iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, tmp_path / "base")
    (tmp_path / "old").mkdir()
    for out in ("old", "new/run"):
        done = scorefast_here("stage1", "--data", SHIPPED, "--out", out, "--set", "model.name=./base", cwd=tmp_path)
        assert done.returncode == 2, done.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"base", "old"}
    assert not list((tmp_path / "old").iterdir())


def test_what_a_killed_command_left_is_named(tmp_path):
    (tmp_path / "out" / ".partial").mkdir(parents=True)
    done = scorefast_here("prepare", SHIPPED, "--out", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("killed command left behind, out/.partial; remove that")


@pytest.mark.parametrize("name", ["n\udcff.csv", "n\udcff"])
def test_a_name_that_is_not_utf8_is_one_line(tmp_path, name):
    for arguments in (["prepare", name], ["stage1", "--data", SHIPPED, "--out", name]):
        done = scorefast_here(*arguments, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].endswith(": not UTF-8; rename it")
    assert not list(tmp_path.iterdir())


def test_a_file_that_must_not_be_read_is_one_line(tmp_path, monkeypatch):
    own = Path.open

    def unreadable(path, *given, **more):
        if path.name == "secret.csv":
            raise PermissionError(13, "Permission denied", str(path))
        return own(path, *given, **more)

    (tmp_path / "secret.csv").write_text("question,correct_answer\n1+1?,2\n")
    monkeypatch.setattr(Path, "open", unreadable)
    done = scorefast_here("stage1", "--data", "secret.csv", cwd=tmp_path)
    assert done.returncode == 2
    assert "secret.csv: Permission denied" in done.stderr.splitlines()[-1]


def test_a_command_without_streams_ends_by_itself(tmp_path):
    """0<&- and >&-: Python then has no sys.stdin and no sys.stdout."""
    (tmp_path / "graded.jsonl").write_text('{"answer": "The answer is 4", "reference": "4"}\n')
    for command in ("chat base --recipe tiny-cpu 0<&-", "grade graded.jsonl >&-"):
        given = ["bash", "-c", f"{sys.executable} -m scorefast {command}"]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(given, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        assert "Traceback" not in done.stderr
