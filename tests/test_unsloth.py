"""The real Unsloth on its CPU backend, in a process of its own because importing it patches transformers."""

from __future__ import annotations

import json

import pytest

from tests.conftest import QUICK, SHIPPED, scorefast


def test_unsloth_trains_and_agrees_with_transformers(tmp_path):
    """Both backends take the same step on the same samples: stock layers in fp32, so metrics agree to rounding."""
    runs = {}
    for backend in ("unsloth", "transformers"):
        flags = [*QUICK, "--set", f"model.backend={backend}", "--out", backend]
        done = scorefast("stage1", "--data", SHIPPED, *flags, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (0, f"{backend}\n"), done.stderr
        assert f"tiny-gemma2 on {backend}" in done.stderr
        assert "should be imported before" not in done.stderr
        lines = (tmp_path / backend / "metrics.jsonl").read_text().splitlines()
        runs[backend] = [json.loads(line) for line in lines]
    assert {path.name for path in tmp_path.iterdir()} == {"unsloth", "transformers"}, (
        "no compiled cache beside the runs"
    )
    first = [next(m for m in runs[b] if m["step"] == 0) for b in runs]
    assert first[0] == first[1]
    for ours, theirs in zip(*([m for m in runs[b] if "loss" in m] for b in runs), strict=True):
        for key in ("loss", "grad_norm", "acc_t1", "acc_t2", "kl_t2", "entropy"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-3, abs=1e-5), key
    adapters = [json.loads((tmp_path / b / "adapter_config.json").read_text()) for b in runs]
    assert adapters[0]["r"] == adapters[1]["r"] == 8
    kl = [m["kl_t1"] for m in runs["unsloth"] if "kl_t1" in m]
    assert abs(kl[0]) < 1e-6
    assert kl[1] > 0


def test_four_bit_run_through_unsloth_is_evaluated(tmp_path):
    """load in 4 bit -> LoRA -> generate -> train -> save -> reload -> eval."""
    flags = [*QUICK, "--set", "model.backend=unsloth", "--set", "model.load_in_4bit=true"]
    flags += ["--set", "rollout.max_new_tokens=12", "--set", "stage2.samples_per_question=2"]
    done = scorefast("stage2", "--data", SHIPPED, *flags, "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = scorefast("eval", "base", "run", "--data", SHIPPED, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    assert [r["n"] for r in results] == [12, 12]
    assert results[0]["acc_t1"] > 0, "a 4-bit base still adds"
