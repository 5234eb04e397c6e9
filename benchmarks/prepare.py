"""`scorefast prepare` against `datasets.load_dataset("csv")` + `to_parquet` of a large CSV: time and memory.

    python -m benchmarks prepare --rows 1000000     # benchmarks/results/prepare.md

Whole processes in turns; the file is made first, so that it lies in the page cache. datasets reads and writes; prepare
also checks, normalises, hashes, deduplicates, splits, grades and counts tokens. Two files: questions with numbers, as
mathematics has them, and questions without, all of which have to be compared for near duplicates.
"""

from __future__ import annotations

import csv
import os
import random
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import (
    RESULTS,
    about,
    argument_parser,
    command,
    machine_line,
    markdown_table,
    seconds_and_peak,
    write_page,
)

DATASETS = """
import sys, datasets
loaded = datasets.load_dataset("csv", data_files=sys.argv[1], cache_dir=sys.argv[2], split="train")
loaded.to_parquet(sys.argv[3])
"""
CASES = {  # name -> (whether the questions have numbers, flags of prepare)
    "questions with numbers": (True, []),
    "questions with numbers, near duplicates off": (True, ["--set", "data.near_duplicates=0"]),
    "questions without numbers": (False, []),
    "questions without numbers, near duplicates off": (False, ["--set", "data.near_duplicates=0"]),
}
HEADS = ("", "MB", "datasets, s", "prepare, s", "ratio", "datasets, GB", "prepare, GB")
Times = dict[str, list[tuple[float, int]]]  # of each contender: seconds and peak bytes, round by round


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


def compare(source: Path, folder: Path, rounds: int, flags: Sequence[str]) -> Times:
    """Both contenders in turns, each in a fresh process and into fresh folders."""
    times: Times = {"datasets": [], "prepare": []}
    datasets = [sys.executable, "-c", DATASETS, str(source), "cache", "datasets.parquet"]
    prepare = command("prepare", source, "--out", "out", *flags)
    for _ in range(rounds):
        for name in ("cache", "out"):
            shutil.rmtree(folder / name, ignore_errors=True)
        times["datasets"].append(seconds_and_peak(datasets, folder))
        times["prepare"].append(seconds_and_peak(prepare, folder))
    return times


def cells(name: str, size: int, times: Times) -> list[str]:
    """Medians over rounds with the least and the most; ratios are of times of the same round."""
    seconds = {k: [s for s, _ in v] for k, v in times.items()}
    ratios = [p / d for p, d in zip(seconds["prepare"], seconds["datasets"], strict=True)]
    spread = [f"{statistics.median(v):.1f} ({min(v):.1f} to {max(v):.1f})" for v in (*seconds.values(), ratios)]
    memory = [f"{max(m for _, m in v) / 1e9:.2f}" for v in times.values()]
    return [name, f"{size / 1e6:.0f}", *spread, *memory]


def main(argv: Sequence[str]) -> None:
    """Parse the flags, measure the cases and write the page."""
    parser = argument_parser("benchmarks prepare", __doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="cases whose name contains this; prints them and writes no page")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of prepare.md")
    given = parser.parse_args(argv)
    os.environ |= {"HF_HUB_OFFLINE": "1"}
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for case, (numbers, flags) in CASES.items():
            if given.only not in case:
                continue
            source = folder / f"large-{numbers}.csv"
            if not source.is_file():
                write_csv(source, given.rows, numbers)
            rows.append(cells(case, source.stat().st_size, compare(source, folder, given.rounds, flags)))
            print(markdown_table(HEADS, rows)[-1], flush=True)
    if given.only:
        return
    machine = machine_line(("datasets", "pyarrow", "rensa", "tokenizers"))
    what = f"{given.rows:,} rows, {given.rounds} rounds, medians (least to most) of whole processes; {machine}."
    lines = ["# prepare on a large file", "", about(__doc__), "", what, "", *markdown_table(HEADS, rows)]
    write_page(given.out / "prepare.md", lines)
