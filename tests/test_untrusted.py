"""Folders of models and adapters that somebody else made, damaged or meant ill: one line, no code run, no hang."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import struct
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from scorefast.errors import UserError
from scorefast.files.bounded import bounded_work, read_json
from scorefast.files.seal import seal
from scorefast.model.load import load_policy
from scorefast.model.policy import save_policy
from scorefast.model.tokenizer import load_config
from scorefast.recipe import EMBEDDED_MODELS, dump_recipe, load_recipe
from scorefast.runs.checkpoint import Checkpoint, open_checkpoint
from scorefast.runs.layout import RECIPE
from scorefast.runs.recipe_choice import chosen_recipe
from scorefast.ui.plots import draw_learning_curve
from tests.conftest import SHIPPED, scorefast, scorefast_here

TINY = EMBEDDED_MODELS["tiny-gemma2"]
ENDLESS = "^(([a-z0-9_.])+)+!$"  # a pattern that tries for ever
ON_LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is bounded on Linux alone")


@pytest.fixture(scope="module")
def saved(tmp_path_factory, recipe) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "adapter"
    save_policy(load_policy(recipe, trainable=True), folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "tiny-gemma2"}))
    return folder


@pytest.fixture
def adapter(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "adapter"))


@pytest.fixture
def model(tmp_path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "model"))


def refusal(load) -> str:
    with pytest.raises(UserError) as caught:
        load()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


def refused_adapter(adapter, recipe) -> str:
    return refusal(lambda: load_policy(recipe, open_checkpoint(str(adapter))))


def refused_model(model) -> str:
    return refusal(lambda: load_policy(load_recipe("tiny-cpu", [f"model.name={model}"])))


def rewrite(path: Path, **changes) -> None:
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_a_sound_adapter_and_a_sound_model_load(adapter, model, recipe):
    load_policy(recipe, open_checkpoint(str(adapter)))
    load_policy(load_recipe("tiny-cpu", [f"model.name={model}"]))


def with_header(path: Path, header: bytes, length: int | None = None) -> None:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header)


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1000]),
    "header truncated": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "header of 10 GB": lambda path: with_header(path, b"{}", 10 * 2**30),
    "header beyond 64 bits": lambda path: with_header(path, b"{}", 2**64 - 1),
    "header flipped": lambda path: path.write_bytes(path.read_bytes()[:9] + b"\xff" + path.read_bytes()[10:]),
    "header deep": lambda path: with_header(path, b'{"a":' * 5000),
    "text": lambda path: path.write_text("not a model"),
    "a tensor beyond the file": lambda path: with_header(
        path, json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weights_are_named(adapter, model, recipe, damage):
    for weights, refused in (
        (adapter / "adapter_model.safetensors", lambda: refused_adapter(adapter, recipe)),
        (model / "model.safetensors", lambda: refused_model(model)),
    ):
        DAMAGES[damage](weights)
        assert f"{weights}: not a complete safetensors file" in refused()


def test_weights_that_are_no_file_do_not_hang(adapter, recipe):
    (adapter / "adapter_model.safetensors").unlink()
    os.mkfifo(adapter / "adapter_model.safetensors")
    assert "adapter_model.safetensors: not a file" in refused_adapter(adapter, recipe)


def change_tensors(path: Path, change) -> None:
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def test_tensors_that_are_missing_are_counted(adapter, model, recipe):
    three = sorted(load_file(adapter / "adapter_model.safetensors"))[:3]
    change_tensors(adapter / "adapter_model.safetensors", lambda t: {n: v for n, v in t.items() if n not in three})
    assert "adapter: 3 tensors are missing, the first is base_model.model" in refused_adapter(adapter, recipe)
    change_tensors(model / "model.safetensors", lambda t: {f"x.{n}": v for n, v in t.items()})
    assert " tensors are missing, the first is lm_head.weight" in refused_model(model)


def test_tensors_that_the_model_does_not_know_are_counted(adapter, model, recipe):
    foreign = {f"stranger.{i}.weight": torch.ones(8) for i in range(2)}
    change_tensors(adapter / "adapter_model.safetensors", lambda tensors: tensors | foreign)
    assert "2 tensors are not known to the model, the first is" in refused_adapter(adapter, recipe)
    change_tensors(model / "model.safetensors", lambda tensors: tensors | foreign)
    assert "2 tensors are not known to the model, the first is stranger.0.weight" in refused_model(model)


def test_an_adapter_of_the_shared_head_is_refused(adapter, recipe):
    head = {"base_model.model.lm_head.lora_A.weight": torch.ones(4, 64)}
    change_tensors(adapter / "adapter_model.safetensors", lambda tensors: tensors | head)
    assert "adapts lm_head, which the trained model shares with the original" in refused_adapter(adapter, recipe)


@pytest.mark.parametrize(
    ("change", "message"),
    [(lambda t: t * math.nan, "holds NaN or infinite values"), (lambda t: t.to(torch.int8), "is of type I8")],
)
def test_an_adapter_of_no_plain_numbers_is_refused(adapter, recipe, change, message):
    path = adapter / "adapter_model.safetensors"
    name = sorted(load_file(path))[0]
    change_tensors(path, lambda tensors: tensors | {name: change(tensors[name])})
    assert f"adapter_model.safetensors: {name} {message}" in refused_adapter(adapter, recipe)


def test_an_adapter_of_another_base_is_refused(adapter, model):
    wide = load_config(str(model))
    wide.intermediate_size = 128
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_config(wide).save_pretrained(model)
    recipe = load_recipe("tiny-cpu", [f"model.name={model}"])
    message = refusal(lambda: load_policy(recipe, open_checkpoint(str(adapter))))
    assert "this adapter cannot be loaded" in message
    assert "size mismatch" in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 10**9}, "r or rank_pattern is larger than any matrix"),
        ({"r": "eight"}, "r is 'eight', which is not supported"),
        ({"r": None}, "expected r, lora_alpha and target_modules"),
        ({"rank_pattern": {"q_proj": 10**9}}, "r or rank_pattern is larger than any matrix"),
        ({"rank_pattern": {ENDLESS: 8}}, "rank_pattern is"),
        ({"alpha_pattern": {ENDLESS: 8}}, "alpha_pattern is"),
        ({"layer_replication": [[0, 3]] * 20_000}, "layer_replication is set"),
        ({"init_lora_weights": "pissa_niter_999999999"}, "init_lora_weights is set"),
        ({"bias": "all"}, "bias is set"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is set"),
        ({"lora_alpha": math.inf}, "lora_alpha is inf"),
        ({"peft_type": "PROMPT_TUNING"}, "peft_type is 'PROMPT_TUNING'; expected LORA"),
        ({"peft_type": None}, "peft_type is None; expected LORA"),
        ({"megatron_config": {"a": 1}, "megatron_core": "antigravity"}, "megatron_config is set"),
        ({"target_modules": ["nothing"]}, "cannot be loaded"),
        ({"target_modules": 7}, "target_modules is 7"),
        ({"lora_alpha": "much"}, "lora_alpha is 'much'"),
        ({"lora_dropout": [1]}, "lora_dropout is [1]"),
        ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS'"),
        ({"unheard_of": {"deep": [1]}}, "unheard_of is set"),
        ({"r": 4}, "cannot be loaded"),
    ],
)
def test_an_adapters_hostile_settings_are_one_line(adapter, recipe, changes, message):
    rewrite(adapter / "adapter_config.json", **changes)
    assert message in refused_adapter(adapter, recipe)


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": ENDLESS},
        {"target_modules": r".*\.(q_proj|v_proj)"},
        {"exclude_modules": ENDLESS},
        {"layers_to_transform": [0, 1, 2], "layers_pattern": ENDLESS},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": False},
    ],
)
def test_a_pattern_for_modules_is_not_run_the_weights_name_them(adapter, recipe, changes):
    expected = load_policy(recipe, open_checkpoint(str(adapter))).model.state_dict()
    rewrite(adapter / "adapter_config.json", **changes)
    found = load_policy(recipe, open_checkpoint(str(adapter))).model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mine", "auto_map": {"AutoConfig": "evil.Config"}}, "contains custom code"),
        ({"model_type": None}, "no configuration to be had|cannot be loaded|no tokenizer"),
        ({"model_type": "mine"}, "no configuration to be had"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers is 1000000000000; at most 1000"),
        ({"text_config": {"num_hidden_layers": 10**12}}, "num_hidden_layers is 1000000000000"),
        ({"num_hidden_layers": 5, "layer_types": None}, "tensors are missing"),
        ({"num_hidden_layers": 2, "layer_types": None}, "tensors are not known"),
        ({"num_hidden_layers": "three"}, "no configuration to be had"),
        ({"hidden_size": 10**7}, "parameters, the weights have"),
        ({"vocab_size": 10**8}, "parameters, the weights have"),
        ({"vocab_size": 467}, "cannot be loaded"),
        ({"intermediate_size": -1}, "intermediate_size is -1; expected 0 or more"),
        (
            {"attn_implementation": "somebody/kernel"},
            "attn_implementation is 'somebody/kernel', which names something to be fetched",
        ),
        ({"transformers_weights": "../x.safetensors"}, "transformers_weights names something to be fetched"),
        ({"dtype": "mine"}, "no configuration to be had"),
    ],
)
def test_a_models_hostile_settings_are_one_line(model, changes, message):
    (model / "evil.py").write_text("raise SystemExit('code of a downloaded folder was run')\n")
    rewrite(model / "config.json", **changes)
    assert any(part in (said := refused_model(model)) for part in message.split("|")), said


def test_code_of_a_tokenizer_is_not_run(model):
    (model / "evil.py").write_text("raise SystemExit('code of a downloaded folder was run')\n")
    changes = {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}, "tokenizer_class": "Tokenizer"}
    rewrite(model / "tokenizer_config.json", **changes)
    policy = load_policy(load_recipe("tiny-cpu", [f"model.name={model}"]))
    assert type(policy.tokenizer).__module__.startswith("transformers.")


def test_no_prompt_asks_whether_to_run_code(model):
    """With a terminal to answer on, transformers would ask; the command has stdin here, and nobody reads it."""
    rewrite(model / "config.json", model_type="mine", auto_map={"AutoConfig": "somebody/else--evil.Config"})
    done = scorefast("chat", "--set", f"model.name={model}", cwd=model, stdin="y\ny\n")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("scorefast: ")]
    assert "custom code" in line
    assert "Traceback" not in done.stderr


def test_code_that_a_checkpoints_recipe_names_is_not_run_unasked(adapter, recipe):
    """Not even imported: only who starts a stage names the reward function. Evaluation needs none."""
    (adapter.parent / "evil.py").write_text(
        "open('was-run', 'w')\n\ndef reward(completions, **_):\n    return [1.0] * len(completions)\n"
    )
    hostile = recipe.model_copy(update={"reward": recipe.reward.model_copy(update={"function": "evil:reward"})})
    (adapter / "recipe.yaml").write_text(dump_recipe(hostile))
    seal(adapter)
    stage2 = ["stage2", "--from", "adapter", "--data", SHIPPED, "--dry-run"]
    done = scorefast(*stage2, cwd=adapter.parent)
    assert done.returncode == 2
    assert done.stderr.endswith("to allow it, add --reward evil:reward\n")
    assert not (adapter.parent / "was-run").exists()
    assert scorefast(*stage2, "--reward", "evil:reward", cwd=adapter.parent).returncode == 0
    assert scorefast("eval", "adapter", "--data", SHIPPED, "--dry-run", cwd=adapter.parent).returncode == 0


JSON_FILES = ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "adapter_config.json"]


@pytest.mark.parametrize("file", JSON_FILES)
@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"a":' * 100_000, '{"a": ' + "9" * 5000 + "}", "\xff", "null"])
def test_json_that_is_none_is_one_line(adapter, model, recipe, file, text):
    folder = adapter if file.startswith("adapter") else model
    (folder / file).write_bytes(text.encode("latin-1"))
    assert str(folder) in (refused_adapter(adapter, recipe) if folder == adapter else refused_model(model))


@pytest.mark.parametrize("file", JSON_FILES)
def test_json_without_an_end_is_refused_by_its_size(adapter, model, recipe, file):
    folder = adapter if file.startswith("adapter") else model
    os.truncate(folder / file, 2**40)  # a hole: takes no room on the disk
    message = refused_adapter(adapter, recipe) if folder == adapter else refused_model(model)
    assert f"{folder / file}: larger than" in message


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("../../other.safetensors", "expected a .safetensors file in the same folder"),
        ("/etc/other.safetensors", "expected a .safetensors file in the same folder"),
        ("sub/other.safetensors", "expected a .safetensors file in the same folder"),
        ("..\\other.safetensors", "expected a .safetensors file in the same folder"),
        ("pytorch_model.bin", "expected a .safetensors file in the same folder"),
        ("other.safetensors", "which does not exist"),
        (7, "expected a weight_map of tensor names to files"),
    ],
)
def test_an_index_leads_nowhere_else(model, named, message):
    (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"model.norm.weight": named}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert message in refused_model(model)


@pytest.mark.parametrize("pickle", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt"])
def test_a_pickle_is_refused_with_the_way_out(model, pickle):
    (model / "model.safetensors").rename(model / pickle)
    message = refused_model(model)
    assert f"{model / pickle}: pickled weights, which can run arbitrary code when loaded" in message
    assert "safetensors.torch.save_file" in message


def test_an_adapter_in_pickle_is_refused_with_the_way_out(adapter, recipe):
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    assert "pickled weights" in refused_adapter(adapter, recipe)


def test_a_pickle_beside_safetensors_is_not_read(adapter, model, recipe):
    for folder, name in ((adapter, "adapter_model.bin"), (model, "pytorch_model.bin")):
        (folder / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    load_policy(load_recipe("tiny-cpu", [f"model.name={model}"]), open_checkpoint(str(adapter)))


def test_a_model_folder_that_leads_to_another_model_is_refused(adapter, model):
    shutil.copy(adapter / "adapter_config.json", model)
    assert "contains a model and an adapter" in refused_model(model)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("x" * 100_001, "a chat template of 100,001 characters; at most 100,000"),
        ("x" * 1_000_000, "larger than 400,000 bytes"),
        ("{{ raise_exception('no, not with you') }}", "fails on user, assistant, user: no, not with you"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% for", "chat template"),
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "chat template"),
        ("{{ messages.append(1) }}", "chat template"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "more than 1 seconds"),
        ("{{ 9 ** (9 ** 9) }}", "more than 1 seconds"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "recursion"),
        pytest.param("{{ 'a' * 10 ** 10 }}", "MemoryError", marks=ON_LINUX),
        pytest.param("{{ '%9999999999d' % 1 }}", "MemoryError", marks=ON_LINUX),
    ],
)
@pytest.mark.parametrize("place", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_hostile_template_is_one_line(model, template, message, place, monkeypatch):
    monkeypatch.setattr("scorefast.model.template.TEMPLATE_WORK", (1.0, 2**28))
    if place == "chat_template.jinja":
        (model / place).write_text(template)
    else:
        (model / "chat_template.jinja").unlink()
        rewrite(model / place, chat_template=template)
        message = message.replace("larger than 400,000 bytes", "of 1,000,000 characters; at most")
    assert message in refused_model(model)


def test_time_is_bounded_and_the_alarm_before_comes_back():
    rang = []
    before = signal.signal(signal.SIGALRM, lambda *_: rang.append(1))
    try:
        with pytest.raises(RuntimeError, match=r"more than 0\.1 seconds"), bounded_work(0.1, 2**28):
            time.sleep(10)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with bounded_work(10, 2**28):
            pass
        time.sleep(0.1)
        assert rang == [1]
    finally:
        signal.signal(signal.SIGALRM, before)


@ON_LINUX
def test_memory_is_bounded_and_the_limit_before_comes_back():
    with pytest.raises(MemoryError), bounded_work(10, 2**26):
        bytearray(2**27)
    with bounded_work(10, 2**28):
        assert len(bytearray(2**27)) == 2**27
    assert len(bytearray(2**28)) == 2**28


def test_json_is_read_within_its_limit(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert read_json(tmp_path / "a.json", 8) == {"a": 1}
    with pytest.raises(UserError, match="larger than 7 bytes"):
        read_json(tmp_path / "a.json", 7)


def test_metrics_go_to_no_service_that_only_a_checkpoint_names(tmp_path):
    theirs = load_recipe("tiny-cpu", ["report_to=wandb", "seed=5"])
    (tmp_path / RECIPE).write_text(dump_recipe(theirs))
    start, said = Checkpoint("theirs", tmp_path, True, "tiny-gemma2", theirs), []
    ours = chosen_recipe("auto", [], start, said.append, rewards=True)
    assert (ours.report_to, ours.seed) == ("none", 5)
    assert said[-1].startswith("report_to: 'wandb' of ")
    assert chosen_recipe("auto", ["report_to=wandb"], start, said.append, rewards=True) == theirs


def test_what_is_written_beside_a_strangers_checkpoint_follows_no_link(trained, tmp_path):
    """Reports, rows left out and the curve: a link in the folder would lead to any file of the user's."""
    theirs = tmp_path / "theirs"
    shutil.copytree(trained / "runs/stage1", theirs)
    rows = SHIPPED.read_text(encoding="utf-8").splitlines()[:200]
    (tmp_path / "d.csv").write_text("\n".join([*rows, ",,"]) + "\n", encoding="utf-8")
    (tmp_path / "mine").write_text("precious")
    for name in ("report.json", "transcripts.jsonl", "dropped.jsonl", "curve.png"):
        (theirs / name).unlink(missing_ok=True)
        (theirs / name).symlink_to("../mine")
    few = ["--set", "eval.max_questions=3"]
    done = scorefast_here("eval", "theirs", "--data", "d.csv", *few, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "theirs/report.json\n"), done.stderr
    draw_learning_curve([{"step": 1, "acc_t1": 0.5, "acc_t2": None}], "x", theirs / "curve.png")
    assert (tmp_path / "mine").read_text() == "precious"
    assert not any(path.is_symlink() for path in theirs.iterdir())
    assert (theirs / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_report_that_cannot_be_written_is_printed_and_the_old_one_kept(trained, tmp_path):
    shutil.copytree(trained / "runs/stage1", tmp_path / "run")
    (tmp_path / "run/report.json").write_text("old")
    (tmp_path / "run/transcripts.jsonl").unlink(missing_ok=True)
    (tmp_path / "run/transcripts.jsonl").mkdir()
    few = ["--set", "eval.max_questions=3"]
    given = ["run", "base", "--data", SHIPPED, *few, "--json", "--out", "all"]
    done = scorefast_here("eval", *given, cwd=tmp_path)
    assert done.returncode == 1
    assert json.loads(done.stdout)["results"][0]["n"] == 3
    assert json.loads((tmp_path / "all/report.json").read_text()) == json.loads(done.stdout), "others are written"
    assert "transcripts.jsonl: Is a directory: the report was not written" in done.stderr.splitlines()[-1]
    assert (tmp_path / "run/report.json").read_text() == "old"
