"""What reaches a terminal: rich's own escapes from our consoles, and from nobody else a character that is obeyed."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import warnings

import pytest
from typer import rich_utils

from scorefast import cli
from scorefast.recipe import load_recipe
from scorefast.ui.streams import set_up_streams
from tests.conftest import REPOSITORY, scorefast_here

HOSTILE = "\\x1b]0;evil\\x07\\x1b[8m\\x9b2J\\r\\u202e\\nscorefast: fake"
SAID = f"""
import logging, sys, threading, time, warnings
from scorefast.ui.streams import set_up_streams, terminal
set_up_streams()
from rich.text import Text
from rich.table import Table
from scorefast.ui.console import InertConsole
from scorefast.ui.progress import counting
hostile = "{HOSTILE}"
console = InertConsole(file=terminal())
console.print("red", style="red")
console.print(Text("text " + hostile))
console.note(hostile)
table = Table()
table.add_column(hostile)
console.print(table)
def everybody():
    warnings.warn(hostile)
    logging.getLogger("library").warning("log %s", hostile)
    print("print " + hostile, file=sys.stderr)
    thread = threading.Thread(target=lambda: {{}}[hostile])
    thread.start()
    thread.join()
everybody()
with counting(console, "replies", 3) as advance:
    advance(1)
    everybody()
    time.sleep(0.2)
    advance(2)
with console.status("status"):
    everybody()
raise ValueError(hostile)
"""
STYLE = re.compile(r"\x1b\[(?:\d+(?:;\d+)*m|\?25[lh]|2K|\d*A)")  # colours, the cursor, a line drawn anew


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
@pytest.mark.parametrize("optimized", ["", "2"])
def test_on_a_terminal_only_rich_writes_escapes(optimized):
    import pty

    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "TERM": "xterm-256color", "PYTHONOPTIMIZE": optimized}
    for name in ("NO_COLOR", "FORCE_COLOR"):
        environment.pop(name, None)
    ours, theirs = pty.openpty()
    child = subprocess.Popen([sys.executable, "-P", "-c", SAID], env=environment, stderr=theirs, stdout=theirs)
    os.close(theirs)
    written = b""
    try:
        while part := os.read(ours, 2**16):
            written += part
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert child.wait() == 1
    text = written.decode()
    assert "\x1b[31mred\x1b[0m" in text
    assert "3/3" in text
    left = STYLE.sub("", text).replace("\r\n", "\n")
    assert not re.search("[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f-\x9f\u202e]", left)
    assert "\x1b[8m" not in text
    assert left.count("UserWarning: ") == 1, "each place warns once"
    assert left.count("log \\x1b]0;evil\\x07") == left.count("print \\x1b]0;evil\\x07") == 3
    assert "ValueError: \\x1b]0;evil\\x07" in left
    assert len(re.findall(r"(?:UserWarning: |log )\\x1b.* scorefast: fake$", left, re.MULTILINE)) == 4, "one line each"
    assert len(re.findall(r"^  (?:KeyError|ValueError): ", left, re.MULTILINE)) == 4
    assert left.endswith("\n  scorefast: fake\n"), "no line of a traceback stands where one of ours would"


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("given", ["grade", "prepare", "stage1 --data", "--bogus"])
def test_escapes_in_names_are_shown(tmp_path, monkeypatch, given, forced):
    if forced:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setattr(rich_utils, "FORCE_TERMINAL", True)  # read when it was imported
        monkeypatch.setattr(rich_utils, "COLOR_SYSTEM", "auto")
    done = scorefast_here(*given.split(), "a\x1b]0;evil\x07\x9b\u202e\nfake.csv", cwd=tmp_path)
    assert done.returncode == 2
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", done.stderr)
    assert "\\x1b[3" not in done.stderr, "nor do colours meant for a terminal show as text"
    assert "\nfake" not in done.stderr


def test_a_message_of_megabytes_is_cut(tmp_path):
    (tmp_path / "g.jsonl").write_text(json.dumps({"answer": "1", "reference": "1", "label": "x" * 9_000_000}))
    done = scorefast_here("grade", "g.jsonl", cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr) < 500
    done = scorefast_here("prepare", "x" * 100_000, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert len(done.stderr) < 4000


def test_quiet_silences_warnings_and_logs_of_libraries(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", open(tmp_path / "said", "w"))  # noqa: SIM115
    set_up_streams()
    for quiet in (True, False):
        with cli.loaded_libraries(cli._console(quiet), load_recipe("tiny-cpu")):
            warnings.warn(f"warned, quiet {quiet}", stacklevel=1)
            logging.getLogger("library").warning(f"logged, quiet {quiet}")
            print(f"printed, quiet {quiet}")
    sys.stderr.flush()
    said = (tmp_path / "said").read_text()
    assert "quiet True" not in said
    assert "printed, quiet False" in said
    assert logging.root.manager.disable == 0
