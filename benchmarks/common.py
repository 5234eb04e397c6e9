"""What benchmarks and studies share: how one is started, the line of machine and versions, tables, and commands."""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

# --- how one is started -----------------------------------------------------------------------------------------------


def launch(package: str, names: Sequence[str], argv: Sequence[str]) -> None:
    """Call `main` of the module `package.NAME` with the arguments after NAME. Without a name, list the modules.

    The list reads docstrings from the files and imports nothing. Exits with code 2 where the name is unknown.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(f"python -m {package} NAME [arguments]\n")
        for name in names:
            print(f"  {name:<{max(map(len, names))}}  {first_line(package, name)}")
    elif argv[0] not in names:
        print(f"{package}: there is no {argv[0]!r}; there are {', '.join(names)}", file=sys.stderr)
        sys.exit(2)
    else:
        importlib.import_module(f"{package}.{argv[0]}").main(argv[1:])


def first_line(package: str, name: str) -> str:
    """The first line of a module's docstring."""
    path = ROOT / package / f"{name}.py"
    source = path if path.is_file() else path.with_suffix("") / "__init__.py"
    return (ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or "").splitlines()[0]


def argument_parser(module: str, docstring: str | None) -> argparse.ArgumentParser:
    """module: as a launcher names it, such as "benchmarks prepare"."""
    return argparse.ArgumentParser(
        prog=f"python -m {module}", description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter
    )


# --- pages ------------------------------------------------------------------------------------------------------------


def about(docstring: str | None) -> str:
    """What a module's docstring says after its title and its indented command lines."""
    paragraphs = (docstring or "").strip().split("\n\n")[1:]
    return "\n\n".join(text for text in paragraphs if not text.startswith("    "))


def machine_line(packages: Iterable[str]) -> str:
    """GPU if there is one, CPU, Python and the versions of those packages that are installed."""
    versions = []
    for name in packages:
        with contextlib.suppress(PackageNotFoundError):
            versions.append(f"{name} {version(name)}")
    parts = [*gpu_names(), f"{os.cpu_count()} cores of {cpu_name()}"]
    return f"{', '.join(parts)}; {', '.join([f'Python {platform.python_version()}', *versions])}"


def cpu_name() -> str:
    """The model name in /proc/cpuinfo; elsewhere the architecture."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def gpu_names() -> list[str]:
    """The first CUDA device. It is asked for only where torch is imported already: the import takes seconds."""
    torch = sys.modules.get("torch")
    return [torch.cuda.get_device_name(0)] if torch is not None and torch.cuda.is_available() else []


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a table. Line breaks become a space, and a pipe is escaped."""
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in rows:
        cells = (str(cell).replace("|", "\\|").replace("\n", " ") for cell in row)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def write_page(path: Path, lines: Iterable[str]) -> None:
    """Write the lines, and make the folder where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines).rstrip("\n") + "\n", encoding="utf-8")


# --- commands as a user gives them ------------------------------------------------------------------------------------


def command(*words: object) -> list[str]:
    """The words of a scorefast command, run by this Python."""
    return [sys.executable, "-m", "scorefast", *map(str, words)]


def environment(**more: str) -> dict[str, str]:
    """This process's environment with the repository on PYTHONPATH, and OMP_NUM_THREADS=1 where it is not set."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {"OMP_NUM_THREADS": "1"} | os.environ | {"PYTHONPATH": path} | more


def set_flags(settings: Iterable[str]) -> list[str]:
    """`--set` before each of the settings, which are key=value."""
    return [word for setting in settings for word in ("--set", setting)]


def run_scorefast(*words: object, log: Path | None = None) -> str:
    """Run one command in the repository's root; the last line of its stdout. Its stderr is appended to `log` if given.

    Raises subprocess.CalledProcessError.
    """
    with contextlib.ExitStack() as held:
        stderr = held.enter_context(log.open("a", encoding="utf-8")) if log else None
        done = subprocess.run(
            command(*words), cwd=ROOT, env=environment(), check=True, stdout=subprocess.PIPE, stderr=stderr, text=True
        )
    return (done.stdout.strip().splitlines() or [""])[-1]


def seconds_and_peak(words: Sequence[str], folder: Path) -> tuple[float, int]:
    """(seconds, peak resident bytes) of a process in `folder`. Exits with what it printed where it fails."""
    with (folder / "log").open("w", encoding="utf-8") as log:
        started = time.perf_counter()
        process = subprocess.Popen(words, cwd=folder, env=environment(), stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit((folder / "log").read_text(encoding="utf-8"))
    return time.perf_counter() - started, usage.ru_maxrss * 1024
