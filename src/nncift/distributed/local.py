"""The executor of a run in one process, which takes what shards left first."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from nncift.config import RunSettings
from nncift.core.parallel import KeepResult, Task, TaskGroup, TaskResult, pays, timed
from nncift.distributed.content import content_of
from nncift.distributed.model_worker import ModelWorker
from nncift.distributed.piece_cache import PieceCache
from nncift.storage.run_directory import RunDir


class LocalExecutor:
    """Does one task after the other; see `core.parallel.Executor`."""

    partial = False

    def __init__(self) -> None:
        self._pieces: PieceCache | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What of other processes could not be used."""
        return () if self._pieces is None else tuple(self._pieces.notes)

    @contextmanager
    def open(self, out: Path, settings: RunSettings) -> Iterator[RunDir]:
        """Give the run directory, under lock. Raises ResourceError and UsageError as `RunDir` does."""
        with RunDir(out, settings) as directory:
            self._pieces = PieceCache(directory.path)
            yield directory

    def found(self, group: TaskGroup, wanted: Container[str] | None = None) -> Iterator[tuple[str, TaskResult]]:
        """Yield what shards left of a group."""
        if self._pieces is None or (group.calculation is not None and not self._pieces.has_about(group.basis)):
            return iter(())
        named = in_files(group)
        return iter(()) if named is None else self._pieces.read(named, wanted)

    def map(self, worker: ModelWorker | None, group: TaskGroup, tasks: Sequence[Task], keep: KeepResult) -> None:
        """Do all tasks."""
        if worker is not None:
            worker.prepare(group, tasks)
        for task in tasks:
            keep(task, timed(worker, group, task))

    def tidy(self, finished: Iterable[tuple[str, str]], basis: str) -> None:
        """Remove what shards left."""
        if self._pieces is not None:
            self._pieces.tidy(finished, basis)


def in_files(group: TaskGroup) -> TaskGroup | None:
    """Return a group as files name it, None where its parts are not shared out.

    A calculation is named by its student, and by a hash of all that decides it.
    """
    if group.calculation is None:
        return group
    key = content_of(group.calculation) if pays(group.calculation) else None
    return None if key is None else replace(group, key=f"{group.basis}-{key}")
