"""The one writer of a run: it holds the folder, notices what is taken from it, and puts it back. Imports no torch.

Two locks hold a run. One is on the file `.lock`, which also works on network disks. The other is on the folder itself,
where the kernel can: a file can be removed from under its owner, and the folder of a file that is being written cannot.
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
    """Of the run in `folder`. One that has not called `take` holds no lock, and looks only whether the folder is
    there."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._lock: FileLock | None = None
        self._lock_is: tuple[int, int] | None = None
        self._descriptor: int | None = None  # of the folder; while it is open no other folder gets its number
        self._kept: dict[str, bytes] = {}

    def take(self) -> None:
        """Raises UserError where another process has the run, or it cannot be locked. The kernel lets go when the
        process dies."""
        try:
            self._lock_folder()
            self._lock_file()
        except Timeout:
            self.release()
            raise UserError(
                f"{self.folder}: another scorefast is writing into this run; wait for it, or stop it first"
            ) from None
        except OSError as error:  # no right to, a read-only disk, a lock that is a folder or a link
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
        except OSError:  # a network disk, which locks files alone
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
        """Remember what stands in these files now: the run cannot be resumed without them."""
        for name in names:
            with contextlib.suppress(OSError):
                self._kept[name] = (self.folder / name).read_bytes()

    def confirm(self) -> None:
        """To be called before each write. A lock that was removed or replaced is taken back.

        Raises OSError where the folder is not there, or another is in its place: that may pass. Raises RunError where
        another process has locked the run: nothing more may be written.
        """
        if not self._is_here():
            raise OSError(errno.ENOENT, "the run's folder is not there", str(self.folder))
        if self._lock is None or identity(self.folder / LOCK) == self._lock_is:
            return
        try:
            self._lock_file()
        except Timeout:
            raise RunError(
                f"{self.folder / LOCK}: was replaced, and another process holds it; nothing more is written here"
            ) from None
        except OSError:  # a folder or a link stands in its place: nobody can lock the run by it
            return

    def _is_here(self) -> bool:
        """Whether the path leads to the folder that was locked. A disk that was away may be another device when it is
        back; the folder's number on it is the same, and so is what stands in it."""
        if self._descriptor is None:
            return self.folder.is_dir()
        try:
            ours, found = os.fstat(self._descriptor), self.folder.stat()
        except OSError:
            return False
        if found.st_ino != ours.st_ino:
            return False
        return found.st_dev == ours.st_dev or all(self._stands(name) for name in self._kept)

    def _stands(self, name: str) -> bool:
        path = self.folder / name
        return is_own_file(path) and path.read_bytes() == self._kept[name]

    def restore(self) -> dict[str, OSError]:
        """Write again what was to be kept and is no file any more; {name: why it cannot be}."""
        failed = {}
        for name, content in self._kept.items():
            path = self.folder / name
            if not is_own_file(path):
                try:
                    write_file(path, content)
                except OSError as error:
                    failed[name] = error
        return failed
