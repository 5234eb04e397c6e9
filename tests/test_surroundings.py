"""Streams in any encoding, and the variables of torchrun: a command ends as it does on a UTF-8 terminal."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import pytest

from scorefast.errors import UserError
from scorefast.files.lines import line_text
from scorefast.runs.processes import TORCHRUN, world
from scorefast.ui.streams import ESCAPED
from tests.conftest import QUICK, REPOSITORY, SHIPPED, scorefast_here

ENCODINGS = ["cp1252", "ascii", "cp949", "latin-1", "utf-16", "cp437:strict"]
ENVIRONMENTS = {name: {"PYTHONIOENCODING": name} for name in ENCODINGS}
ENVIRONMENTS["C"] = {"LC_ALL": "C", "PYTHONUTF8": "0"}
ENVIRONMENTS["C, ascii"] = ENVIRONMENTS["C"] | ENVIRONMENTS["ascii"]
TEXT = "대한민국의 수도는 서울 ü 😀"
LINES = [
    {"answer": f"{TEXT} The answer is 4", "reference": "4", "label": True},
    {"answer": "서울", "reference": "서울", "grader": "exact", "label": True},
    {"answer": "부산", "reference": "서울", "grader": "exact", "label": False},
]
GRADED = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in LINES)


def run(*arguments, cwd, env, stdin=b""):
    """(exit code, stdout and stderr decoded as the stream is, without an error)"""
    plain = {k: v for k, v in os.environ.items() if k not in ("LC_ALL", "LC_CTYPE", "LANG", "PYTHONUTF8")}
    plain |= {"LANG": "C.UTF-8", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "scorefast", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=plain | env, input=stdin, capture_output=True, timeout=600, check=False)
    encoding = env.get("PYTHONIOENCODING", "utf-8").partition(":")[0]
    assert b"Traceback" not in done.stderr
    return done.returncode, done.stdout.decode(encoding), done.stderr.decode(encoding)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_what_is_graded_is_the_same_in_every_encoding(tmp_path, name):
    (tmp_path / "g.jsonl").write_text(GRADED, encoding="utf-8")
    given = ["g.jsonl"] if name == "cp1252" else ["-"]
    code, out, err = run("grade", *given, cwd=tmp_path, env=ENVIRONMENTS[name], stdin=GRADED.encode())
    assert code == 0
    rows = [json.loads(line) for line in out.splitlines()]
    assert [{key: row[key] for key in line} for row, line in zip(rows, LINES, strict=True)] == LINES
    assert [row["correct"] for row in rows] == [True, True, False]
    assert "agreement 100.0" in err


@pytest.mark.parametrize("name", ["cp949", "C"])
def test_a_stage_and_what_follows_it_end_as_on_utf8(tmp_path, name):
    """The name of the folder is told as well as the stream can tell it, and is what it should be on the disk."""
    env, out = ENVIRONMENTS[name], "ü가"
    code, told, err = run("stage1", "--data", SHIPPED, *QUICK, "--out", out, cwd=tmp_path, env=env)
    assert (code, told) == (0, {"cp949": "\\u00fc가\n", "C": "ü가\n"}[name])
    assert "validation (greedy)" in err
    assert (tmp_path / out / "curve.png").is_file()
    code, told, err = run("eval", out, "--data", SHIPPED, *QUICK, "--json", cwd=tmp_path, env=env)
    assert code == 0
    assert json.loads(told)["results"][0]["name"] == out
    assert "acc@t1" in err


@pytest.mark.parametrize("name", ["cp949", "C, ascii"])
def test_prepare_tells_all_its_lines(tmp_path, name):
    rows = "".join(f"{i} 더하기 {i}은 얼마입니까 é?,{2 * i}\n" for i in range(40))
    (tmp_path / "질문ü.csv").write_text("question,correct_answer\n" + rows, encoding="utf-8")
    lines = []
    for env in (ENVIRONMENTS[name], {}):
        out = f"데이터{len(lines)}"
        code, told, err = run("prepare", "질문ü.csv", "--out", out, "--report", cwd=tmp_path, env=env)
        assert (code, told.count("\n")) == (0, 1)
        lines.append(len(err.splitlines()))
        assert (tmp_path / out / "report.html").is_file()
    assert lines[0] == lines[1]


@pytest.mark.parametrize(
    ("name", "sent"),
    [("cp949", "cp949"), ("cp1252", "utf-8"), ("C", "utf-8"), ("ascii", "utf-8-sig"), ("cp949", "utf-16")],
)
def test_chat_reads_questions_and_answers_in_json(tmp_path, name, sent):
    question = "대한민국의 수도는 어디입니까?"
    stdin = f"{question}\nWhat is 1 + 2?\n".encode(sent)
    code, out, _ = run("chat", "--json", cwd=tmp_path, env=ENVIRONMENTS[name], stdin=stdin)
    assert code == 0
    assert [json.loads(line)["question"] for line in out.splitlines()] == [question, "What is 1 + 2?"]


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp949"])
@pytest.mark.parametrize("most", [-1, 3, 4, 5, 6, 100])
def test_lines_are_read_by_mark_then_as_utf8_then_as_the_stream_says(codec, most):
    text = "참 거짓\r\nWhat is 1 + 2?\n\n대한민국"  # of cp949, bytes that are torn may be read as two others
    most = most if codec != "cp949" else -1
    read = line_text(io.BufferedReader(io.BytesIO(text.encode(codec))), "cp949")
    pieces = list(iter(lambda: read.readline(most), ""))
    assert "".join(pieces).replace("\r", "") == text.replace("\r", "")
    assert most < 0 or max(map(len, pieces)) <= most
    read = line_text(io.BufferedReader(io.BytesIO(text.encode(codec))), "cp949")
    assert [line.strip() for line in read] == ["참 거짓", "What is 1 + 2?", "", "대한민국"]


def test_what_cannot_be_read_is_replaced():
    assert list(line_text(io.BufferedReader(io.BytesIO(b"a\xff\nb")))) == ["a\ufffd\n", "b"]
    assert list(line_text(io.BufferedReader(io.BytesIO(b"\xff\xfea\0\xd8")))) == ["a\ufffd"]
    assert not list(line_text(io.BufferedReader(io.BytesIO(b""))))


def test_what_a_stream_lacks_is_escaped_as_in_json():
    stream = io.TextIOWrapper(io.BytesIO(), "cp949", errors=ESCAPED)
    stream.write(json.dumps({"a": TEXT}, ensure_ascii=False))
    stream.flush()
    written = stream.buffer.getvalue().decode("cp949")
    assert "서울 \\u00fc \\ud83d\\ude00" in written
    assert json.loads(written) == {"a": TEXT}


def test_empty_variables_of_torchrun_are_as_if_unset(tmp_path, monkeypatch):
    for name in (*TORCHRUN, "PMI_SIZE", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.setenv(name, "")
    done = scorefast_here("stage1", "--data", SHIPPED, "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not os.environ.keys() & set(TORCHRUN), "libraries read them too"
    assert world() == (0, 1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"RANK": "x"}, "RANK=x: expected a whole number; torchrun sets it, unset it otherwise"),
        ({"RANK": "1.5"}, "RANK=1.5: expected a whole number"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two: expected a whole number"),
        ({"LOCAL_RANK": "a\nb"}, "LOCAL_RANK=a b: expected a whole number"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK=-1: expected 0 to 1, as WORLD_SIZE is 2"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2: expected 0 to 1, as WORLD_SIZE is 2"),
        ({"RANK": "1"}, "RANK=1: expected 0 to 0, as WORLD_SIZE is not set, so 1"),
        ({"LOCAL_RANK": "3", "RANK": "0", "WORLD_SIZE": "2"}, "LOCAL_RANK=3: expected 0 to 1"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0: expected at least 1"),
    ],
)
def test_odd_variables_of_torchrun_are_one_line(tmp_path, monkeypatch, given, message):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="unset"):
        world()
    for command in (["stage1", "--data", SHIPPED], ["grade", "-"]):
        done = scorefast_here(*command, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"scorefast: {message}")
        assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_rank_and_world_size(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert world() == (1, 2)
