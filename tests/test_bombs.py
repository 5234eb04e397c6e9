"""Small files that become huge: each is one line, soon, in a process that may take 4 GiB of addresses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scorefast.data.rows import CHUNK_CHARACTERS, BadRow, Row
from scorefast.data.sources import read_chunks, read_rows
from scorefast.errors import UserError
from scorefast.files.bounded import MAX_DEPTH
from tests.conftest import REPOSITORY

SECONDS = 30  # on a busy machine; alone, 1 to 3
READ = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))
from pathlib import Path
from scorefast.grade import grade_lines
from scorefast.prepare import prepare
from scorefast.errors import UserError
from scorefast.recipe import load_recipe
try:
    if sys.argv[1] == "grade":
        list(grade_lines(sys.argv[2], "auto"))
    else:
        Path("out").mkdir()
        prepare(sys.argv[2], load_recipe("tiny-cpu"), Path("out"))
except UserError as error:
    print(error)
    sys.exit(2)
"""
ROW = b'{"question": "a", "correct_answer": "b"}\n'
ZEROS = b"0" * 2**24


def refused(*arguments, cwd) -> str:
    started = time.monotonic()
    command = [sys.executable, "-P", "-c", READ, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=cwd, env={"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (2, "")
    assert done.stdout.count("\n") == 1
    assert len(done.stdout) < 1000
    assert time.monotonic() - started < SECONDS
    return done.stdout


def stream(path, kind: str, head: bytes, part: bytes, times: int) -> None:
    with pa.CompressedOutputStream(str(path), kind) as out:
        out.write(head)
        for _ in range(times):
            out.write(part)


def table(path, **columns) -> None:
    pq.write_table(pa.table({name: pa.array(*column) for name, column in columns.items()}), path, compression="zstd")


def repeated(path, size: int) -> None:
    """One text, written once, in each of 1,000 rows."""
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array(["x" * size]))
    numbers = pa.array([str(i) for i in range(1000)])
    columns = {"question": numbers, "correct_answer": numbers, "more": text}
    pq.write_table(pa.table(columns), path, compression="zstd", store_schema=False)


BOMBS = {
    "line.jsonl.gz": (lambda p: stream(p, "gzip", b'{"question": "', ZEROS, 20), "line is longer than"),
    "cell.csv.zst": (lambda p: stream(p, "zstd", b'question,correct_answer\n"', ZEROS, 20), "line is longer than"),
    "rows.jsonl.gz": (lambda p: stream(p, "gzip", b"", ROW * 400_000, 20), "more than 200 times its size as gzip"),
    "whole.json.gz": (lambda p: stream(p, "gzip", b"[", b"{}," * 5_000_000, 20), "more than 200 times its size"),
    "whole.json.zst": (lambda p: stream(p, "zstd", b"[", b"{}," * 5_000_000, 20), "more than 200 times its size"),
    "values.json": (lambda p: p.write_bytes(b"[" + b"[]," * 26_000_000), "more than 50,000,000 values"),
    "endless.csv": (
        lambda p: p.write_bytes(b'question,correct_answer\n"a\n' + b'","\n' * 2**24),
        "line 2: a row of more",
    ),
    "endless head.csv": (lambda p: p.write_bytes(b'"a\n' + b'","\n' * 2**24), "line 1: a row of more"),
    "wide.csv": (lambda p: p.write_bytes(b",".join(b"c" * 90 + b"%d" % i for i in range(100_000))), "100,000 columns"),
    "wide.jsonl": (lambda p: p.write_text(json.dumps({f"c{i}": 1 for i in range(100_000)})), "has 100,000 keys"),
    "deep.json": (lambda p: p.write_bytes(b"[" * 1_000_000), "not JSON"),
    "a.parquet": (lambda p: repeated(p, 8_000_000), "2,147,483,648 bytes, or more than are free"),
    "b.parquet": (lambda p: repeated(p, 400_000), "more than 1000 times its size as Parquet"),
    "nulls.parquet": (
        lambda p: table(p, question=([None] * 3_000_000, pa.string()), answer=([None] * 3_000_000, pa.string())),
        "more than 1000 times its size as Parquet",
    ),
    "bools.parquet": (
        lambda p: table(p, question=(["a"],), answer=(["b"],), more=([[True] * 40_000_000], pa.list_(pa.bool_()))),
        "more than 1000 times its size as Parquet",
    ),
    "wide.parquet": (lambda p: table(p, **{f"c{i}": (["a"],) for i in range(10_001)}), "has 10,001 columns"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_file_that_becomes_huge_is_one_line(tmp_path, name):
    make, message = BOMBS[name]
    make(tmp_path / name)
    said = refused("prepare", name, cwd=tmp_path)
    assert said.startswith(name)
    assert message in said


@pytest.mark.parametrize("name", ["/dev/zero", "line.jsonl", "pipe", "deep.jsonl"])
def test_grade_is_as_bounded(tmp_path, name):
    with (tmp_path / "line.jsonl").open("wb") as file:
        file.truncate(3 * 2**30)
    os.mkfifo(tmp_path / "pipe")
    deep = "[" * 150 + "]" * 150
    (tmp_path / "deep.jsonl").write_text(f'{{"answer": "1", "reference": "1", "more": {deep}}}\n')
    said = refused("grade", name, cwd=tmp_path)
    expected = {"pipe": "a pipe; read it from stdin", "deep.jsonl": f"line 1: nested deeper than {MAX_DEPTH} levels"}
    assert said.startswith(f"{name}: ")
    assert expected.get(name, "line 1: longer than 33,554,432 characters") in said


def test_levels_are_counted_in_every_row(tmp_path):
    deep = ["[" * n + "]" * n for n in (MAX_DEPTH, MAX_DEPTH + 1, 900, 990, 5000)]
    (tmp_path / "a.jsonl").write_text("".join(f'{{"question": "a", "more": {text}}}\n' for text in deep))
    first, *others = read_rows(str(tmp_path / "a.jsonl"))
    assert isinstance(first, Row)
    assert all(isinstance(row, BadRow) for row in others)


def test_long_rows_of_parquet_come_a_few_at_a_time(tmp_path):
    texts = [str(i % 10) * 1_000_000 + str(i) for i in range(100)]
    pq.write_table(pa.table({"question": texts}), tmp_path / "a.parquet", compression="none")
    parts = list(read_chunks(str(tmp_path / "a.parquet")))
    assert [text for part in parts for text in part.columns["question"]] == texts
    assert [line for part in parts for line in part.lines] == list(range(1, 101))
    assert max(sum(map(len, part.columns["question"])) for part in parts) <= CHUNK_CHARACTERS + 1_000_010


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_file_is_not_opened(tmp_path, kind):
    path = tmp_path / "a.jsonl"
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    with pytest.raises(UserError, match="not a file; expected one of"):
        list(read_rows(str(path)))
