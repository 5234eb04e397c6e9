"""Seal folders so that an incomplete one is never taken for a checkpoint. Imports no torch.

The *seal* is `checkpoint.json`, written last, with the size and SHA-256 of every other file. A process killed at any
moment leaves either a sealed folder or one without a valid seal.
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
UNSEALED = ("README.md",)  # users may edit the model card


def seal(folder: Path) -> None:
    """fsync every file of `folder`, then write the seal."""
    files = {}
    for path in sorted(p for p in folder.iterdir() if p.is_file() and p.name not in (SEAL, *UNSEALED)):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files[path.name] = {"size": path.stat().st_size, "sha256": file_sha256(path)}
    write_file(folder / SEAL, json.dumps({"files": files}, indent=2) + "\n")


def damage(folder: Path) -> str | None:
    """How `folder` differs from what was sealed, or None. Files that the seal does not name are ignored.

    A seal detects damage, not forgery: whoever can change a file can also rewrite the seal. Raises OSError if a file
    cannot be read, which does not count as damage.
    """
    if not (folder / SEAL).exists():
        return f"it has no {SEAL}, so it was never finished"
    try:
        files = read_json(folder / SEAL)["files"]
        sealed = {str(name): (facts["size"], facts["sha256"]) for name, facts in files.items()}
    except (UserError, KeyError, TypeError, AttributeError):
        return f"its {SEAL} is not a seal"
    for name, (size, sha256) in sealed.items():
        path = folder / name
        if Path(name).name != name or path.is_symlink():
            return f"its {SEAL} names {name!r}, which is not a file of the folder"
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, but {size} were written"
        if file_sha256(path) != sha256:
            return f"{name} has changed since it was written (SHA-256 differs)"
    return None if sealed else f"its {SEAL} names no file"


@contextlib.contextmanager
def written_whole(target: Path, work: Path, note: Callable[[str], None] = lambda line: None) -> Iterator[Path]:
    """Yields a folder in `work`, on the disk of `target`, and publishes it as `target` when the block ends.

    Its files are sealed and read back first. A new `target` is one rename; an existing one is replaced file by file,
    the seal last. If the block fails, nothing is left behind. Notes an unsealed file that could not be replaced.
    """
    partial = work / target.name
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.unlink(missing_ok=True)  # a file, or a link out of the folder
        work.mkdir()
        partial.mkdir()
        yield partial
        seal(partial)
        if wrong := damage(partial):  # read back before it replaces anything
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
    """Remove the files that the folder's seal names, then the seal, then the folder if it is empty.

    A process killed meanwhile leaves no valid checkpoint. Other files stay. Of a link, only the link is removed.
    """
    if folder.is_symlink():
        folder.unlink()
        return
    if is_own_file(folder / SEAL):
        for name in (*UNSEALED, *_sealed(folder), SEAL):
            (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _sealed(folder: Path) -> list[str]:
    """The files of the folder that its seal names."""
    try:
        names = [str(name) for name in read_json(folder / SEAL)["files"]]
    except (UserError, KeyError, TypeError):
        return []
    return [name for name in names if Path(name).name == name and name != SEAL]
