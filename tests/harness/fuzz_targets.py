"""What is fuzzed: each target takes bytes, and ends in a value or raises a UserError.

scorefast is imported inside the functions: atheris has to instrument it first.
"""

from __future__ import annotations

import atexit
import contextlib
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scorefast.schema import GraderName, Recipe

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 10.0  # for one input; the slowest that is documented is math-verify's limit of 5
GRADERS: tuple[GraderName, ...] = ("numeric", "text", "exact", "choice", "contains")
KINDS = (".csv", ".tsv", ".jsonl", ".json", ".csv.gz", ".jsonl.gz")
# What is damaged in the folders that somebody else may have made; the first takes what is no list of damages.
FILES = {
    "checkpoint": ("adapter_config.json", "adapter_model.safetensors", "recipe.yaml"),
    "model": (
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
        "generation_config.json",
    ),
    "tokenizer": ("tokenizer.json", "tokenizer_config.json"),
    "generation": ("generation_config.json", "config.json"),
    "run": (
        *("checkpoint-1/trainer_state.json", "checkpoint-1/checkpoint.json", "checkpoint-1/optimizer.pt"),
        *("checkpoint-1/scheduler.pt", "checkpoint-1/rng_state.pth", "checkpoint-1/adapter_model.safetensors"),
        *("run.json", "recipe.yaml", "metrics.jsonl"),
    ),
}


class TooSlow(BaseException):
    """Not an Exception: no code in between takes it for its own."""


@contextlib.contextmanager
def bounded(seconds: float = SECONDS) -> Iterator[None]:
    def late(*_: object) -> None:
        raise TooSlow(f"more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def check(target: str, data: bytes) -> bool:
    """Whether the input was taken (True) or refused by a UserError; any other exception is a bug and comes through."""
    from scorefast.errors import UserError

    with bounded():
        try:
            TARGETS[target](data)
        except UserError as error:
            line = str(error)
            assert len(line) < 5000, f"a message of {len(line)} characters"
            return False
    return True


# --- targets -----------------------------------------------------------------------------------------------------


@cache
def scratch() -> Path:
    """A folder of this process's own, on a memory file system where there is one."""
    shared = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="scorefast-fuzz-", dir=shared if shared.is_dir() else None))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def recipe(data: bytes) -> None:
    from scorefast.recipe import dump_recipe, load_recipe

    path = scratch() / "r.yaml"
    path.write_bytes(data)
    loaded = load_recipe(str(path))
    path.write_text(dump_recipe(loaded), encoding="utf-8")
    assert load_recipe(str(path)) == loaded


def override(data: bytes) -> None:
    from scorefast.recipe import load_recipe

    path = scratch() / "short.yaml"
    path.write_text("seed: 1\n")
    load_recipe(str(path), data.decode("utf-8", "replace").split("\0"))


def source(data: bytes) -> None:
    """The first byte chooses the kind of file, and whether the content of a .gz is compressed at all."""
    head, content = data[:1] or b"\0", data[1:]
    kind = KINDS[head[0] // 2 % len(KINDS)]
    path = scratch() / f"data{kind}"
    path.write_bytes(gzip.compress(content, 1) if kind.endswith(".gz") and head[0] % 2 else content)
    _read(path)


def parquet(data: bytes) -> None:
    path = scratch() / "data.parquet"
    path.write_bytes(data)
    _read(path)


def prepared(data: bytes) -> None:
    """A prepared folder whose manifest has the hash of these bytes for one of its splits."""
    from scorefast.data.load import load_dataset

    folder = _sound_prepared()
    (folder / "test.parquet").write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["sha256"]["test.parquet"] = hashlib.sha256(data).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    for example in load_dataset(str(folder), _tiny_recipe().data).splits["test"]:
        assert example.question.strip()
        assert example.correct_answer.strip()


@cache
def _sound_prepared() -> Path:
    from scorefast.prepare import prepare

    folder = scratch() / "prepared"
    folder.mkdir()
    (scratch() / "one.csv").write_text("question,correct_answer\nWhat is 1 + 2?,3\n", encoding="utf-8")
    prepare(str(scratch() / "one.csv"), _tiny_recipe(), folder)
    return folder


def _read(path: Path) -> None:
    from scorefast.data.example import Dropped
    from scorefast.data.reading import Reading
    from scorefast.schema import Data

    reading = Reading(str(path), Data(on_error="skip"))
    rows = sum(1 if isinstance(part, Dropped) else len(part.columns["id"]) for part in reading())
    assert rows == reading.rows_read


def answer(data: bytes) -> None:
    """The first byte chooses the grader; reply, reference and question are separated by U+001F."""
    _grade(GRADERS[(data[:1] or b"\0")[0] % len(GRADERS)], data[1:])


def math(data: bytes) -> None:
    _grade("math", data)


def _grade(grader: GraderName, data: bytes) -> None:
    from scorefast.grading.grade import auto_grader, grade, unusable_reference

    reply, reference, question, *_ = [*data.decode("utf-8", "replace").split("\x1f"), "", ""]
    auto_grader(reference)
    unusable_reference(reference, grader)
    found = grade(reply, reference, grader, question or None)
    assert 0 <= found.score <= 1
    assert found.correct == (found.score == 1)


def checkpoint(data: bytes) -> None:
    from scorefast.files.seal import seal
    from scorefast.model.load import load_policy
    from scorefast.runs.checkpoint import open_checkpoint, require_same_terms

    folder = _damaged("checkpoint", _sound_checkpoint(), data)
    seal(folder)  # as who means harm would: the content is judged, not the seal
    opened = open_checkpoint(str(folder))
    settings = opened.recipe or _tiny_recipe()
    require_same_terms(opened, _tiny_recipe())
    if settings == _tiny_recipe():  # of another recipe, other models would load
        load_policy(settings, opened)


def model(data: bytes) -> None:
    """Loaded to be trained, and asked a question."""
    from scorefast.chat import pipe
    from scorefast.model.load import load_policy
    from scorefast.recipe import load_recipe, model_path

    folder = _damaged("model", Path(model_path("tiny-gemma2")), data)
    settings = load_recipe("tiny-cpu", ["rollout.max_new_tokens=2", f"model.name={folder}"])
    pipe(load_policy(settings, trainable=True), settings, io.StringIO("What is 1 + 2?"), io.StringIO())


def tokenizer(data: bytes) -> None:
    """Loaded, and asked for a prompt."""
    from scorefast.model.tokenizer import chat_format
    from scorefast.recipe import load_recipe, model_path

    folder = _damaged("tokenizer", Path(model_path("tiny-gemma2")), data)
    chat_format(load_recipe("tiny-cpu", [f"model.name={folder}"])).prompt("What is 1 + 2?")


def generation(data: bytes) -> None:
    """Whatever is said of sampling, where the model is loaded at all it says the same."""
    from scorefast.model.generate import generate
    from scorefast.model.load import load_policy
    from scorefast.recipe import load_recipe, model_path

    folder = _damaged("generation", Path(model_path("tiny-gemma2")), data)
    own, sound = load_policy(load_recipe("tiny-cpu", [f"model.name={folder}"])), _policy()
    prompt = sound.chat.prompt("What is 1 + 2?")
    settings: Any = {"max_new_tokens": 4, "temperature": 0.0, "batch_size": 1}
    if b'"config.json"' not in data:  # which may say another function
        assert generate(own, [prompt], **settings) == generate(sound, [prompt], **settings)
    else:
        generate(own, [prompt], **settings)


def command(*words: object) -> None:
    """A scorefast command in this process; what it refuses, or fails on, comes through as it was raised."""
    from scorefast.cli import app

    with contextlib.redirect_stdout(io.StringIO()):
        app([str(word) for word in words], standalone_mode=False)


def run_(data: bytes) -> None:
    """A run of two steps resumed after its first."""
    from scorefast.errors import RunError, UserError
    from scorefast.files.seal import SEAL, seal

    folder = _damaged("run", _sound_run(), data)
    if SEAL.encode() not in data:
        seal(folder / "checkpoint-1")
    try:
        command("stage1", "--data", scratch() / "few.csv", "--out", folder, "--resume", "--quiet")
    except RunError as error:  # found while it trained, and said in one line as well
        raise UserError(str(error)) from None


def _damaged(target: str, sound: Path, data: bytes) -> Path:
    """A copy, damaged as the JSON says: a list of [file, "cut", n] | [file, "flip", bit] | [file, "rename", n] |
    [file, "is", text] | [file, "set", key, value]. What is no such list becomes the first file."""
    folder = scratch() / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sound, folder)
    files = FILES[target]
    try:
        for name, what, *how in json.loads(data):
            _damage(folder / files[files.index(name)], what, *how)
    except (ValueError, TypeError, RecursionError):
        (folder / files[0]).write_bytes(data)
    return folder


def _damage(path: Path, what: str, *how: Any) -> None:
    content = path.read_bytes()
    if not content:
        return
    if what == "cut":
        content = content[: int(how[0]) % (len(content) + 1)]
    elif what == "flip":
        at = int(how[0]) % (8 * len(content))
        content = content[: at // 8] + bytes([content[at // 8] ^ 1 << at % 8]) + content[at // 8 + 1 :]
    elif what == "rename":  # one tensor's name in the header, the length kept
        header = content[8 : 8 + int.from_bytes(content[:8], "little")]
        places = [found.start() for found in re.finditer(rb"lora_[AB]|model\.l", header)]
        if not places:
            return
        at = 8 + places[int(how[0]) % len(places)]
        content = content[:at] + b"renam" + content[at + 5 :]
    elif what == "is":
        content = str(how[0]).encode("utf-8", "replace")
    elif what == "set":
        content = json.dumps(json.loads(content) | {str(how[0]): how[1]}).encode()
    path.write_bytes(content)


@cache
def _tiny_recipe() -> Recipe:
    from scorefast.recipe import load_recipe

    return load_recipe("tiny-cpu", ["rollout.max_new_tokens=2"])


@cache
def _sound_checkpoint() -> Path:
    from scorefast.model.load import load_policy
    from scorefast.model.policy import save_policy
    from scorefast.recipe import dump_recipe

    folder = scratch() / "sound"
    save_policy(load_policy(_tiny_recipe(), trainable=True), folder)
    (folder / "recipe.yaml").write_text(dump_recipe(_tiny_recipe()), encoding="utf-8")
    for name in os.listdir(folder):
        if name not in FILES["checkpoint"]:
            (folder / name).unlink()
    return folder


@cache
def _sound_run() -> Path:
    """Of one step on the first questions of the shipped data; a second is left to do."""
    shipped = (ROOT / "data" / "score.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    (scratch() / "few.csv").write_text("".join(shipped[:60]), encoding="utf-8")
    sizes = ["stage1.max_steps=2", "stage1.save_steps=1", "stage1.questions_per_step=1", "rollout.max_new_tokens=2"]
    folder = scratch() / "run"
    flags = [word for setting in [*sizes, "eval.max_questions=1"] for word in ("--set", setting)]
    command("stage1", "--data", scratch() / "few.csv", "--recipe", "tiny-cpu", *flags, "--out", folder, "--quiet")
    shutil.rmtree(folder / "checkpoint-2")
    return folder


@cache
def _policy() -> Any:
    from scorefast.model.load import load_policy

    return load_policy(_tiny_recipe())


def chat(data: bytes) -> None:
    from scorefast.chat import pipe

    lines, out = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8", errors="replace"), io.StringIO()
    asked = re.split("\r\n|\r|\n", data.decode("utf-8", "replace"))
    pipe(_policy(), _tiny_recipe(), lines, out)
    replies = [json.loads(line) for line in out.getvalue().split("\n")[:-1]]
    assert len(replies) == sum(bool(line.strip()) for line in asked)
    assert all(("error" in reply) != (len(reply.get("attempts", [])) == 2) for reply in replies)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "recipe": recipe,
    "set": override,
    "source": source,
    "parquet": parquet,
    "prepared": prepared,
    "answer": answer,
    "math": math,
    "checkpoint": checkpoint,
    "model": model,
    "tokenizer": tokenizer,
    "generation": generation,
    "run": run_,
    "chat": chat,
}
