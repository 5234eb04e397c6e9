"""`scorefast prepare` against `datasets.load_dataset("csv")` + `to_parquet` of a large CSV: time and memory.

    python benchmarks/prepare.py --rows 1000000

Whole processes in turns; the file is made first, so that it lies in the page cache. datasets reads and writes; prepare
also checks, normalises, hashes, deduplicates, splits, grades and counts tokens. Two files: questions with numbers, as
mathematics has them, and questions without, all of which have to be compared for near duplicates.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "prepare.md"
DATASETS = """
import sys, datasets
loaded = datasets.load_dataset("csv", data_files=sys.argv[1], cache_dir=sys.argv[2], split="train")
loaded.to_parquet(sys.argv[3])
"""


def write_csv(path: Path, rows: int, numbers: bool) -> None:
    """About 318 bytes a row; words are drawn from 5,000 made-up ones."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(5000)]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "original_answer", "correct_answer"])
        for _ in range(rows):
            a, b = draw.randint(1, 10**6), draw.randint(1, 10**6)
            asked = f", {a} and {b}" if numbers else f" and {' '.join(draw.choices(words, k=2))}"
            question = " ".join(draw.choices(words, k=18)) + f'{asked}, "how many"?'
            first = " ".join(draw.choices(words, k=10)) + f" {a + b + draw.randint(0, 1)}"
            writer.writerow([question, first, " ".join(draw.choices(words, k=12)) + f"\n#### {a + b}"])


def measured(command: list[str], folder: Path) -> tuple[float, float]:
    """(seconds, peak resident GB) of a process."""
    with (folder / "log").open("w") as log:
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit((folder / "log").read_text())
    return time.perf_counter() - started, usage.ru_maxrss / 1e6


def compare(source: Path, folder: Path, rounds: int, *flags: str) -> dict[str, list[tuple[float, float]]]:
    times: dict[str, list[tuple[float, float]]] = {"datasets": [], "prepare": []}
    for _ in range(rounds):
        for name in ("cache", "out"):
            shutil.rmtree(folder / name, ignore_errors=True)
        datasets = [sys.executable, "-c", DATASETS, str(source), "cache", "datasets.parquet"]
        times["datasets"].append(measured(datasets, folder))
        prepare = [sys.executable, "-m", "scorefast", "prepare", str(source), "--out", "out", *flags]
        times["prepare"].append(measured(prepare, folder))
    return times


def line(name: str, size: int, times: dict[str, list[tuple[float, float]]]) -> str:
    seconds = {k: [s for s, _ in v] for k, v in times.items()}
    ratios = [p / d for p, d in zip(seconds["prepare"], seconds["datasets"], strict=True)]
    cells = [f"{statistics.median(v):.1f} ({min(v):.1f} to {max(v):.1f})" for v in seconds.values()]
    ratio = f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
    memory = [f"{max(m for _, m in v):.2f}" for v in times.values()]
    return f"| {name} | {size / 1e6:.0f} | {' | '.join(cells)} | {ratio} | {' | '.join(memory)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="2")
    lines = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for numbers in (True, False):
            source = folder / "large.csv"
            write_csv(source, arguments.rows, numbers)
            kind = "questions with numbers" if numbers else "questions without numbers"
            for flags in ([], ["--set", "data.near_duplicates=0"]):
                times = compare(source, folder, arguments.rounds, *flags)
                lines.append(line(kind + (", near duplicates off" if flags else ""), source.stat().st_size, times))
                print(lines[-1], file=sys.stderr)
    cpus = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if sys.platform == "linux" else []
    cpu = next((text.split(":")[1].strip() for text in cpus if text.startswith("model name")), platform.machine())
    versions = ", ".join(f"{name} {version(name)}" for name in ("datasets", "pyarrow", "rensa", "tokenizers"))
    RESULT.write_text(
        f"# prepare on a large file\n\n{__doc__.split(chr(10), 4)[4].strip()}\n\n"
        f"{arguments.rows:,} rows, {arguments.rounds} rounds, medians (least to most) of whole processes; "
        f"{os.cpu_count()} cores of {cpu}, Python {platform.python_version()}, {versions}.\n\n"
        "| | MB | datasets, s | prepare, s | ratio | datasets, GB | prepare, GB |\n|---|---|---|---|---|---|---|\n"
        + "\n".join(lines)
        + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
