"""Write the pages that are made from the code.

python docs/generate.py            write them
python docs/generate.py --check    write nothing; exit code 1, and their names, if one differs from the code
"""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Callable
from pathlib import Path

import typer
from typer.cli import get_docs_for_click
from typer.main import get_command

from scorefast import cli

DOCS = Path(__file__).parent
NOTICE = "<!-- Written by docs/generate.py. Do not edit. -->\n"


def cli_page() -> str:
    """docs/cli.md: every command with its arguments, options and defaults, as Typer documents them, and exit codes."""
    command = get_command(cli.app)
    page = get_docs_for_click(obj=command, ctx=typer.Context(command), name="scorefast", title="Commands")
    page = re.sub(r"^\* (`\w+`): .*\.\.\.$", r"* \1", html.unescape(page), flags=re.MULTILINE)  # cut-off summaries
    codes = re.search(r"Exit codes: (.+)", cli.main.__doc__ or "")
    assert codes, "the docstring of the command line says what its exit codes are"
    return f"{NOTICE}\n{page.rstrip()}\n\n## Exit codes\n\n{codes[1]}\n"


PAGES: dict[str, Callable[[], str]] = {"cli.md": cli_page}


def main() -> int:
    pages = {DOCS / name: write() for name, write in PAGES.items()}
    differing = [p for p, text in pages.items() if not p.exists() or p.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv[1:]:
        print(*(f"{p}: differs from the code; run python docs/generate.py" for p in differing), sep="\n", end="")
        return int(bool(differing))
    for path in differing:
        path.write_text(pages[path], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
