"""The real Unsloth on its CPU backend, in processes of its own because importing it patches transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scorefast.model.load import load_policy
from scorefast.recipe import load_recipe
from tests.conftest import QUICK, REPOSITORY, SHIPPED, scorefast

FOUR_BIT = ["model.load_in_4bit=true", "rollout.max_new_tokens=40"]


def four_bit_stage(section: str, backend: str, out: str, cwd: Path, *extra: str) -> list[dict]:
    flags = [*QUICK, "--set", f"model.backend={backend}", *(f for key in FOUR_BIT for f in ("--set", key)), *extra]
    done = scorefast(section, "--data", SHIPPED, *flags, "--out", out, cwd=cwd)
    assert (done.returncode, done.stdout) == (0, f"{out}\n"), done.stderr
    assert f"tiny-gemma2 on {backend}" in done.stderr
    assert "should be imported before" not in done.stderr
    return [json.loads(line) for line in (cwd / out / "metrics.jsonl").read_text().splitlines()]


def test_four_bit_stages_agree_with_transformers_and_are_evaluated(tmp_path):
    """load in 4 bit -> LoRA -> generate -> stage1 -> save -> stage2 -> save -> reload -> eval. Both backends take the
    same steps on the same samples: stock layers, so metrics agree to rounding."""
    runs = [four_bit_stage("stage1", backend, backend, tmp_path) for backend in ("unsloth", "transformers")]
    assert {path.name for path in tmp_path.iterdir()} == {"unsloth", "transformers"}, "no compiled cache beside them"
    first = [next(m for m in run if m["step"] == 0) for run in runs]
    assert first[0] == first[1]
    for ours, theirs in zip(*([m for m in run if "loss" in m] for run in runs), strict=True):
        for key in ("loss", "grad_norm", "acc_t1", "acc_t2", "kl_t1", "kl_t2", "entropy"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-3, abs=1e-5), key
    adapters = [json.loads((tmp_path / b / "adapter_config.json").read_text()) for b in ("unsloth", "transformers")]
    assert adapters[0]["r"] == adapters[1]["r"] == 8
    kl = [m["kl_t1"] for m in runs[0] if "kl_t1" in m]
    assert abs(kl[0]) < 1e-6
    assert kl[1] > 0
    both = [
        four_bit_stage("stage2", backend, out, tmp_path, "--from", "unsloth")
        for backend, out in (("unsloth", "second"), ("transformers", "second-plain"))
    ]
    for ours, theirs in zip(*([m for m in run if "loss" in m] for run in both), strict=True):
        for key in ("loss", "grad_norm", "acc_t2", "kl_t2"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-2, abs=1e-4), key
    done = scorefast("eval", "base", "unsloth", "second", "--data", SHIPPED, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    assert [r["n"] for r in results] == [12, 12, 12]
    assert results[0]["acc_t1"] > 0, "a 4-bit base still adds"


LOGITS = """
import json, sys
from scorefast.recipe import load_recipe
settings = load_recipe("tiny-cpu", json.loads(sys.argv[1]))
from scorefast.model.backends import import_backend
from scorefast.model.load import load_policy
import_backend(settings.model)
import torch
policy, ids = load_policy(settings), torch.tensor([json.loads(sys.argv[2])])
with torch.no_grad():
    torch.save(policy.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits, sys.argv[3])
"""


def test_unsloth_has_the_logits_of_transformers_in_four_bit(chat, tmp_path):
    reply = chat.reply("The answer is 579")
    prompt = chat.first_turn("What is 123 + 456?") + reply + chat.next_turn(reply)
    ids = torch.tensor([prompt])

    def by_transformers(*keys: str) -> torch.Tensor:
        with torch.no_grad():
            model = load_policy(load_recipe("tiny-cpu", [*keys, "model.backend=transformers"])).model
            return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits

    given = [json.dumps([FOUR_BIT[0], "model.backend=unsloth"]), json.dumps(prompt), str(tmp_path / "logits.pt")]
    command = [sys.executable, "-c", LOGITS, *given]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    theirs = by_transformers(FOUR_BIT[0])
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt", weights_only=True), theirs, rtol=1e-4, atol=1e-4)
    assert (theirs - by_transformers()).abs().max() > 0.1, "4 bit is something else than 32"


MADE = """
import json, os, sys
from scorefast.recipe import load_recipe
from scorefast.model.backends import import_backend
recipe = load_recipe("tiny-cpu", ["model.backend=unsloth", *sys.argv[1:]])
import_backend(recipe.model)
import unsloth
taken = {}
for name in ("from_pretrained", "get_peft_model"):
    def watched(*given, _own=getattr(unsloth.FastLanguageModel, name), _name=name, **more):
        taken[_name] = more
        return _own(*given, **more)
    setattr(unsloth.FastLanguageModel, name, staticmethod(watched))
from scorefast.model.load import load_policy
from scorefast.model.policy import save_policy
from scorefast.runs.checkpoint import Checkpoint
from pathlib import Path
policy = load_policy(recipe, trainable=True)
folder = Path("adapter")
save_policy(policy, folder)
first = dict(taken)
taken.clear()
load_policy(recipe, Checkpoint("adapter", folder, True, "tiny-gemma2", recipe), trainable=True)
print(json.dumps({
    "checkpointing": [t.get("use_gradient_checkpointing") for t in first.values()],
    "on": any(getattr(m, "gradient_checkpointing", False) for m in policy.model.modules()),
    "exact": first["from_pretrained"]["use_exact_model_name"], "again": sorted(taken),
    **{name: os.environ.get(name) for name in ("UNSLOTH_DISABLE_STATISTICS", "UNSLOTH_AUTO_INSTALL")},
}))
"""


@pytest.mark.parametrize("asked", [True, False])
def test_unsloth_is_asked_for_what_the_recipe_says_and_no_more(asked, tmp_path):
    """Its own kernels under Stage II's adapter as under Stage I's, checkpointing as the recipe has it, the weights that
    the recipe names, no statistics, and no package manager."""
    command = [sys.executable, "-c", MADE, f"model.gradient_checkpointing={str(asked).lower()}"]
    environment = {k: v for k, v in os.environ.items() if "UNSLOTH" not in k} | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout.splitlines()[-1])
    assert made["checkpointing"] == ["unsloth" if asked else False] * 2
    assert made["on"] == asked
    assert made["exact"]
    assert made["again"] == ["from_pretrained", "get_peft_model"]
    assert (made["UNSLOTH_DISABLE_STATISTICS"], made["UNSLOTH_AUTO_INSTALL"]) == ("1", "0")


TRAPS = """
import json, sys
from functools import partial
from scorefast.recipe import load_recipe
recipe = load_recipe("tiny-cpu", ["model.backend=unsloth", *sys.argv[1:]])
from scorefast.model.backends import import_backend
from scorefast.model.generate import generate
from scorefast.model.load import load_policy
import_backend(recipe.model)
import torch

from scorefast.data.load import load_dataset
from scorefast.rl.batch import collate
from scorefast.rl.objective import TurnCoefficients
from scorefast.rl.loss import micro_batch_loss
from scorefast.rl.rollout import two_turn_rollout
policy = load_policy(recipe, trainable=True)
model, chat = policy.model, policy.chat
model.train()

def flags():
    return [(m.training, getattr(m, "gradient_checkpointing", None)) for m in model.modules()] + [
        model.config.use_cache, policy.tokenizer.padding_side]

def scored(kl_coef):
    coefs = TurnCoefficients(torch.tensor([[0.5, -1.0]] * 4), torch.tensor([kl_coef] * 4))
    batch = collate(trajectories, coefs, policy.tokenizer.pad_token_id)
    batch = {name: value.to(model.device) for name, value in batch.items()}
    return batch, micro_batch_loss(model, policy, batch, recipe)

examples = load_dataset("data/score.csv", recipe.data).splits["train"][:4]
greedy = partial(generate, policy, max_new_tokens=12, temperature=0.0, batch_size=4)
before = flags()
replies = [greedy([chat.first_turn(e.question) for e in examples]) for _ in range(2)]
kept = flags() == before
trajectories = two_turn_rollout(greedy, chat, examples)
_, (_, stats, _) = scored([1.0, 1.0])
at_start = stats.kl.abs().max().item()
generator = torch.Generator().manual_seed(0)
with torch.no_grad():
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
batch, (loss, stats, _) = scored([0.3, 0.7])
loss.backward()
norm = sum(p.grad.float().square().sum() for p in model.parameters() if p.grad is not None).sqrt().item()
inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
with torch.no_grad():
    logp = model(**inputs).logits.float().log_softmax(-1)[:, :-1]
    with model.disable_adapter():
        ref = model(**inputs).logits.float().log_softmax(-1)[:, :-1]
taken = logp.gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
kl = (logp.exp() * (logp - ref)).sum(-1)
expected = (-batch["pg_coef"][:, 1:] * taken + batch["kl_coef"][:, 1:] * kl).sum()
print(json.dumps({
    "device": model.device.type, "kept": kept, "same": replies[0] == replies[1], "at_start": at_start, "norm": norm,
    "moved": kl[batch["turn"][:, 1:] > 0].mean().item(), "loss": loss.item(), "expected": expected.item(),
}))
"""
ON_A_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[ON_A_GPU, pytest.mark.gpu])])
def test_unsloths_own_paths_give_the_loss_of_the_models_logits(device):
    """On CUDA its fused attention, adapters and inference are others than on a CPU. `generate` turns back what it
    turns; policy and reference are one before a step, with the adapter off; hidden states go through the wrappers."""
    sixteen = ["model.dtype=bfloat16"] if device == "cuda" else []
    command = [sys.executable, "-c", TRAPS, FOUR_BIT[0], "model.gradient_checkpointing=true", *sixteen]
    environment = os.environ | ({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {})
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["device"] == device
    assert seen["kept"]
    assert seen["same"]
    assert seen["at_start"] < 1e-6
    assert seen["moved"] > 1e-2, "the adapter makes another distribution"
    assert seen["norm"] > 0
    assert seen["loss"] == pytest.approx(seen["expected"], rel=1e-4 if device == "cpu" else 2e-2)
