"""The one writer of a run: it locks the folder, and restores files that are removed. Imports no torch.

A run has two locks. The lock on the file `.lock` also works on network disks. The lock on the folder itself holds if
somebody removes `.lock`; not every file system supports it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from filelock import FileLock, Timeout

from scorefast.errors import RunError, UserError
from scorefast.files.atomic import identity, is_own_file, write_file

LOCK = ".lock"


class Owner:
    """The writer of the run in `folder`. Before `take` it holds no lock, and `confirm` checks only that the folder
    exists."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._lock: FileLock | None = None
        self._lock_is: tuple[int, int] | None = None
        self._descriptor: int | None = None  # of the folder; while it is open no other folder gets its inode number
        self._kept: dict[str, bytes] = {}

    def take(self) -> None:
        """Lock the run. Raises UserError if another process has it, or if it cannot be locked. The kernel releases the
        locks when the process dies."""
        try:
            self._lock_folder()
            self._lock_file()
        except Timeout:
            self.release()
            raise UserError(
                f"{self.folder}: another scorefast is writing into this run; wait for it, or stop it first"
            ) from None
        except OSError as error:  # no permission, a read-only disk, a lock that is a folder or a link
            self.release()
            raise UserError(f"{self.folder}: cannot be written to: {error.strerror}; choose another --out") from None

    def _lock_folder(self) -> None:
        if os.name != "posix":
            return
        import fcntl

        self._descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Timeout(str(self.folder)) from None
        except OSError:  # a network disk that locks only files
            return

    def _lock_file(self) -> None:
        lock = FileLock(self.folder / LOCK)
        lock.acquire(timeout=0)
        if self._lock is not None:
            self._lock.release()
        self._lock, self._lock_is = lock, identity(self.folder / LOCK)

    def release(self) -> None:
        if self._lock is not None:
            self._lock.release()
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._lock = self._descriptor = None

    def keep(self, *names: str) -> None:
        """Remember the content of these files, for `restore`. A run cannot be resumed without them."""
        for name in names:
            with contextlib.suppress(OSError):
                self._kept[name] = (self.folder / name).read_bytes()

    def confirm(self) -> None:
        """Check the ownership; call this before each write. A lock file that was removed or replaced is locked again.

        Raises OSError if the folder is missing or replaced by another one, which may be temporary. Raises RunError if
        another process has locked the run; then nothing more may be written.
        """
        if not self._is_same_folder():
            raise OSError(errno.ENOENT, "the run's folder is not there", str(self.folder))
        if self._lock is None or identity(self.folder / LOCK) == self._lock_is:
            return
        try:
            self._lock_file()
        except Timeout:
            raise RunError(
                f"{self.folder / LOCK}: was replaced, and another process holds it; nothing more is written here"
            ) from None
        except OSError:  # a folder or a link of that name: no process can lock it
            return

    def _is_same_folder(self) -> bool:
        """Whether the path leads to the folder that was locked.

        A disk that was unmounted can have another device number afterwards. The folder's inode number is then the same,
        and so is the content of the kept files.
        """
        if self._descriptor is None:
            return self.folder.is_dir()
        try:
            ours, found = os.fstat(self._descriptor), self.folder.stat()
        except OSError:
            return False
        if found.st_ino != ours.st_ino:
            return False
        return found.st_dev == ours.st_dev or all(self._is_unchanged(name) for name in self._kept)

    def _is_unchanged(self, name: str) -> bool:
        path = self.folder / name
        return is_own_file(path) and path.read_bytes() == self._kept[name]

    def restore(self) -> dict[str, OSError]:
        """Rewrite each kept file that is missing or no regular file. Returns {name: error} of those that failed."""
        failed = {}
        for name, content in self._kept.items():
            path = self.folder / name
            if not is_own_file(path):
                try:
                    write_file(path, content)
                except OSError as error:
                    failed[name] = error
        return failed
