"""Backends, and what they leave behind: Unsloth's CUDA path by a stand-in that behaves as it does."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import pytest
import torch

from scorefast.data.load import load_dataset
from scorefast.errors import UserError
from scorefast.model.backends import resolve_backend
from scorefast.model.checks import require_plain_head
from scorefast.model.generate import generate
from scorefast.model.load import load_policy
from scorefast.rl.batch import collate
from scorefast.rl.loss import micro_batch_loss
from scorefast.rl.objective import TurnCoefficients
from scorefast.rl.rollout import data_attempt, supervised_trajectories
from scorefast.schema import Model
from tests.conftest import SHIPPED


@pytest.fixture
def machine(monkeypatch):
    """A machine with or without CUDA, with these packages installed."""

    def make(cuda, *installed, bfloat16=True):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bfloat16)
        found = importlib.util.find_spec
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name, *rest: (
                (name in installed or None) if name in ("unsloth", "bitsandbytes") else found(name, *rest)
            ),
        )

    return make


@pytest.mark.parametrize(
    ("cuda", "installed", "backend", "expected"),
    [
        (True, ("unsloth", "bitsandbytes"), "auto", "unsloth"),
        (True, ("bitsandbytes",), "transformers", "transformers"),
        (False, ("unsloth", "bitsandbytes"), "auto", "transformers"),
        (False, ("unsloth", "bitsandbytes"), "unsloth", "unsloth"),
        (False, ("bitsandbytes",), "auto", "transformers"),
    ],
)
def test_the_backend_follows_from_machine_and_recipe(machine, cuda, installed, backend, expected):
    machine(cuda, *installed)
    assert resolve_backend(Model(backend=backend, load_in_4bit=True, dtype="bfloat16")) == expected


def test_a_missing_backend_is_named_with_what_to_install(machine):
    machine(True, "bitsandbytes")
    with pytest.raises(UserError, match=r'pip install "scorefast\[unsloth\]"; or go on .* model\.backend=transformers'):
        resolve_backend(Model(backend="auto"))
    with pytest.raises(UserError, match=r'pip install "scorefast\[unsloth\]"$'):
        resolve_backend(Model(backend="unsloth"))
    machine(False)
    with pytest.raises(UserError, match=r"load_in_4bit: bitsandbytes is not installed"):
        resolve_backend(Model(load_in_4bit=True))


def test_a_card_without_bfloat16_is_said_before_a_model_loads(machine):
    """Unsloth would go on in float16, in which Gemma-2's gradients need a scaler that there is not."""
    machine(True, "unsloth", "bitsandbytes", bfloat16=False)
    with pytest.raises(UserError, match=r"this card has no bfloat16; --set model\.dtype=float32"):
        resolve_backend(Model(dtype="bfloat16"))
    assert resolve_backend(Model(dtype="float32")) == "unsloth"


def test_training_may_take_other_kernels_and_must_be_the_same_function(recipe):
    """In bfloat16 two kinds of attention leave SmolLM2's hidden states some per cent apart."""
    policy = load_policy(recipe, trainable=True)
    norm = policy.model.get_base_model().model.norm

    def in_training(change):
        hook = norm.register_forward_hook(lambda module, _, out: change(out) if module.training else out)
        try:
            require_plain_head(policy)
        finally:
            hook.remove()

    in_training(lambda out: out * 1.04)
    for other in (2.0, 0.0, -1.0):
        with pytest.raises(UserError, match="is another function in training than in evaluation"):
            in_training(lambda out, factor=other: out * factor)
    with pytest.raises(UserError, match="draws at random in training"):
        in_training(lambda out: out + 0.1 * torch.randn_like(out))


def test_a_prompt_that_leaves_no_room_for_a_reply_is_refused(recipe):
    policy = load_policy(recipe)
    prompt = policy.chat.first_turn("What is 12 + 30?")
    exact = replace(policy, max_length=len(prompt) + 3)
    assert len(generate(exact, [prompt], max_new_tokens=3, temperature=0.0, batch_size=1)[0]) == 3
    with pytest.raises(UserError, match=rf"{len(prompt)} tokens and 4 new ones exceed model\.max_seq_length"):
        generate(exact, [prompt], max_new_tokens=4, temperature=0.0, batch_size=1)


class LikeUnsloth:
    """`generate` as Unsloth's on CUDA: it turns flags for inference, and afterwards all of them for training."""

    def __init__(self, model, tokenizer):
        self.__dict__.update(model=model, tokenizer=tokenizer)

    def __getattr__(self, name):
        return getattr(self.__dict__["model"], name)

    def generate(self, **arguments):
        replies = self.model.generate(**arguments)
        for module in self.model.modules():
            module.training = True
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = True
        self.model.config.use_cache = False
        self.tokenizer.padding_side = "left"
        return replies


@pytest.mark.parametrize("training", [False, True])
def test_what_a_backends_generate_turns_is_turned_back(recipe, training):
    policy = load_policy(recipe, trainable=True)
    policy.model.train(training)
    policy.tokenizer.padding_side = "right"

    def flags():
        modules = list(policy.model.modules())
        own = [(m.training, getattr(m, "gradient_checkpointing", None)) for m in modules]
        return own, policy.model.config.use_cache, policy.tokenizer.padding_side

    before = flags()
    prompts = [policy.chat.first_turn("What is 12 + 30?"), policy.chat.first_turn("What is 123 + 456, do you know?")]
    expected = generate(policy, prompts, max_new_tokens=20, temperature=0.0, batch_size=2)
    stand_in = replace(policy, model=LikeUnsloth(policy.model, policy.tokenizer))
    for _ in range(2):
        assert generate(stand_in, prompts, max_new_tokens=20, temperature=0.0, batch_size=2) == expected
        assert flags() == before


def test_a_sequence_beyond_the_limit_is_an_error_and_not_cut(recipe):
    policy = load_policy(recipe, trainable=True)
    examples = load_dataset(str(SHIPPED), recipe.data).splits["train"][:2]
    first = [data_attempt(policy.chat, e.original_answer) for e in examples]
    trajectories = supervised_trajectories(policy.chat, examples, first)
    coefs = TurnCoefficients(torch.ones(2, 2), torch.ones(2, 2))
    batch = collate(trajectories, coefs, policy.tokenizer.pad_token_id)
    length = batch["input_ids"].shape[1]
    short = recipe.model_copy(update={"model": recipe.model.model_copy(update={"max_seq_length": length - 1})})
    micro_batch_loss(policy.model, policy, batch, recipe)
    with pytest.raises(RuntimeError, match=f"sequence of {length} tokens, model.max_seq_length is {length - 1}"):
        micro_batch_loss(policy.model, policy, batch, short)


def test_training_pads_right_and_generation_left(recipe):
    """The batch that Unsloth's training pass gets may lose its attention mask: only right padding survives that."""
    policy = load_policy(recipe, trainable=True)
    examples = load_dataset(str(SHIPPED), recipe.data).splits["train"][:6]
    first = [data_attempt(policy.chat, e.original_answer[: 4 * i + 2]) for i, e in enumerate(examples)]
    trajectories = supervised_trajectories(policy.chat, examples, first)
    coefs = TurnCoefficients(torch.ones(6, 2), torch.ones(6, 2))
    batch = collate(trajectories, coefs, policy.tokenizer.pad_token_id)
    assert len(set(batch["attention_mask"].sum(1).tolist())) > 2
    assert (batch["attention_mask"].diff(dim=1) <= 0).all(), "ones, then zeros"
    loss, _, _ = micro_batch_loss(policy.model, policy, batch, recipe)
    unmasked, _, _ = micro_batch_loss(
        policy.model, policy, batch | {"attention_mask": torch.ones_like(batch["attention_mask"])}, recipe
    )
    torch.testing.assert_close(loss, unmasked, rtol=1e-5, atol=1e-4)

    seen = {}

    class Watched(LikeUnsloth):
        def generate(self, **arguments):
            seen.update(arguments)
            return self.model.generate(**arguments)

    prompts = [policy.chat.first_turn(e.question + " now" * i) for i, e in enumerate(examples)]
    generate(
        replace(policy, model=Watched(policy.model, policy.tokenizer)),
        prompts,
        max_new_tokens=2,
        temperature=0.0,
        batch_size=6,
    )
    assert (seen["attention_mask"].diff(dim=1) >= 0).all(), "zeros, then ones"
