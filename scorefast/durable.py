"""Files that are whole or not there: written beside their place, flushed to the disk, renamed. Imports no torch.

A folder is *sealed* by its last file, `checkpoint.json`: the size and SHA-256 of every other one. A kill at any moment
leaves a sealed folder, or one that nobody takes for a checkpoint.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from scorefast.untrusted import TOKENIZER_FILES, UserError, read_json

SEAL = "checkpoint.json"
WORK = ".partial"  # the hidden folder in which is made what then takes its place
NOT_OF_THE_MODEL = {SEAL, "run.json", "trainer_state.json", "report.json"}
UNSEALED = ("README.md",)  # a model card is there to be edited


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


def sync_folder(folder: Path) -> None:
    """Make names in `folder` durable. (Windows opens no folder, and does so by itself.)"""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def seal(folder: Path) -> None:
    """Flush every file of `folder` and write its seal, last."""
    files = {}
    for path in sorted(p for p in folder.iterdir() if p.is_file() and p.name not in (SEAL, *UNSEALED)):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files[path.name] = {"size": path.stat().st_size, "sha256": file_sha256(path)}
    write_file(folder / SEAL, json.dumps({"files": files}, indent=2) + "\n")


def damage(folder: Path) -> str | None:
    """What keeps `folder` from being what was sealed, or None. Files that the seal does not name are not looked at.

    A seal tells damage, not forgery: whoever can change a file can seal it anew. Raises OSError where a file cannot be
    read, which is not to be damaged.
    """
    if not (folder / SEAL).exists():
        return f"it has no {SEAL}, so it was never finished"
    try:
        files = read_json(folder / SEAL)["files"]
        sealed = {str(name): (facts["size"], facts["sha256"]) for name, facts in files.items()}
    except (UserError, KeyError, TypeError, AttributeError):
        return f"its {SEAL} is not one of ours"
    for name, (size, sha256) in sealed.items():
        path = folder / name
        if Path(name).name != name or path.is_symlink():
            return f"its {SEAL} names {name!r}, which is no file of the folder"
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, not the {size} it was written with"
        if file_sha256(path) != sha256:
            return f"{name} is not what was written (SHA-256 differs)"
    return None if sealed else f"its {SEAL} names no file"


@contextlib.contextmanager
def written_whole(target: Path, work: Path, note: Callable[[str], None] = lambda line: None) -> Iterator[Path]:
    """A folder in `work` (of the same disk) to write into. When the block ends its files are sealed, read back, and
    become those of `target`: by one rename where there is no such folder yet, else file by file with the seal last.
    When the block fails, nothing is left of it. `note` is told which file that no seal names could not be replaced.
    """
    partial = work / target.name
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.unlink(missing_ok=True)  # a file, or a link to where nothing of ours is to be written
        work.mkdir()
        partial.mkdir()
        yield partial
        seal(partial)
        if wrong := damage(partial):  # read back before it takes any other's place
            raise OSError(errno.EIO, wrong)
        if target.exists():
            _replace_files(partial, target, note)
        else:
            os.replace(partial, target)
            sync_folder(target.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _replace_files(partial: Path, target: Path, note: Callable[[str], None]) -> None:
    (target / SEAL).unlink(missing_ok=True)
    for path in sorted(partial.iterdir(), key=lambda p: p.name == SEAL):
        if path.name == SEAL:
            sync_folder(target)
        try:
            os.replace(path, target / path.name)
        except OSError as error:
            if path.name not in UNSEALED:
                raise
            note(f"{target / path.name}: not written: {error.strerror}")
    sync_folder(target)


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


def remove_folder(folder: Path) -> None:
    """Remove what the folder's seal names, the seal last, and the folder where nothing else is in it: what a kill
    leaves is no whole checkpoint, and what somebody has put there stays. Of a link, the link alone is removed."""
    if folder.is_symlink():
        folder.unlink()
        return
    if is_own_file(folder / SEAL):
        for name in (*UNSEALED, *_sealed(folder), SEAL):
            (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _sealed(folder: Path) -> list[str]:
    """The names in the folder's seal that are files of the folder."""
    try:
        names = [str(name) for name in read_json(folder / SEAL)["files"]]
    except (UserError, KeyError, TypeError):
        return []
    return [name for name in names if Path(name).name == name and name != SEAL]


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


def fingerprint(folder: Path) -> str:
    """SHA-256 of what a model or adapter in `folder` is made of: weights, configuration, tokenizer, chat template."""
    files = (path for path in folder.iterdir() if path.is_file() and path.name not in NOT_OF_THE_MODEL)
    kinds = (".safetensors", ".json", ".jinja")
    paths = sorted(path for path in files if path.suffix in kinds or path.name in TOKENIZER_FILES)
    return hashlib.sha256("".join(f"{path.name} {file_sha256(path)}\n" for path in paths).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
