"""Models and data by their names on the Hugging Face hub, which a server on this machine stands for."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas
import pytest

from scorefast.recipe import PACKAGE
from tests.conftest import QUICK, SHIPPED

COMMIT = "0" * 39 + "1"
NOT_THERE = (404, {"X-Error-Code": "EntryNotFound"}, b"")
GATED = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to this model is restricted."}


class Hub:
    """Serves OWNER/NAME and datasets/OWNER/NAME under `root` over the hub's HTTP interface; `gated` to nobody."""

    def __init__(self, root: Path):
        self.root, self.gated, self.asked = root, set(), []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(handler):
                code, headers, content = self.answer(handler.path.split("?")[0].strip("/"))
                handler.send_response(code)
                for name, value in (headers | {"X-Repo-Commit": COMMIT, "Content-Length": str(len(content))}).items():
                    handler.send_header(name, value)
                handler.end_headers()
                if handler.command != "HEAD":
                    handler.wfile.write(content)

            do_HEAD = do_GET

            def log_message(handler, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """(status, headers, content) of what is asked: facts about a repository, its files, or one of them."""
        self.asked.append(path)
        parts = path.removeprefix("api/").removeprefix("models/").split("/")
        size = 3 if parts[0] == "datasets" else 2
        name, what = "/".join(parts[:size]), parts[size:]
        if name in self.gated:
            return 401, GATED, b""
        if not (repository := self.root / name).is_dir():
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        if path.startswith("api/") and what[:1] == ["tree"]:
            files = [
                {"type": "file", "path": p.name, "size": p.stat().st_size, "oid": COMMIT} for p in repository.iterdir()
            ]
            return (200, {}, json.dumps(files).encode()) if len(what) == 2 else NOT_THERE
        if path.startswith("api/"):
            return 200, {}, json.dumps({"id": name.removeprefix("datasets/"), "sha": COMMIT, "siblings": []}).encode()
        if not (file := repository / what[-1]).is_file():
            return NOT_THERE
        return 200, {"ETag": f'"{hashlib.sha256(file.read_bytes()).hexdigest()}"'}, file.read_bytes()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def hub(tmp_path):
    (tmp_path / "hub").mkdir()
    server = Hub(tmp_path / "hub")
    yield server
    server.close()


def scorefast(hub: Hub, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command with nothing set that leads elsewhere."""
    host, port = hub.server.server_address
    set_by_others = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    environment = {name: value for name, value in os.environ.items() if not name.upper().startswith(set_by_others)}
    environment |= {"HF_ENDPOINT": f"http://{host}:{port}", "HF_HOME": str(cwd / "cache")}
    command = [sys.executable, "-m", "scorefast", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_a_model_of_the_hub_is_fetched_once_and_then_needs_no_hub(hub, tmp_path):
    shutil.copytree(PACKAGE / "assets" / "tiny-gemma2", hub.root / "somebody/tiny")
    named = ["--recipe", "tiny-cpu", "--set", "model.name=somebody/tiny"]
    planned = scorefast(hub, "stage1", "--data", SHIPPED, *QUICK, *named, "--dry-run", cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    assert "somebody/tiny/resolve/main/config.json" in hub.asked
    assert not any("safetensors" in path or "tokenizer" in path for path in hub.asked), "a plan downloads no model"
    done = scorefast(hub, "stage1", "--data", SHIPPED, *QUICK, *named, "--out", "one", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "one\n"), done.stderr
    assert "model: somebody/tiny, from the Hugging Face hub or its cache" in done.stderr
    hub.close()
    done = scorefast(hub, "stage2", "--data", SHIPPED, "--from", "one", "--out", "two", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "two\n"), done.stderr
    done = scorefast(hub, "export", "two", "--format", "adapter", "--out", "adapter", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for folder in ("one", "two", "adapter"):
        config = json.loads((tmp_path / folder / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "somebody/tiny"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "google/closed",
            "is gated: accept its terms at https://huggingface.co/google/closed and log in with",
        ),
        ("somebody/absent", "no such folder here; from the Hugging Face hub, no tokenizer to be had"),
        ("somebody/pickled", "model somebody/pickled: cannot be loaded"),
    ],
)
def test_what_the_hub_does_not_give_is_one_line(hub, name, message, tmp_path):
    hub.gated.add("google/closed")
    pickled = hub.root / "somebody/pickled"
    shutil.copytree(PACKAGE / "assets" / "tiny-gemma2", pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    flags = ["--recipe", "tiny-cpu", "--set", f"model.name={name}", "--out", "run"]
    done = scorefast(hub, "stage1", "--data", SHIPPED, *flags, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert message in done.stderr
    assert any(path.startswith(f"{name}/resolve/main/") for path in hub.asked)
    assert "Traceback" not in done.stderr
    assert not any("pytorch_model.bin" in path for path in hub.asked), "a pickle is not even fetched"
    assert not (tmp_path / "run").exists()


def test_data_of_the_hub_is_the_file_that_lies_there(hub, tmp_path):
    (hub.root / "datasets/somebody/sums").mkdir(parents=True)
    shutil.copy(SHIPPED, hub.root / "datasets/somebody/sums/data.csv")
    done = scorefast(hub, "prepare", "hub:somebody/sums", "--out", "theirs", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = scorefast(hub, "prepare", SHIPPED, "--out", "ours", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for split in ("train", "validation", "test"):
        ours, theirs = (pandas.read_parquet(tmp_path / name / f"{split}.parquet") for name in ("ours", "theirs"))
        columns = ["question", "original_answer", "correct_answer"]
        pandas.testing.assert_frame_equal(ours[columns], theirs[columns])
