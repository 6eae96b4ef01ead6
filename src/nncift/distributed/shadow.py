"""Where a shard works: a shadow of the run, which it never writes into, and locks by which shards know of each other.

`shards/2-of-3/.lock` is held by the process of a shard, `.work` beside it as long as that process does not wait for others.
`shards/all/` has what all shards need whole and one of them has made: vectors, and the student.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from nncift.distributed.shards import ALL, FOLDER, TEACHER_FOLDER, Shard, folder_of
from nncift.errors import ResourceError
from nncift.storage import checksums

LOCK, WORK = ".lock", ".work"
_TRIES = 20
_PAUSE = 0.05
"""Times, and seconds in between, that the lock of a shard is tried for: another one may be looking whether it is held."""


@dataclass(frozen=True)
class Presence:
    """That a shard is there and at work, which the others see by its locks."""

    run: Path
    shard: Shard
    work: IO[str]

    def rest(self) -> None:
        """Tell the others that this shard waits."""
        fcntl.flock(self.work, fcntl.LOCK_UN)

    def go_on(self) -> None:
        """Tell the others that this shard works."""
        fcntl.flock(self.work, fcntl.LOCK_EX)

    def alive(self, numbers: Iterable[int]) -> list[int]:
        """Return which of some shards have a process."""
        return [number for number in numbers if held(self._folder(number) / LOCK)]

    def working(self, numbers: Iterable[int]) -> list[int]:
        """Return which of some shards have a process that does not wait."""
        return [number for number in numbers if held(self._folder(number) / WORK)]

    def _folder(self, number: int) -> Path:
        return folder_of(self.run, Shard(number, self.shard.count))


@contextmanager
def shadow_of(run: Path, shard: Shard) -> Iterator[tuple[Path, Presence]]:
    """Lock a shard and give a run directory that looks like `run` and may be written to; it goes at the end.

    Raises ResourceError where a run without --shard, or another process of the same shard, is at work, or nothing can be written.
    """
    folder = folder_of(run, shard)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"--out {str(run)!r} cannot be written: {error.strerror}") from error
    whole = f"a process without --shard works on {str(run)!r}; wait until it ends"
    same = f"another process works on shard {shard} of {str(run)!r}; wait until it ends, or give another --shard"
    with (
        locked(run / LOCK, fcntl.LOCK_SH | fcntl.LOCK_NB, whole),
        locked(folder / LOCK, fcntl.LOCK_EX | fcntl.LOCK_NB, same, tries=_TRIES),
        locked(folder / WORK, fcntl.LOCK_EX, None) as work,
    ):
        scratch = folder / "work"
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            _shadow(run, scratch)
            yield scratch, Presence(run, shard, work)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


@dataclass(frozen=True)
class Leaves:
    """What a finished stage leaves: its name, its fingerprint, and its files."""

    stage: str
    key: str
    files: Sequence[str]

    def is_in(self, folder: Path) -> bool:
        """Tell whether a folder has it, as it was written."""
        return checksums.is_marked(folder, self.stage, self.key, self.files)

    @property
    def names(self) -> tuple[str, ...]:
        """Its files, the mark last."""
        return (*self.files, f"{checksums.MARKS}/{self.stage}.json")


@contextmanager
def made_once(run: Path, scratch: Path, stages: Sequence[Leaves]) -> Iterator[None]:
    """Let one shard make what stages leave, in its shadow inside the block; the others wait, and have it as links.

    The block finds the stages finished where that is done. It must not wait for other shards.
    """
    if all(left.is_in(scratch) for left in stages):
        yield
        return
    common = run / FOLDER / ALL
    with locked(common / LOCK, fcntl.LOCK_EX, None):
        for left in stages:
            if left.is_in(common):
                _link(common, scratch, left.names)
        yield
        for left in stages:
            mark = checksums.read_mark(scratch, left.stage)
            if mark.get("fingerprint") == left.key and not _is_linked(common, scratch, left.names[-1]):
                for name in left.names:
                    (common / name).parent.mkdir(parents=True, exist_ok=True)
                    os.replace(scratch / name, common / name)
                _link(common, scratch, left.names)


def _link(common: Path, scratch: Path, names: Sequence[str]) -> None:
    """Let a shadow have files, also if a shard with other settings puts its own in their place."""
    for name in names:
        (scratch / name).parent.mkdir(parents=True, exist_ok=True)
        (scratch / name).unlink(missing_ok=True)
        try:
            os.link(common / name, scratch / name)
        except OSError:
            # Not every file system has such links.
            (scratch / name).symlink_to((common / name).resolve())


def _is_linked(common: Path, scratch: Path, name: str) -> bool:
    return (common / name).exists() and (scratch / name).samefile(common / name)


def _shadow(run: Path, scratch: Path) -> None:
    """Link the files of a run, which are replaced and never written into, and copy its labels, which are."""
    scratch.mkdir()
    for file in run.iterdir():
        if file.is_file() and file.name != LOCK:
            (scratch / file.name).symlink_to(file.resolve())
    for name in (checksums.MARKS, "student"):
        if (run / name).is_dir():
            (scratch / name).mkdir()
            for file in (run / name).iterdir():
                (scratch / name / file.name).symlink_to(file.resolve())
    if (run / "labels").is_dir():
        shutil.copytree(run / "labels", scratch / "labels", ignore=shutil.ignore_patterns(TEACHER_FOLDER))


@contextmanager
def locked(path: Path, how: int, refusal: str | None, tries: int = 1) -> Iterator[IO[str]]:
    """Hold the lock of a file. Raises ResourceError, with the refusal, where it cannot be had in so many tries."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Read and write: a lock on a network file system needs the one for sharing and the other for excluding.
        stream = path.open("a+", encoding="ascii")
    except OSError as error:
        raise ResourceError(f"{str(path)!r} cannot be written: {error.strerror}") from error
    with stream:
        for left in reversed(range(tries)):
            try:
                fcntl.flock(stream, how)
                break
            except OSError as error:
                if not left:
                    raise ResourceError(refusal or f"{str(path)!r} cannot be locked: {error.strerror}") from error
            time.sleep(_PAUSE)
        yield stream


def held(path: Path) -> bool:
    """Tell whether a process holds the lock of a file alone."""
    try:
        stream = path.open("rb")
    except OSError:
        return False
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            # A file system without locks, where no shard could have begun.
            return False
    return False
