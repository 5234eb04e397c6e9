"""Files that are whole or not there: written beside their place, flushed to the disk, renamed. Imports no torch.

A folder is *sealed* by its last file, `checkpoint.json`: the size and SHA-256 of every other one. A kill at any moment
leaves a sealed folder, or one that nobody takes for a checkpoint.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from scorefast.errors import UserError
from scorefast.files.atomic import file_sha256, is_own_file, sync_folder, write_file
from scorefast.files.bounded import read_json

SEAL = "checkpoint.json"
UNSEALED = ("README.md",)  # a model card is there to be edited


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
