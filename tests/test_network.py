"""With local paths nothing is contacted. The other commands run under the same guard: see `scorefast` in conftest."""

from __future__ import annotations

import json
import shutil

import pytest

from scorefast.files.seal import seal
from tests.conftest import QUICK, SHIPPED, scorefast


@pytest.mark.parametrize(
    "arguments",
    [["prepare", "hub:somebody/data"], ["chat", "--set", "model.name=somebody/model"]],
)
def test_the_guard_sees_what_is_meant_to_reach_the_hub(tmp_path, arguments):
    done = scorefast(*arguments, cwd=tmp_path, stdin="")
    assert done.returncode == 97
    assert "network: socket.getaddrinfo" in done.stderr


def test_a_whole_run_contacts_nobody(trained, tmp_path):
    """`trained` came from prepare, stage1 and stage2 under the guard."""
    for arguments in (
        ["eval", "base", "runs/stage2", "--data", "runs/data", "--out", tmp_path / "eval"],
        ["chat", "runs/stage2"],
        ["export", "runs/stage2", "--format", "adapter", "--out", tmp_path / "adapter"],
    ):
        done = scorefast(*arguments, cwd=trained, stdin="What is 1 + 2?\n")
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 1


def test_the_base_that_an_adapter_names_is_not_asked_for(trained, tmp_path):
    """PEFT would ask the hub, at every save, whether the vocabulary of base_model_name_or_path has grown."""
    for name in ("adapter_config.json", "adapter_model.safetensors", "recipe.yaml"):
        shutil.copy(trained / "runs/stage1" / name, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    changed = config | {"base_model_name_or_path": "somebody/beacon", "revision": "main"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(changed))
    seal(tmp_path)
    done = scorefast("stage2", "--data", SHIPPED, "--from", tmp_path, "--out", "run", *QUICK, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "beacon" not in (tmp_path / "run/adapter_config.json").read_text()
