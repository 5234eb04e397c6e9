"""Inputs nobody meant to write: each ends in a value or in one line of refusal, soon and in bounded memory.

    python -m tests.harness.fuzz run                  every target, a quarter of an hour; tests/harness/results/fuzz.md
    python -m tests.harness.fuzz one recipe --runs N  one target
    python -m tests.harness.fuzz replay FILE ...      files of tests/corpus/TARGET again

An input is bytes, whatever the target makes of them. Hypothesis writes inputs of about the right shape; atheris
(`pip install atheris`; not a dependency), where it is installed, changes them by what code they reach.
What once failed lies in tests/corpus and is tried again by the tests, with a small number of new inputs.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.common import argument_parser, environment, machine_line, markdown_table, write_page
from tests.harness.fuzz_targets import ROOT, SECONDS, TARGETS, TooSlow, check, scratch

PACKAGES = ("hypothesis", "PyYAML", "pydantic", "safetensors", "transformers", "peft", "torch", "atheris")
CORPUS = ROOT / "tests" / "corpus"
RESULTS = ROOT / "tests" / "harness" / "results"
GROWTH_MIB = 512  # that a target's inputs may add to the process's most memory
ROUND = 500  # inputs
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


def fuzz(target: str, runs: int, seed: int) -> dict[str, Any]:
    """New inputs by hypothesis. What fails is made small, kept in the corpus, and ends the run of that target."""
    from tests.harness.fuzz_inputs import inputs

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


def _round(target: str, strategy: Any, runs: int, seed: int, told: dict[str, int]) -> str:
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
        import scorefast.data
        import scorefast.grading
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


def _command(action: str, target: str, number: int, seed: int) -> list[str]:
    words = [sys.executable, "-m", "tests.harness.fuzz", action, target]
    return [*words, "--runs", str(number), "--seed", str(seed)]


def _by_hypothesis(target: str, runs: int, seed: int) -> dict[str, Any]:
    """`fuzz` in a process of its own."""
    words = _command("one", target, runs, seed)
    done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False, env=environment())
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _by_coverage(target: str, seconds: int, seed: int) -> dict[str, Any]:
    """`fuzz_by_coverage` in a process of its own, and what libFuzzer says of it."""
    started, words = time.perf_counter(), _command("coverage", target, seconds, seed)
    done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False, env=environment())
    told = dict(re.findall(r"stat::(\w+):\s+(\d+)", done.stderr))
    lines = done.stderr.splitlines()
    error = "" if done.returncode == 0 else next((x for x in lines if "Error" in x or "Exc" in x), "?")
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
        "peak_mib": int(told.get("peak_rss_mb", 0)),
        "error": error,
    }


def run(seed: int, share: float, out: Path) -> None:
    """Every target, by hypothesis and where it is installed by atheris. Exits with code 1 where an input failed."""
    results = []
    for target, (runs, seconds) in RUNS.items():
        results.append(_by_hypothesis(target, max(1, int(runs * share)), seed))
        print(json.dumps(results[-1]), flush=True)
        if seconds and find_spec("atheris"):
            results.append(_by_coverage(target, max(1, int(seconds * share)), seed))
            print(json.dumps(results[-1]), flush=True)
    write_page(out / "fuzz.md", report(results, seed, share))
    if any(result["error"] for result in results):
        raise SystemExit("failures: their inputs lie in tests/corpus")


def report(results: list[dict[str, Any]], seed: int, share: float) -> list[str]:
    """The lines of fuzz.md."""
    rows = []
    for r in results:
        total = r.get("runs") or r["taken"] + r["refused"]
        memory = f"+{r['grown_mib']} MiB" if "grown_mib" in r else f"{r['peak_mib']} MiB"
        edges = "{} -> {}".format(*r["edges"]) if r.get("edges") else ""
        slow = f"{r['slowest_ms']} ms" if r["by"] == "hypothesis" else f"{r['slowest_ms'] / 1000:.0f} s"
        numbers = [f"{total:,}", f"{r['taken']:,}", f"{r['refused']:,}", r["seconds"], slow, memory, edges]
        rows.append([r["target"], r["by"], *numbers, r["error"] or "none"])
    kept = len(list(CORPUS.glob("*/*")))
    given = f"`python -m tests.harness.fuzz run --share {share:g} --seed {seed}`"
    heads = ("target", "inputs by", "inputs", "taken", "refused", "seconds", "slowest", "memory", "edges reached")
    return [
        "# Fuzzing",
        "",
        f"{given}, {date.today()}, {machine_line(PACKAGES)}.",
        "",
        f"Every input ended in a value (taken) or in one line of refusal, within {SECONDS:.0f} s, unless the last "
        "column says otherwise. Memory: what the process grew by while inputs were tried (hypothesis, limit "
        f"{GROWTH_MIB} MiB), or its peak with the instrumented libraries (atheris, limit 3,072 MiB).",
        "",
        *markdown_table([*heads, "failures"], rows),
        "",
        f"In tests/corpus, tried again by the tests: {kept} inputs that once failed, or were "
        "written by hand to fail the code as it was.",
    ]


def main(argv: Sequence[str]) -> None:
    """Parse the flags and run one action."""
    parser = argument_parser("tests.harness.fuzz", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    whole = commands.add_parser("run")
    whole.add_argument("--share", type=float, default=1.0, help="of the documented number of inputs")
    whole.add_argument("--out", type=Path, default=RESULTS, help="folder of fuzz.md")
    for name in ("one", "coverage"):
        single: argparse.ArgumentParser = commands.add_parser(name)
        single.add_argument("target", choices=TARGETS)
        single.add_argument("--runs", type=int, default=1000, help="of coverage: seconds")
    for command in commands.choices.values():
        command.add_argument("--seed", type=int, default=0)
    again = commands.add_parser("replay")
    again.add_argument("files", nargs="+", type=Path)
    given = parser.parse_args(argv)
    if given.command == "run":
        run(given.seed, given.share, given.out)
    elif given.command == "coverage":
        fuzz_by_coverage(given.target, given.runs, given.seed)
    elif given.command == "one":
        print(json.dumps(fuzz(given.target, given.runs, given.seed)))
    else:
        for file in given.files:
            with contextlib.suppress(Exception):
                TARGETS[file.parent.name](b"")
            print(file, "taken" if check(file.parent.name, file.read_bytes()) else "refused")


if __name__ == "__main__":
    main(sys.argv[1:])
