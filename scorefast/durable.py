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
from collections.abc import Iterator
from pathlib import Path

from scorefast.untrusted import TOKENIZER_FILES, UserError, read_json

SEAL = "checkpoint.json"
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
def written_whole(target: Path, work: Path) -> Iterator[Path]:
    """A folder in `work` (of the same disk) to write into. When the block ends its files are sealed, read back, and
    become those of `target`: by one rename where there is no such folder yet, else file by file with the seal last.
    When the block fails, nothing is left of it.
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
            (target / SEAL).unlink(missing_ok=True)
            for path in sorted(partial.iterdir(), key=lambda p: p.name == SEAL):
                if path.name == SEAL:
                    sync_folder(target)
                os.replace(path, target / path.name)
            sync_folder(target)
        else:
            os.replace(partial, target)
            sync_folder(target.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Its seal first, so that what a kill leaves of it is no checkpoint. Of a link, the link alone."""
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        (folder / SEAL).unlink(missing_ok=True)
        shutil.rmtree(folder)


def fingerprint(folder: Path) -> str:
    """SHA-256 of what a model or adapter in `folder` is made of: weights, configuration, tokenizer, chat template."""
    files = (path for path in folder.iterdir() if path.is_file() and path.name not in NOT_OF_THE_MODEL)
    kinds = (".safetensors", ".json", ".jinja")
    paths = sorted(path for path in files if path.suffix in kinds or path.name in TOKENIZER_FILES)
    return hashlib.sha256("".join(f"{path.name} {file_sha256(path)}\n" for path in paths).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
