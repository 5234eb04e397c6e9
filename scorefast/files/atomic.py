"""Files that are whole or not there: written beside their place, flushed, renamed. Imports no torch."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from scorefast.errors import UserError

WORK = ".partial"  # the hidden folder in which is made what then takes its place


def write_file(path: Path, content: str | bytes) -> None:
    """Replace `path` by a file of that content: after a crash, or on a full disk, it holds the old bytes or the new.

    A link that stands in the way, in a folder that came from elsewhere, is replaced and not followed.
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
    """Whether `write` wrote a file that nothing depends on. Where it did not, `note` is told in one line."""
    try:
        write()
    except OSError as error:
        note(f"{path}: not written: {error.strerror}")
        return False
    return True


def sync_folder(folder: Path) -> None:
    """Make names in `folder` durable. (Windows opens no folder, and does so by itself.)"""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def make_folder(folder: Path) -> list[Path]:
    """Make `folder` and its parents; those that were not there before, the outermost first."""
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
    """Remove folders that `make_folder` made. One that holds something by now stays."""
    for path in reversed(made):
        with contextlib.suppress(OSError):
            path.rmdir()


@contextlib.contextmanager
def filled_at_the_end(out: Path, last: str | None = None) -> Iterator[Path]:
    """A hidden folder in `out` to work in. When the block ends, what it holds moves into `out`, the file `last` after
    all others. When the block fails, nothing is left of it.

    Raises UserError before the block where the folder cannot be made, or holds a hidden folder already, and after it
    where somebody has put a file of the same name there.
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
        raise UserError(f"{error.filename}: cannot be made: {error.strerror}") from None
    try:
        yield partial
        for path in sorted(partial.iterdir(), key=lambda p: (p.name == last, p.name)):
            if os.path.lexists(out / path.name):
                raise UserError(f"{out / path.name}: was put there meanwhile, and is not replaced; name another --out")
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
    """Those of the names that are files or links; a folder of such a name is not ours."""
    for name in names:
        with contextlib.suppress(OSError):
            (folder / name).unlink()


def is_own_file(path: Path) -> bool:
    """Whether it is a regular file of its folder: no link, pipe, device or folder."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def identity(path: Path) -> tuple[int, int] | None:
    """(device, number of the file on it); None where nothing is there. A link is not followed."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
