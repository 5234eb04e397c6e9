"""Who wrote what `scorefast` depends on, and under which licence, from the metadata of what is installed.

python -m benchmarks dependencies     # benchmarks/results/dependencies.md
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, ROOT, argument_parser, markdown_table, write_page

COPYLEFT = re.compile(r"A?L?GPL|GNU|MPL|Mozilla|EUPL", re.IGNORECASE)
HEADS = ("package", "version", "licence")
PAGE = """# Dependencies and their licences

`python -m benchmarks dependencies`: the COUNT packages of `requirements.lock`, as their own metadata state it.
`scorefast` itself is Apache-2.0.

## Copyleft

COPYLEFT

- **Unsloth**'s package says Apache-2.0, but files in it are marked AGPL-3.0; **unsloth_zoo** is LGPL-3.0 with such
  files too. `scorefast` imports both and copies nothing of them. Training with them puts no licence on your weights.
  Who passes on a changed zoo passes on its source; who lets others use a changed Unsloth over a network offers them the
  source of the AGPL files. `model.backend=transformers` runs without either: they come with the `[unsloth]` extra and
  with `make install`.
- MPL-2.0 asks for the source of changed files only.

Not a lawyer's word: read the licences where it matters.

## Not stated

UNCLEAR

## Known vulnerabilities

`pip-audit -r requirements.lock --no-deps --disable-pip` asks PyPI for every package, and so needs the network. It was
tried where PyPI's answers could not be had, and looked up none of the COUNT: **not audited**. What a user's file
can reach is not unpickled (trainer state is read by `torch.load` with `weights_only`), and no code from a model's
folder is run.

## All

EVERY
"""


def locked() -> list[tuple[str, str]]:
    """(name, version) of every line of the lock."""
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return [(m[1], m[2]) for m in (re.match(r"([\w.-]+)==([^\s;]+)", line) for line in lines) if m]


def licence(name: str) -> str:
    """The SPDX expression, or what older metadata say; their whole texts are cut to the first line."""
    try:
        facts: Any = metadata(name)
    except PackageNotFoundError:
        return "not installed here"
    classifiers = [c.split(" :: ")[-1] for c in facts.get_all("Classifier") or [] if c.startswith("License ::")]
    stated = facts.get("License-Expression") or "; ".join(c for c in classifiers if c != "OSI Approved")
    return stated or (facts.get("License") or "").strip().split("\n")[0]


def main(argv: Sequence[str]) -> None:
    """Parse the flags and write the page."""
    parser = argument_parser("benchmarks dependencies", __doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of dependencies.md")
    given = parser.parse_args(argv)
    rows = [(name, version, licence(name) or "not stated") for name, version in locked()]
    copyleft = [row for row in rows if COPYLEFT.search(row[2])]
    unclear = [row for row in rows if row[2] in ("not stated", "not installed here")]
    parts = {
        "COUNT": str(len(rows)),
        "COPYLEFT": "\n".join(markdown_table(HEADS, copyleft)),
        "UNCLEAR": "\n".join(markdown_table(HEADS, unclear)) if unclear else "none",
        "EVERY": "\n".join(markdown_table(HEADS, rows)),
    }
    text = re.sub("|".join(parts), lambda found: parts[found[0]], PAGE)
    write_page(given.out / "dependencies.md", text.splitlines())
    print(f"{len(rows)} packages, {len(copyleft)} copyleft, {len(unclear)} unclear: {given.out / 'dependencies.md'}")
