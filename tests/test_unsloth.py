"""The real Unsloth on its CPU backend, in processes of its own because importing it patches transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scorefast.model import load_policy
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
from scorefast.model import import_backend, load_policy
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
from scorefast.model import import_backend
recipe = load_recipe("tiny-cpu", ["model.backend=unsloth", *sys.argv[1:]])
import_backend(recipe.model)
import unsloth
taken = {}
for name in ("from_pretrained", "get_peft_model"):
    def watched(*given, _own=getattr(unsloth.FastLanguageModel, name), _name=name, **more):
        taken[_name] = more
        return _own(*given, **more)
    setattr(unsloth.FastLanguageModel, name, staticmethod(watched))
from scorefast.model import load_policy, save_policy
from scorefast.runs import Checkpoint
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
