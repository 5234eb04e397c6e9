"""The step that is trained on: what is sampled is what is scored, and no cut of a batch changes the loss."""

from __future__ import annotations

import gc
import io
import json
import weakref
from functools import partial

import pytest
import torch
from transformers import GenerationConfig

from scorefast import evaluate as evaluate_module
from scorefast.data.load import load_dataset
from scorefast.evaluate import _evaluate_one
from scorefast.kernels.reference import log_softmax_head
from scorefast.model.generate import generate
from scorefast.model.load import load_policy
from scorefast.model.policy import last_hidden
from scorefast.recipe import load_recipe
from scorefast.rl.batch import collate
from scorefast.rl.loss import micro_batch_loss
from scorefast.rl.objective import TurnCoefficients, coefficients
from scorefast.rl.record import TIMING_METRICS
from scorefast.rl.reporter import Reporter
from scorefast.rl.rollout import data_attempt, supervised_trajectories, two_turn_rollout
from scorefast.rl.schedule import QuestionOrder, micro_batch_size
from scorefast.rl.trainer import ScoreTrainer
from scorefast.runs.signals import StopOnSignal
from scorefast.schema import Data, Stage2
from scorefast.ui import progress as progress_of_ui
from scorefast.ui.console import InertConsole
from scorefast.ui.progress import counting
from scorefast.ui.training import TerminalReporter
from tests.conftest import SHIPPED, job_on, scorefast_here


@pytest.fixture(scope="module")
def policy(recipe):
    policy = load_policy(recipe, trainable=True)
    with torch.no_grad():  # move off the reference, so that KL and its gradient are not zero
        generator = torch.Generator().manual_seed(0)
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return policy


@pytest.fixture(scope="module")
def examples():
    return load_dataset(str(SHIPPED), Data()).splits["train"]


@pytest.fixture(scope="module")
def sampled(policy, examples):
    torch.manual_seed(0)
    sample = partial(generate, policy, max_new_tokens=40, temperature=1.0, batch_size=8)
    return two_turn_rollout(sample, policy.chat, examples[:12])


@pytest.fixture(scope="module")
def coefs(sampled):
    return coefficients(Stage2(beta1=0.5), torch.randn(len(sampled), 2, generator=torch.Generator().manual_seed(1)))


def loss_and_gradient(policy, batches, recipe):
    policy.model.zero_grad()
    total = 0.0
    for batch in batches:
        loss, _, _ = micro_batch_loss(policy.model, policy, batch, recipe)
        loss.backward()
        total += loss.item()
    return total, torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None])


def cut(trajectories, coefs, size, pad):
    return [collate(trajectories[i : i + size], coefs[i : i + size], pad) for i in range(0, len(trajectories), size)]


@pytest.mark.parametrize("size", [1, 3, 5])
def test_loss_and_gradient_do_not_depend_on_the_micro_batch(policy, recipe, sampled, coefs, size):
    whole = loss_and_gradient(policy, cut(sampled, coefs, 12, 0), recipe)
    parts = loss_and_gradient(policy, cut(sampled, coefs, size, 0), recipe)
    assert parts[0] == pytest.approx(whole[0], rel=1e-4)
    torch.testing.assert_close(parts[1], whole[1], rtol=1e-3, atol=1e-4)


def test_loss_and_gradient_do_not_depend_on_order_or_padding(policy, recipe, sampled, coefs):
    whole = loss_and_gradient(policy, cut(sampled, coefs, 12, 0), recipe)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    shuffled = [sampled[i] for i in order]
    batch = collate(shuffled, TurnCoefficients(coefs.pg[order], coefs.kl[order]), 0)
    padded = {name: torch.nn.functional.pad(tensor, (0, 9)) for name, tensor in batch.items()}
    padded["input_ids"][:, -9:] = 17  # padding may be any token: nothing may look at it
    other = loss_and_gradient(policy, [padded], recipe)
    assert other[0] == pytest.approx(whole[0], rel=1e-4)
    torch.testing.assert_close(other[1], whole[1], rtol=1e-3, atol=1e-4)


def test_the_step_is_divided_once_by_its_trajectories(recipe, examples, tmp_path):
    """The gradient the optimizer sees does not depend on micro_batch_size, nor does the logged loss."""
    seen = {}
    for size in (1, 4, 16):
        r = load_recipe(
            "tiny-cpu", ["stage2.max_steps=1", "stage2.questions_per_step=2", f"stage2.micro_batch_size={size}"]
        )
        trainer = ScoreTrainer(load_policy(r, trainable=True), job_on("stage2", r, examples[:8], tmp_path / str(size)))
        trainer.train()
        (log,) = [m for m in trainer.log_file.lines if "loss" in m]
        seen[size] = (log["loss"], log["grad_norm"])
        assert trainer.args.gradient_accumulation_steps == 16 // size
    assert seen[1] == pytest.approx(seen[16], rel=1e-3)
    assert seen[4] == pytest.approx(seen[16], rel=1e-3)


def test_trained_tokens_are_the_sampled_ones_and_nothing_else(policy, sampled, coefs):
    batch = collate(sampled, coefs, policy.tokenizer.pad_token_id)
    for row, t in enumerate(sampled):
        for which, attempt in ((1, t.first), (2, t.second)):
            assert batch["input_ids"][row][batch["turn"][row] == which].tolist() == attempt.ids
        context = batch["turn"][row] == 0
        assert (batch["pg_coef"][row][context] == 0).all()
        assert (batch["kl_coef"][row][context] == 0).all()
        length = len(t.prompt) + len(t.first.ids) + len(t.bridge) + len(t.second.ids)
        assert batch["attention_mask"][row].sum() == length
        assert t.first.ids[-1] == policy.chat.end_of_turn, "the closing token is sampled, so it is trained"


def test_reference_is_the_base_model_and_kl_starts_at_zero(recipe, sampled, coefs):
    fresh = load_policy(recipe, trainable=True)
    batch = collate(sampled, coefs, 0)
    _, stats, _ = micro_batch_loss(fresh.model, fresh, batch, recipe)
    assert stats.kl.abs().max() < 1e-6
    torch.testing.assert_close(stats.logp, stats.ref_logp)


def test_kl_is_to_the_reference_not_to_itself(policy, recipe, sampled, coefs):
    batch = collate(sampled, coefs, 0)
    _, stats, turn = micro_batch_loss(policy.model, policy, batch, recipe)
    assert stats.kl[turn == 1].mean() > 1e-3
    base = load_policy(recipe).model
    with torch.no_grad():
        logits = base(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    expected = logits[:, :-1].log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None]).squeeze(-1)
    torch.testing.assert_close(stats.ref_logp, expected[batch["turn"][:, 1:] > 0], rtol=1e-4, atol=1e-4)


def test_hidden_states_through_the_head_are_the_models_own_logits(policy, sampled, coefs):
    """Final-logit soft cap included: leaving it out is a known fault of custom log-prob paths."""
    batch = collate(sampled, coefs, 0)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        hidden = last_hidden(policy.model, ids, mask)[mask.bool()]
        logits = policy.model(input_ids=ids, attention_mask=mask).logits[mask.bool()]
    assert policy.softcap == 30.0
    ours = log_softmax_head(hidden, policy.head, policy.softcap, 1.0)
    torch.testing.assert_close(ours, logits.log_softmax(-1), rtol=1e-4, atol=1e-4)
    uncapped = log_softmax_head(hidden, policy.head, None, 1.0)
    assert (uncapped - logits.log_softmax(-1)).abs().max() > 1e-2


@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_sampling_and_scoring_use_the_same_distribution(recipe, temperature):
    """4,000 first tokens of a second attempt: their frequencies are the probabilities the loss scores with.

    The model's own generation_config asks for other truncation, as Gemma's does; it must not leak in.
    """
    policy = load_policy(recipe)
    policy.model.generation_config = GenerationConfig(do_sample=True, top_k=1, top_p=0.5, temperature=0.1)
    reply = policy.chat.reply("The answer is 579")
    prompt = policy.chat.first_turn("What is 123 + 456?") + reply + policy.chat.next_turn(reply)
    torch.manual_seed(0)
    new = generate(policy, [prompt] * 4000, max_new_tokens=1, temperature=temperature, batch_size=4000)
    ids = torch.tensor([prompt])
    with torch.no_grad():
        hidden = last_hidden(policy.model, ids, torch.ones_like(ids))[0, -1:]
    p = log_softmax_head(hidden, policy.head, policy.softcap, temperature)[0].exp()
    counts = torch.bincount(torch.tensor([n[0] for n in new]), minlength=len(p))
    sd = (p * (1 - p) * 4000).sqrt()
    assert (p > 0.02).sum() >= 2, "an open prompt, or nothing is tested"
    assert ((counts - 4000 * p).abs() <= 4.5 * sd + 3).all()


def test_left_padding_in_a_batch_does_not_change_greedy_replies(policy, examples):
    prompts = [policy.chat.first_turn(q) for q in ("What is 1 + 2?", *[e.question for e in examples[:5]], "hi " * 40)]
    greedy = partial(generate, policy, max_new_tokens=20, temperature=0.0)
    assert greedy(prompts, batch_size=7) == [greedy([p], batch_size=1)[0] for p in prompts]


def test_a_cut_attempt_is_marked_and_graded_as_it_stands(recipe, examples):
    policy = load_policy(recipe)
    short = partial(generate, policy, max_new_tokens=4, temperature=0.0, batch_size=8)
    for t in two_turn_rollout(short, policy.chat, examples[:4]):
        assert t.first.truncated
        assert len(t.first.ids) == 4
        assert t.first.text.startswith("The answer")
        assert t.bridge[0] == policy.chat.end_of_turn


def test_attention_soft_cap_is_applied(policy):
    """transformers' default attention for Gemma-2 (sdpa) silently leaves it out."""
    config = policy.model.config
    assert config.attn_logit_softcapping == 50.0
    assert config._attn_implementation == "eager"


def test_the_order_of_questions_is_a_function_of_the_seed_alone():
    stage = Stage2(max_steps=10, questions_per_step=3, samples_per_question=4)
    slots = QuestionOrder(7, stage, seed=5)
    assert len(slots) == 10 * 3 * 4
    assert [slots[i] for i in range(len(slots))] == [slots.order[i // 4] for i in range(len(slots))]
    assert sorted(slots.order[:7]) == sorted(slots.order[7:14]) == list(range(7)), "every pass sees every question"
    longer = QuestionOrder(7, stage.model_copy(update={"max_steps": 20}), seed=5)
    assert longer.order[:30] == slots.order, "prolonging a run does not change its beginning"
    assert QuestionOrder(7, stage, seed=6).order != slots.order


@pytest.mark.parametrize(("most", "processes", "expected"), [(64, 1, 32), (5, 1, 4), (1, 1, 1), (64, 2, 16)])
def test_micro_batches_cut_a_step_evenly(most, processes, expected):
    stage = Stage2(questions_per_step=4, samples_per_question=8, micro_batch_size=most)
    assert micro_batch_size(stage, processes) == expected


def test_full_fine_tuning_keeps_a_frozen_copy_and_the_shared_head(examples, tmp_path):
    r = load_recipe("tiny-cpu", ["model.tuning=full", "stage2.max_steps=2", "stage2.questions_per_step=2"])
    policy = load_policy(r, trainable=True)
    before = {n: p.clone() for n, p in policy.frozen_reference.named_parameters()}
    trainer = ScoreTrainer(policy, job_on("stage2", r, examples[:8], tmp_path))
    trainer.train()
    moved = {n for n, p in policy.model.named_parameters() if not torch.equal(p, before[n])}
    assert any("mlp" in n for n in moved)
    assert not any("embed" in n or "lm_head" in n for n in moved)
    for name, parameter in policy.frozen_reference.named_parameters():
        assert torch.equal(parameter, before[name])
    kl = [m["kl_t1"] for m in trainer.log_file.lines if "kl_t1" in m]
    assert kl[0] == pytest.approx(0, abs=1e-6)
    assert kl[1] > 0


@pytest.mark.parametrize("section", ["stage1", "stage2"])
def test_the_implementation_of_the_loss_does_not_change_a_run(section, examples, tmp_path):
    """Same samples, so same metrics to rounding; a small buffer makes chunked cut each micro-batch."""
    settings = [f"{section}.max_steps=3", f"{section}.questions_per_step=4", "rollout.max_new_tokens=40"]
    runs = []
    for impl in (["reference"], ["chunked", "loss.buffer_mb=1"]):
        r = load_recipe("tiny-cpu", [*settings, f"loss.impl={impl[0]}", *impl[1:]])
        trainer = ScoreTrainer(load_policy(r, trainable=True), job_on(section, r, examples[:16], tmp_path / impl[0]))
        trainer.train()
        runs.append([m for m in trainer.log_file.lines if "loss" in m])
    for by_reference, by_chunked in zip(*runs, strict=True):
        assert by_reference.keys() == by_chunked.keys()
        for name in by_reference.keys() - TIMING_METRICS:
            assert by_chunked[name] == pytest.approx(by_reference[name], rel=1e-3, abs=1e-5), name


def test_supervised_stage_trains_the_second_turn_and_holds_the_first(examples, tmp_path):
    """Cross-entropy falls on the data's second attempts; with a large b2 the first attempts stay near the reference."""
    overrides = [
        "stage1.method=supervised",
        "stage1.max_steps=12",
        "stage1.questions_per_step=8",
        "stage1.learning_rate=3e-3",
    ]
    kl = {}
    for beta2 in (0.0, 10.0):
        r = load_recipe("tiny-cpu", [*overrides, f"stage1.beta2={beta2}"])
        policy = load_policy(r, trainable=True)
        trainer = ScoreTrainer(policy, job_on("stage1", r, examples[:64], tmp_path / str(beta2)))
        trainer.train()
        losses = [m["loss"] for m in trainer.log_file.lines if "loss" in m]
        assert min(losses[-3:]) < 0.7 * losses[0]
        batch_t = supervised_trajectories(
            policy.chat,
            examples[:16],
            [data_attempt(policy.chat, e.original_answer or "") for e in examples[:16]],
        )
        batch = collate(batch_t, coefficients(Stage2(), torch.ones(16, 2)), 0)
        _, stats, turn = micro_batch_loss(policy.model, policy, batch, r)
        kl[beta2] = stats.kl[turn == 1].sum().item()
    assert kl[10.0] < kl[0.0]


def test_metrics_are_logged_by_turn(trained):
    lines = [json.loads(line) for line in (trained / "runs/stage2/metrics.jsonl").read_text().splitlines()]
    steps = [m for m in lines if "loss" in m]
    assert [m["step"] for m in steps] == [1, 2]
    for m in steps:
        assert {
            "acc_t1",
            "acc_t2",
            "reward_t1",
            "reward_t2",
            "kl_t1",
            "kl_t2",
            "entropy",
            "changed",
            "truncated",
        } <= set(m)
        # paper shaping, alpha = 1: the mean of r2 + (r2 - r1)
        assert m["reward_t2"] == pytest.approx(2 * m["acc_t2"] - m["acc_t1"], abs=1e-6)
        assert m["acc_t2"] - m["acc_t1"] == pytest.approx(m["delta_i2c"] - m["delta_c2i"], abs=1e-9)
        written = 16 * (m["length_t1"] + m["length_t2"])
        assert m["rollout_tokens_per_second"] * m["rollout_seconds"] == pytest.approx(written)
        prompts = m["update_tokens_per_second"] * m["update_seconds"] / 16 - m["length_t1"] - m["length_t2"]
        assert 55 < prompts < 70, "a question has 21 tokens with its template, the correction turn 40"


def test_replies_are_counted_as_they_are_written(examples, tmp_path):
    """Two a trajectory or question, a batch at a time, anew in each step and each validation."""
    settings = ["stage1.max_steps=2", "stage1.questions_per_step=2", "stage1.samples_per_question=4"]
    r = load_recipe("tiny-cpu", [*settings, "rollout.batch_size=3", "rollout.max_new_tokens=20", "stage1.eval_steps=2"])
    told: list[tuple[int, int]] = []
    reporter = Reporter()
    reporter.count = lambda done, due: told.append((done, due))
    job = job_on("stage1", r, examples[:8], tmp_path)
    job.dataset.splits["validation"] = examples[8:10]
    ScoreTrainer(load_policy(r, trainable=True), job, reporter=reporter).train()
    turn = [(3, 16), (6, 16), (8, 16), (11, 16), (14, 16), (16, 16)]
    assert told == [*turn, *turn, (2, 4), (4, 4)]


def test_an_evaluation_says_where_it_is(monkeypatch, tmp_path):
    monkeypatch.setattr(progress_of_ui, "SILENCE", -1)
    flags = ["--set", "eval.max_questions=5", "--set", "rollout.batch_size=2", "--out", "report"]
    done = scorefast_here("eval", "base", "--data", SHIPPED, *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("evaluating base: ")]
    assert said == [f"evaluating base: {n} of 10 replies" for n in (2, 4, 5, 7, 9, 10)]


def test_long_work_says_where_it_is_without_a_terminal(monkeypatch):
    said = io.StringIO()
    console = InertConsole(file=said, width=100)
    with counting(console, "evaluating [x]", 10) as count:
        count(4)
        assert said.getvalue() == "", "a minute has not passed"
        monkeypatch.setattr(progress_of_ui, "SILENCE", -1)
        count(3)
    assert said.getvalue() == "evaluating [x]: 7 of 10 replies\n"
    TerminalReporter(console, Stage2(max_steps=20), StopOnSignal()).count(5, 16)
    assert said.getvalue().endswith("5 of 16 replies\n")


def test_an_evaluation_holds_one_model_at_a_time(monkeypatch, recipe, examples):
    """Two would not fit where one does."""
    loaded: list[weakref.ref] = []

    def watched(*given):
        assert not any(model() is not None for model in loaded), "the one before is still in memory"
        policy = load_policy(*given)
        loaded.append(weakref.ref(policy.model))
        return policy

    monkeypatch.setattr(evaluate_module, "load_policy", watched)
    gc.disable()
    try:
        for name in ("one", "two"):
            _evaluate_one(name, None, recipe, examples[:2], InertConsole(file=io.StringIO()), True)
    finally:
        gc.enable()
    assert len(loaded) == 2
