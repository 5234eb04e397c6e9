"""What README and docs/ show is so: commands run, links lead somewhere, generated pages equal the code.

Every block of ```bash is run as it stands, each page's in a folder of its own that already holds `my.csv` and the runs
of the README's example. A `scorefast` on PATH adds QUICK to the stages and to `eval`, so that they take two steps. The
network is out of reach. A comment above a block says why it is not run here: what it `needs`, or the test it `runs in`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import NO_NETWORK, QUICK, REPOSITORY, SHIPPED, scorefast

README, DOCS = REPOSITORY / "README.md", REPOSITORY / "docs"
GENERATED = {"cli.md", "recipe.md"}
WRITTEN = [README, REPOSITORY / "CONTRIBUTING.md", *sorted(p for p in DOCS.glob("*.md") if p.name not in GENERATED)]
# Files that the blocks of a page make last: a loop or a pipe may hide that a command failed.
MADE = {
    "data.md": ["runs/checked/report.html", "runs/attempted/train.parquet", "runs/clean/manifest.json"],
    "grading.md": ["graded.jsonl"],
    "models-and-memory.md": ["exported/model.safetensors", "engine/report.json"],
    "runs.md": ["report.json", "runs/night/checkpoint.json"],
    "development.md": [],
}
MARK = re.compile(r"<!-- (needs|runs in): (.+) -->")


@dataclass(frozen=True)
class Block:
    """text: the lines of a ```bash block. mark: `needs` or `runs in` and what, or None where it is run here."""

    page: Path
    line: int
    text: str
    mark: tuple[str, str] | None


def blocks(page: Path) -> list[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    found, start = [], None
    for number, line in enumerate(lines):
        if start is None and line.startswith("```"):
            start = number
        elif start is not None and line == "```":
            if lines[start] == "```bash":
                mark = MARK.fullmatch(lines[start - 1])
                text = "\n".join(lines[start + 1 : number])
                found.append(Block(page, start + 1, text, (mark[1], mark[2]) if mark else None))
            start = None
    assert start is None, f"{page.name}: a block without an end"
    return found


def commands(block: Block) -> list[list[str]]:
    """The words of each `scorefast ...` in a block."""
    found = re.findall(r"(?:^|\$\(|\| |while )scorefast ([^\n|;)]*)", block.text, re.MULTILINE)
    return [shlex.split(words, comments=True) for words in found]


EVERY = [block for page in WRITTEN for block in blocks(page)]
RUN = [block for block in EVERY if block.mark is None]


def test_commands_are_found_and_marks_say_why():
    assert sum(len(commands(block)) for block in RUN) >= 18
    assert {words[0] for block in RUN for words in commands(block)} == {
        *("prepare", "stage1", "stage2", "eval", "chat", "grade", "export")
    }
    for block in EVERY:
        if block.mark and block.mark[0] == "runs in":
            file, _, test = block.mark[1].partition("::")
            assert f"def {test}(" in (REPOSITORY / file).read_text(encoding="utf-8"), block


@pytest.mark.parametrize("block", [b for b in EVERY if b.mark], ids=lambda b: f"{b.page.name}:{b.line}")
def test_options_of_a_block_that_is_not_run_exist(block):
    from typer.main import get_command

    from scorefast.cli import app

    known = get_command(app).commands
    for name, *rest in commands(block):
        options = {option for parameter in known[name].params for option in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= options, (name, rest)


def shims(folder: Path) -> Path:
    """A folder for PATH: `scorefast`, which takes few steps on few questions, and `python`."""
    folder.mkdir()
    quick = shlex.join(QUICK)
    for name, text in {
        "python": f'exec {shlex.quote(sys.executable)} "$@"',
        "scorefast": f'case "$1" in stage1 | stage2 | eval) set -- "$@" {quick} ;; esac\nexec python -m scorefast "$@"',
    }.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return folder


def run_blocks(page: Path, folder: Path, tmp_path: Path) -> None:
    path = [str(NO_NETWORK), str(REPOSITORY)]
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"PYTHONPATH": os.pathsep.join(path), "PATH": f"{shims(tmp_path / 'bin')}:{os.environ['PATH']}"}
    shutil.copy(SHIPPED, folder / "my.csv")
    (folder / "docs").symlink_to(DOCS)
    for block in blocks(page):
        if block.mark is None:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block.text],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
            assert done.returncode == 0, f"{page.name}:{block.line}\n{done.stderr[-3000:]}"


def test_the_commands_of_the_readme_make_what_they_say(tmp_path):
    folder = tmp_path / "page"
    folder.mkdir()
    run_blocks(README, folder, tmp_path)
    assert (folder / "runs" / "data" / "manifest.json").is_file()
    lines = (folder / "runs" / "s2" / "transcripts.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["checkpoint"] for line in lines} == {"s2"}


@pytest.mark.parametrize("page", [p for p in WRITTEN[1:] if any(b.page == p for b in RUN)], ids=lambda p: p.name)
def test_the_commands_of_a_page_run(page, trained, tmp_path):
    folder = tmp_path / "page"
    for made, name in (("data", "data"), ("stage1", "s1"), ("stage2", "s2")):
        shutil.copytree(trained / "runs" / made, folder / "runs" / name)
    run_blocks(page, folder, tmp_path)
    for made in MADE[page.name]:
        assert (folder / made).is_file(), made


def test_the_picture_is_drawn_from_a_run(trained, tmp_path):
    for stage in ("stage1", "stage2"):
        shutil.copytree(trained / "runs" / stage, tmp_path / stage)
    out = ["--out", tmp_path / "after-stage2"]
    done = scorefast("eval", "base", "stage1", "stage2", "--data", SHIPPED, *out, *QUICK, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    picture = tmp_path / "picture.png"
    subprocess.run([sys.executable, DOCS / "picture.py", tmp_path, picture], check=True)
    for file in (picture, DOCS / "picture.png"):
        with Image.open(file) as image:
            assert image.size == (1800, 750)
            assert image.convert("RGB").getpixel((2, 2)) == (255, 255, 255)
        assert file.stat().st_size < 150_000


def test_generated_pages_do_not_depend_on_the_width_of_the_terminal():
    environment = os.environ | {"COLUMNS": "40", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, DOCS / "generate.py", "--check"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def anchors(page: Path) -> set[str]:
    """The fragments of a page's headings, as code hosts and the site make them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [*WRITTEN, *(DOCS / name for name in sorted(GENERATED))], ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("https://"):
            path, _, fragment = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.is_file(), target
            assert not fragment or fragment in anchors(file), target


@pytest.mark.parametrize("page", WRITTEN, ids=lambda p: p.name)
def test_paths_that_a_page_names_are_there(page):
    named = re.findall(r"`((?:scorefast|tests|benchmarks|studies|recipes)/[\w/.-]*)`", page.read_text(encoding="utf-8"))
    assert not [path for path in named if not (REPOSITORY / path).exists()]


def test_the_readme_stays_short():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 1200
    assert max(map(len, text.splitlines())) <= 120
