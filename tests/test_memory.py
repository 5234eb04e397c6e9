"""The plan against real tensors: what is rehearsed without numbers is what the model then takes."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch._subclasses.fake_tensor import FakeTensorMode

from scorefast import train
from scorefast.data.load import load_dataset
from scorefast.model.load import load_policy, shape_of_policy
from scorefast.model.memory import _frozen_bytes, _rollout_bytes, _update_bytes, plan_memory
from scorefast.recipe import load_recipe
from scorefast.runs.job import Job
from scorefast.ui.tables import print_memory
from tests.conftest import NO_NETWORK, REPOSITORY, SHIPPED

TINY = ["model.max_seq_length=512", "rollout.max_new_tokens=40"]


def plan(*flags, stage="stage2", **sizes):
    recipe = load_recipe("tiny-cpu", [*TINY, *flags])
    sizes = {"tokens": 150, "generated": 4, "micro_batch": 2, "base": 0} | sizes
    return plan_memory(recipe, getattr(recipe, stage), **sizes)


def sizes(planned):
    return {part.name: part.size for part in planned.parts}


@pytest.mark.parametrize(("recipe", "count"), [("gemma-2-2b-it", 2_614_341_888), ("gemma-2-9b-it-24gb", 9_241_705_984)])
def test_parameters_are_those_of_the_published_models(recipe, count):
    """Known from the models' own files; the configurations come with the package."""
    model = shape_of_policy(load_recipe(recipe), FakeTensorMode())
    assert sum(p.numel() for p in model.parameters() if not p.requires_grad) == count


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_update_takes_what_is_planned(checkpointing):
    """The same count over the same passes, once with numbers and once without."""
    recipe = load_recipe("tiny-cpu", [*TINY, f"model.gradient_checkpointing={str(checkpointing).lower()}"])
    planned = sizes(plan(f"model.gradient_checkpointing={str(checkpointing).lower()}"))
    kept, again = _update_bytes(load_policy(recipe, trainable=True).model, 2, 150, checkpointing)
    assert planned["activations"] == pytest.approx(kept, rel=0.02)
    assert planned["backward, beside them"] == pytest.approx(again, rel=0.05)
    assert kept > 2 * 150 * 64 * 4, "more than one hidden state"


def test_a_rollout_takes_what_is_planned():
    policy = load_policy(load_recipe("tiny-cpu", TINY), trainable=True)
    with torch.no_grad():
        cache = policy.model(input_ids=torch.zeros(4, 148, dtype=torch.int64), use_cache=True).past_key_values
        policy.model(input_ids=torch.zeros(4, 1, dtype=torch.int64), past_key_values=cache, use_cache=True)
    held = sum(t.untyped_storage().nbytes() for layer in cache.layers for t in (layer.keys, layer.values))
    planned = sizes(plan())
    assert held < 6 * 4 * 2 * 149 * 16 * 4, "two of the three layers have a window of 64"
    assert planned["KV cache"] == pytest.approx(held, rel=0.02)
    assert planned["rollout, beside it"] == pytest.approx(_rollout_bytes(policy.model, 4, 150, 40)[1], rel=0.05)


def test_four_bit_weights_take_what_is_planned():
    """Against bitsandbytes' own tensors: packed weights, their constants, and the constants of those."""
    recipe = load_recipe("tiny-cpu", ["model.load_in_4bit=true"])
    model = load_policy(recipe).model
    held = sum(p.nbytes for p in model.parameters())
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            held += state.absmax.nbytes + (state.state2.absmax.nbytes + state.offset.nbytes if state.nested else 0)
    planned, _ = _frozen_bytes(shape_of_policy(recipe, FakeTensorMode()), four_bit=True)
    assert planned == pytest.approx(held, rel=0.02)
    assert planned < 0.6 * sum(p.nbytes for p in load_policy(load_recipe("tiny-cpu")).model.parameters())


def test_a_plan_adds_up_by_hand():
    """Gemma-2-2B in 4 bit, by its own shape: 26 layers of 2,304, 8 heads and 4 pairs of 256, 9,216 inside, and
    256,000 words; bitsandbytes' NF4 has a byte for 64 weights, and a float32 for 256 of those."""
    recipe = load_recipe("gemma-2-2b-it")
    linear = 26 * (2304 * (8 + 4 + 4 + 8) * 256 + 3 * 2304 * 9216)
    rest = 256_000 * 2304 + (4 * 26 + 1) * 2304
    rank = 16 * 26 * ((2304 + 2048) * 2 + (2304 + 1024) * 2 + (2304 + 9216) * 3)
    by_hand = sizes(plan_memory(recipe, recipe.stage2, tokens=1100, generated=8, micro_batch=1, base=7))
    assert by_hand["frozen weights"] == pytest.approx(linear * (0.5 + 1 / 64 + 4 / (64 * 256)) + 2 * rest, rel=1e-4)
    assert by_hand["trained weights"] == by_hand["gradients"] == 4 * rank
    assert by_hand["optimizer"] == 2 * rank, "of 8 bit"
    assert by_hand["a layer's weights out of 4 bit"] == 2 * 2304 * 9216
    cached = 8 * 1099 * 4 * 256 * 2 * 2 * 26  # no window is shorter than the sequence
    assert by_hand["KV cache"] == pytest.approx(cached, rel=0.002)
    few = sizes(plan_memory(recipe, recipe.stage2, tokens=40, generated=8, micro_batch=1, base=7))
    assert few["logits of the loss"] == 40 * 256_000 * (4 + 4 + 2), "policy and reference, and a gradient in 16 bit"
    whole = load_recipe("score-paper")
    full = plan_memory(whole, whole.stage2, tokens=100, generated=1, micro_batch=1, base=0)
    held = {part.name: part.moments for part in full.parts}
    assert held["gradients"] == ("loss", "backward", "step")
    assert sizes(full)["optimizer"] == 2 * sizes(full)["gradients"]
    assert "model.lora.r" not in {part.smaller for part in full.parts}


def test_validation_is_planned_where_training_writes_nothing():
    recipe = load_recipe("tiny-cpu", ["stage1.method=supervised", "stage1.first_attempt=data", "eval.max_questions=5"])
    dataset = load_dataset(str(SHIPPED), recipe.data)
    five, none = (
        train.plan(Job("stage1", recipe, dataset, None, Path())),
        replace(dataset, splits=dataset.splits | {"validation": []}),
    )
    assert "KV cache" not in sizes(train.plan(Job("stage1", recipe, none, None, Path())))
    assert sizes(five)["KV cache"] > 0
    more = load_recipe("tiny-cpu", ["stage1.method=supervised", "stage1.first_attempt=data", "eval.max_questions=10"])
    twice = sizes(train.plan(Job("stage1", more, dataset, None, Path())))["KV cache"]
    assert twice == pytest.approx(2 * sizes(five)["KV cache"], rel=1e-3)


def test_the_plan_grows_with_what_it_is_said_to_grow_with():
    one, twice = sizes(plan()), sizes(plan(generated=8, micro_batch=4))
    for name in ("KV cache", "activations", "logits of the loss"):
        assert twice[name] == pytest.approx(2 * one[name], rel=0.05), name
    assert sizes(plan("loss.buffer_mb=1"))["logits of the loss"] <= 1 << 20
    assert sizes(plan("loss.impl=reference"))["logits of the loss"] > 3 * one["logits of the loss"]
    assert sizes(plan("stage2.optimizer=adamw_8bit"))["optimizer"] == one["optimizer"] / 4
    assert sizes(plan("model.gradient_checkpointing=true"))["activations"] < one["activations"] / 2
    assert "KV cache" not in sizes(plan(generated=0))
    full = plan("model.tuning=full")
    assert sizes(full)["frozen weights"] > full.parameters * 4, "a frozen copy, beside embeddings and head"


def test_moments_add_up_and_the_largest_is_named():
    planned = plan(base=10**6)
    assert planned.total == max(planned.moments.values()) == planned.moments[planned.peak]
    assert planned.moments["loss"] == sum(p.size for p in planned.parts if "loss" in p.moments)
    assert planned.trained == 33_792


def test_it_is_said_whether_it_fits_and_what_to_turn(capsys):
    print_memory(Console(width=200), plan(generated=4000), "Some Card", 10**6)
    said = capsys.readouterr().out
    assert "Some Card has 0.00 GB" in said
    assert "It does not fit. Lower or set: rollout.batch_size (" in said
    print_memory(Console(width=200), plan(), "Some Card", 10**12)
    assert "does not fit" not in capsys.readouterr().out


def test_a_stage_is_planned_at_its_longest_question():
    recipe = load_recipe("tiny-cpu")
    dataset = load_dataset(str(SHIPPED), recipe.data)
    chat = load_policy(recipe).chat
    assert (
        train.plan(Job("stage2", recipe, dataset, None, Path())).tokens
        == train.longest_sequence(Job("stage2", recipe, dataset, None, Path()), chat)[0]
    )
    away = load_recipe("gemma-2-2b-it", ["model.max_seq_length=1100", "rollout.batch_size=1"])
    assert train.plan(Job("stage1", away, dataset, None, Path())).tokens == 1100, (
        "no tokenizer here, and none is fetched"
    )


WITHOUT_BACKENDS = """
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in ("unsloth", "bitsandbytes") else found(name, *rest)
from scorefast.cli import main
main()
"""


def test_dry_run_prints_the_plan_of_a_model_that_is_not_here(tmp_path):
    """And asks nobody for it, on a machine without Unsloth and bitsandbytes, where one may ask what card to buy."""
    flags = ["--recipe", "gemma-2-2b-it", "--dry-run"]
    command = [sys.executable, "-c", WITHOUT_BACKENDS, "stage2", "--data", str(SHIPPED), *flags]
    environment = os.environ | {"PYTHONPATH": f"{NO_NETWORK}{os.pathsep}{REPOSITORY}"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "cannot run here: model.load_in_4bit: bitsandbytes is not installed here" in done.stderr
    assert "2,614,341,888 parameters" in done.stderr
    assert "KV cache" in done.stderr
    assert not list(tmp_path.iterdir())
