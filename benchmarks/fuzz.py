"""Inputs nobody meant to write: each ends in a value or in one line of refusal, soon and in bounded memory.

    python benchmarks/fuzz.py run                  every target, in about a quarter of an hour; writes results/fuzz.md
    python benchmarks/fuzz.py one recipe --runs N  one target
    python benchmarks/fuzz.py replay FILE ...      files of tests/corpus/TARGET again

An input is bytes, whatever the target makes of them. Hypothesis writes inputs of about the right shape; atheris
(`pip install atheris`; not a dependency), where it is installed, changes them by what code they reach.
What once failed lies in tests/corpus and is tried again by the tests, with a small number of new inputs.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import io
import json
import os
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from functools import cache
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

HERE = Path(__file__).parent
CORPUS = HERE.parent / "tests" / "corpus"
SECONDS = 10.0  # for one input; the slowest that is documented is math-verify's limit of 5
GROWTH_MIB = 512  # that a target's inputs may add to the process's most memory
ROUND = 500  # inputs
KINDS = (".csv", ".tsv", ".jsonl", ".json", ".csv.gz", ".jsonl.gz")
GRADERS = ("numeric", "text", "exact", "choice", "contains")
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
    import atexit

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
    rows = sum(1 if isinstance(part, Dropped) else len(part.lines) for part in _counted(reading))
    assert rows == reading.rows_read


class _Kept(list):
    @property
    def lines(self) -> list:
        return self


def _counted(reading) -> Iterator:
    from scorefast.data.example import Dropped

    for part in reading():
        yield part if isinstance(part, Dropped) else _Kept(part.columns["id"])


def answer(data: bytes) -> None:
    """The first byte chooses the grader; reply, reference and question are separated by U+001F."""
    _grade(GRADERS[(data[:1] or b"\0")[0] % len(GRADERS)], data[1:])


def math(data: bytes) -> None:
    _grade("math", data)


def _grade(grader: str, data: bytes) -> None:
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
    settings = {"max_new_tokens": 4, "temperature": 0.0, "batch_size": 1}
    if b'"config.json"' not in data:  # which may say another function
        assert generate(own, [prompt], **settings) == generate(sound, [prompt], **settings)
    else:
        generate(own, [prompt], **settings)


def run_(data: bytes) -> None:
    """A run of two steps resumed after its first."""
    from scorefast.cli import run_stage
    from scorefast.errors import RunError, UserError
    from scorefast.files.seal import SEAL, seal
    from scorefast.runs.job import Request

    folder = _damaged("run", _sound_run(), data)
    if SEAL.encode() not in data:
        seal(folder / "checkpoint-1")
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            run_stage(Request("stage1", str(scratch() / "few.csv"), None, "auto", [], folder, True), quiet=True)
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


def _damage(path: Path, what: str, *how) -> None:
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
def _tiny_recipe():
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
    from scorefast.cli import run_stage
    from scorefast.runs.job import Request

    shipped = (HERE.parent / "data" / "score.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    (scratch() / "few.csv").write_text("".join(shipped[:60]), encoding="utf-8")
    sizes = ["stage1.max_steps=2", "stage1.save_steps=1", "stage1.questions_per_step=1", "rollout.max_new_tokens=2"]
    folder = scratch() / "run"
    with contextlib.redirect_stdout(io.StringIO()):
        few = [*sizes, "eval.max_questions=1"]
        run_stage(Request("stage1", str(scratch() / "few.csv"), None, "tiny-cpu", few, folder, False), quiet=True)
    shutil.rmtree(folder / "checkpoint-2")
    return folder


@cache
def _policy():
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
# Inputs by hypothesis, and seconds of atheris, in `run`: pure Python is worth atheris, the rest is native code or slow.
RUNS = {
    "recipe": (5_000, 120),
    "set": (5_000, 60),
    "source": (5_000, 120),
    "parquet": (3_000, 0),
    "prepared": (3_000, 0),
    "answer": (8_000, 90),
    "math": (60, 0),
    "checkpoint": (600, 0),
    "model": (1_000, 0),
    "tokenizer": (300, 0),
    "generation": (500, 0),
    "run": (200, 0),
    "chat": (150, 0),
}


# --- runs --------------------------------------------------------------------------------------------------------


def fuzz(target: str, runs: int, seed: int) -> dict[str, object]:
    """New inputs by hypothesis. What fails is made small, kept in the corpus, and ends the run of that target."""
    from benchmarks.fuzz_inputs import inputs

    strategy, told = inputs(target), {"taken": 0, "refused": 0, "slowest_ms": 0}
    with contextlib.suppress(Exception):
        TARGETS[target](b"")  # what is imported and made once is neither the inputs' memory nor their time
    before, started, error = _most_memory(), time.perf_counter(), ""
    for first in range(0, runs, ROUND):  # in rounds: hypothesis holds on to what it wrote in one
        error = error or _round(target, strategy, min(ROUND, runs - first), 1000 * seed + first // ROUND, told)
    grown = (_most_memory() - before) >> 20
    if grown > GROWTH_MIB:
        error = error or f"memory grew by {grown} MiB"
    took = round(time.perf_counter() - started, 1)
    return {
        "target": target,
        "by": "hypothesis",
        "seed": seed,
        "seconds": took,
        "grown_mib": grown,
        "error": error,
    } | told


def _round(target: str, strategy, runs: int, seed: int, told: dict[str, int]) -> str:
    """Counts into `told`; the first line of an error."""
    import hypothesis

    failed: list[bytes] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=runs, database=None, deadline=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    @hypothesis.given(strategy)
    def tried(data: bytes) -> None:
        started = time.perf_counter()
        try:
            told["taken" if check(target, data) else "refused"] += 1
        except (Exception, TooSlow) as error:
            failed.append(data)
            raise AssertionError(f"{type(error).__name__}: {error}") from error
        told["slowest_ms"] = max(told["slowest_ms"], round(1000 * (time.perf_counter() - started)))

    try:
        tried()
    except Exception as raised:  # the harness reports it
        if not failed:
            raise
        keep(target, failed[-1])
        return f"{type(raised).__name__}: {raised}".splitlines()[0]
    return ""


def keep(target: str, data: bytes) -> Path:
    path = CORPUS / target / hashlib.sha256(data).hexdigest()[:12]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def _most_memory() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def fuzz_by_coverage(target: str, seconds: int, seed: int) -> None:
    """atheris takes over the process: libFuzzer's last lines on stderr say how it ended."""
    import atheris

    with atheris.instrument_imports(include=["scorefast", "yaml"]):
        import scorefast.data.load
        import scorefast.grading.grade
        import scorefast.recipe  # noqa: F401

    counts = {"taken": 0, "refused": 0}

    def tried(data: bytes) -> None:
        from scorefast.errors import UserError

        try:
            TARGETS[target](data)
            counts["taken"] += 1
        except UserError:
            counts["refused"] += 1
        if sum(counts.values()) % 100 == 0:
            (scratch().parent / f"scorefast-fuzz-{os.getppid()}-{target}.json").write_text(json.dumps(counts))

    seeds = CORPUS / target
    flags = [
        f"-max_total_time={seconds}",
        f"-seed={seed}",
        f"-timeout={6 * SECONDS:.0f}",  # instrumented, Python is several times slower
        "-rss_limit_mb=3072",
        "-max_len=2048",
    ]
    flags += [f"-artifact_prefix={CORPUS / target}/", "-verbosity=1", "-print_final_stats=1"]
    work = scratch() / "found"
    work.mkdir()
    atheris.Setup([sys.argv[0], *flags, str(work), *([str(seeds)] if seeds.is_dir() else [])], tried)
    atheris.Fuzz()


def _one_in_its_own_process(target: str, runs: int, seed: int, coverage: bool) -> dict[str, object]:
    command = [
        sys.executable,
        __file__,
        "coverage" if coverage else "one",
        target,
        "--runs",
        str(runs),
        "--seed",
        str(seed),
    ]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if not coverage:
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}: {done.stderr[-2000:]}")
        return json.loads(done.stdout.splitlines()[-1])
    told = dict(re.findall(r"stat::(\w+):\s+(\d+)", done.stderr))
    memory = int(told.get("peak_rss_mb", 0))
    error = (
        "" if done.returncode == 0 else next((x for x in done.stderr.splitlines() if "Error" in x or "Exc" in x), "?")
    )
    beside = scratch().parent / f"scorefast-fuzz-{os.getpid()}-{target}.json"
    counts = json.loads(beside.read_text()) if beside.exists() else {"taken": 0, "refused": 0}
    beside.unlink(missing_ok=True)
    edges = re.findall(r"cov: (\d+)", done.stderr)
    return {
        "target": target,
        "by": "atheris",
        "seed": seed,
        **counts,
        "runs": int(told.get("number_of_executed_units", 0)),
        "edges": (int(edges[0]), int(edges[-1])) if edges else None,
        "seconds": round(time.perf_counter() - started, 1),
        "slowest_ms": 1000 * int(told.get("slowest_unit_time_sec", 0)),
        "peak_mib": memory,
        "error": error,
    }


def run(seed: int, share: float) -> None:
    from importlib.util import find_spec

    results = []
    for target, (shaped, covered) in RUNS.items():
        for number, coverage in ((shaped, False), (covered, True)):
            if number and (not coverage or find_spec("atheris")):
                results.append(_one_in_its_own_process(target, max(1, int(number * share)), seed, coverage))
                print(json.dumps(results[-1]), flush=True)
    (HERE / "results" / "fuzz.md").write_text(_report(results, seed, share), encoding="utf-8")
    if any(result["error"] for result in results):
        raise SystemExit("failures: their inputs lie in tests/corpus")


def _report(results: list[dict], seed: int, share: float) -> str:
    packages = ("hypothesis", "PyYAML", "pydantic", "safetensors", "transformers", "peft", "torch", "atheris")
    versions = []
    for name in packages:
        with contextlib.suppress(Exception):
            versions.append(f"{name} {version(name)}")
    lines = [
        "# Fuzzing",
        "",
        f"`python benchmarks/fuzz.py run --share {share:g} --seed {seed}`, {date.today()}, "
        f"Python {platform.python_version()}, {', '.join(versions)}.",
        "",
        f"Every input ended in a value (taken) or in one line of refusal, within {SECONDS:.0f} s, unless the last "
        "column says otherwise. Memory: what the process grew by while inputs were tried (hypothesis, limit "
        f"{GROWTH_MIB} MiB), or its peak with the instrumented libraries (atheris, limit 3,072 MiB).",
        "",
        "| target | inputs by | inputs | taken | refused | seconds | slowest | memory | edges reached | failures |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        total = r.get("runs") or r["taken"] + r["refused"]
        memory = f"+{r['grown_mib']}" if "grown_mib" in r else r["peak_mib"]
        edges = "{} -> {}".format(*r["edges"]) if r.get("edges") else ""
        slow = f"{r['slowest_ms']} ms" if r["by"] == "hypothesis" else f"{r['slowest_ms'] / 1000:.0f} s"
        lines.append(
            f"| {r['target']} | {r['by']} | {total:,} | {r['taken']:,} | {r['refused']:,} | {r['seconds']} | {slow} "
            f"| {memory} MiB | {edges} | {r['error'] or 'none'} |"
        )
    kept = sorted(f"{path.parent.name}/{path.name}" for path in CORPUS.glob("*/*"))
    lines += [
        "",
        f"In tests/corpus, tried again by the tests: {len(kept)} inputs that once failed, or were "
        "written by hand to fail the code as it was.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    whole = commands.add_parser("run")
    whole.add_argument("--share", type=float, default=1.0, help="of the documented number of inputs")
    for name in ("one", "coverage"):
        single = commands.add_parser(name)
        single.add_argument("target", choices=TARGETS)
        single.add_argument("--runs", type=int, default=1000, help="of coverage: seconds")
    for command in commands.choices.values():
        command.add_argument("--seed", type=int, default=0)
    again = commands.add_parser("replay")
    again.add_argument("files", nargs="+", type=Path)
    given = parser.parse_args()
    if given.command == "run":
        run(given.seed, given.share)
    elif given.command == "coverage":
        fuzz_by_coverage(given.target, given.runs, given.seed)
    elif given.command == "one":
        result = fuzz(given.target, given.runs, given.seed)
        print(json.dumps(result))
    else:
        for file in given.files:
            with contextlib.suppress(Exception):
                TARGETS[file.parent.name](b"")
            print(file, "taken" if check(file.parent.name, file.read_bytes()) else "refused")


if __name__ == "__main__":
    main()
