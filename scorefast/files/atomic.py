"""Atomic file operations: write beside the target, flush, rename. Imports no torch."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from scorefast.errors import UserError

WORK = ".partial"  # hidden folder in which output is built before it moves to its place


def write_file(path: Path, content: str | bytes) -> None:
    """Replace `path` atomically: after a crash, or on a full disk, it holds either the old bytes or the new.

    A symbolic link at `path` is replaced, not followed: the folder may come from somebody else.
    """
    beside = path.with_name(f".{path.name}.partial")
    try:
        beside.unlink(missing_ok=True)
        with beside.open("xb") as file:
            if path.is_file() and not path.is_symlink():
                os.chmod(file.fileno(), stat.S_IMODE(path.stat().st_mode))
            file.write(content if isinstance(content, bytes) else content.encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_aside(path: Path, write: Callable[[], None], note: Callable[[str], None]) -> bool:
    """Call `write` for an optional file. Returns whether it succeeded; notes an OSError in one line."""
    try:
        write()
    except OSError as error:
        note(f"{path}: not written: {error.strerror}")
        return False
    return True


def sync_folder(folder: Path) -> None:
    """fsync the entries of `folder`. Windows cannot open a folder and needs no such call."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def make_folder(folder: Path) -> list[Path]:
    """Create `folder` and its parents. Returns the folders created, outermost first."""
    made: list[Path] = []
    try:
        for path in reversed([folder, *folder.parents]):
            try:
                path.mkdir()
                made.append(path)
            except FileExistsError:
                if not path.is_dir():
                    raise
    except OSError:
        unmake(made)
        raise
    return made


def unmake(made: Sequence[Path]) -> None:
    """Remove the folders that `make_folder` created, except those that are no longer empty."""
    for path in reversed(made):
        with contextlib.suppress(OSError):
            path.rmdir()


@contextlib.contextmanager
def filled_at_the_end(out: Path, last: str | None = None) -> Iterator[Path]:
    """Yields a hidden work folder in `out`, and moves its files into `out` when the block ends.

    The file `last` moves after all others. If the block fails, nothing is left behind.

    Raises UserError before the block if the folder cannot be created or already has a hidden work folder, and after it
    if a file of the same name has appeared in `out`.
    """
    partial = out / WORK
    moved: list[Path] = []
    try:
        made = make_folder(out)
        try:
            partial.mkdir()
        except OSError:
            unmake(made)
            raise
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be created: {error.strerror}") from None
    try:
        yield partial
        for path in sorted(partial.iterdir(), key=lambda p: (p.name == last, p.name)):
            if os.path.lexists(out / path.name):
                raise UserError(f"{out / path.name}: appeared meanwhile and is not replaced; name another --out")
            moved.append(path.rename(out / path.name))
        partial.rmdir()
    except BaseException:
        for path in moved:
            with contextlib.suppress(OSError):
                path.rename(partial / path.name)
        shutil.rmtree(partial, ignore_errors=True)
        unmake(made)
        raise


def remove_files(folder: Path, names: Iterable[str]) -> None:
    """Remove the named files and links of `folder`. A folder with such a name stays."""
    for name in names:
        with contextlib.suppress(OSError):
            (folder / name).unlink()


def is_own_file(path: Path) -> bool:
    """Whether `path` is a regular file, and no link, pipe, device or folder."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def identity(path: Path) -> tuple[int, int] | None:
    """(device, inode) of `path`, without following a link; None if it does not exist."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
