"""Locks between processes, by a file beside what they guard; a process that ends, however it ends, gives its locks back."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nncift.errors import ResourceError


class PathLock:
    """The lock of a path, held from `take` to `release`.

    What it guards may be moved away meanwhile, lock and all; then another process can lock the same path, and
    `check_in_place` says so.
    """

    def __init__(self, path: Path) -> None:
        # Imported where a run begins: it takes a fifth of a second.
        from filelock import FileLock

        self._path = path
        # Shared by the threads of this process, which work on one run together.
        self._lock: Any = FileLock(path, thread_local=False)
        self._file: tuple[int, int] | None = None

    def take(self, *, wait: bool = False) -> bool:
        """Lock; tell whether that is done. wait: until it is. Raises OSError where the file cannot be written."""
        from filelock import Timeout

        # Older releases empty what a link leads to.
        if self._path.is_symlink():
            raise OSError(errno.ELOOP, "the lock is a link, and nothing is written through it", str(self._path))
        try:
            self._lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            return False
        self._file = self._found()
        return True

    def release(self) -> None:
        """Unlock, where this holds the lock."""
        self._lock.release()

    def check_in_place(self) -> None:
        """Raise ResourceError where the file that is locked is no longer at its path: its folder was moved or replaced."""
        if self._file is None or self._found() != self._file:
            raise ResourceError(
                f"{str(self._path.parent)!r} was moved, replaced or deleted while a process worked on it; leave it in place, and "
                "give the same command again with the place where it is now: what is finished there counts"
            )

    def _found(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a path, whose file is made where there is none; other processes wait for it."""
    lock = PathLock(path)
    lock.take(wait=True)
    try:
        yield
    finally:
        lock.release()
