"""A stranger's files in the working directory: none runs, and none is obeyed, that the user did not name."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from scorefast.data.sources import read_rows
from scorefast.errors import UserError
from scorefast.grading.reward_function import load_reward, rewards_of
from tests.conftest import REPOSITORY, scorefast
from tests.test_reward import ROWS

NAMES = [
    *("sympy", "math_verify", "json", "numpy", "rich", "typer", "yaml", "pyarrow", "latex2sympy2_extended", "antlr4"),
    *("scipy", "sitecustomize", "usercustomize", "numexpr", "bottleneck", "logging", "decimal", "fractions"),
]


@pytest.fixture
def planted(tmp_path):
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'RAN')!r}, 'a').write('{name} ')\n")
    (tmp_path / "matplotlibrc").write_text("bogus: [\nbackend: evil\n")
    return tmp_path


@pytest.mark.parametrize("more", [{}, {"PYTHONOPTIMIZE": "2"}])
def test_grading_mathematics_imports_nothing_from_there(planted, monkeypatch, more):
    for name, value in more.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    lines = [{"answer": "$2x$", "reference": "$x+x$", "label": True}, {"answer": "$3x$", "reference": "$x+x$"}]
    (planted / "g.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = scorefast("grade", "g.jsonl", cwd=planted)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["correct"] for line in done.stdout.splitlines()] == [True, False]
    assert not (planted / "RAN").exists()


def test_a_folder_that_pythonpath_names_stays_on_the_path(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("print('asked for')\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)])}
    command = [sys.executable, "-m", "scorefast", "--version"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("asked for\n")


def test_a_setting_of_matplotlibs_is_not_obeyed_there(planted):
    draw = (
        "from pathlib import Path\nfrom scorefast.ui.plots import draw_learning_curve\n"
        "draw_learning_curve([{'step': 1, 'acc_t1': 0.5}], 'x', Path('curve.png'))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-P", "-W", "error", "-c", draw]
    done = subprocess.run(command, cwd=planted, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (planted / "curve.png").is_file()
    assert not (planted / "RAN").exists()


def test_a_rewards_neighbours_come_after_what_is_installed(planted, monkeypatch):
    (planted / "beside_cwd.py").write_text("one = 1.0\n")
    (planted / "late_cwd.py").write_text("two = 2.0\n")
    (planted / "named_cwd.py").write_text(
        "import fractions, yaml, beside_cwd\nassert yaml.safe_load('1') == 1\n"
        "def brief(completions, **_):\n    import late_cwd\n    return [late_cwd.two] * len(completions)\n"
    )
    monkeypatch.chdir(planted)
    path = list(sys.path)
    for name in ("named_cwd:brief", "named_cwd.py:brief"):
        assert rewards_of(load_reward(name), ROWS[:1], [["q"]], ["a"]) == [2.0]
    assert sys.path == path
    with pytest.raises(ImportError):
        __import__("numexpr")  # an optional package of a library's, which lies there and was not named
    assert not (planted / "RAN").exists()


def test_a_folder_is_not_taken_for_data_of_the_hub(tmp_path, monkeypatch):
    (tmp_path / "somebody/data").mkdir(parents=True)
    (tmp_path / "somebody/data/train.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="somebody/data is also in the working directory"):
        list(read_rows("hub:somebody/data"))
