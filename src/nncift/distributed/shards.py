"""Shards: processes that each do every k-th task of a run, and find each other's results in files (docs/scale.md).

A shard works in a folder of its own that looks like the run, whose files it never changes, and leaves pieces. It holds a shared
lock of the run, which the run that joins the shards holds alone.
"""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from nncift.config import RunSettings
from nncift.core.parallel import Incomplete, KeepResult, Task, TaskGroup, TaskResult, timed
from nncift.core.result_types import JsonObject, Record
from nncift.distributed.local import LocalExecutor, in_files
from nncift.distributed.model_worker import ModelWorker
from nncift.distributed.piece_cache import FOLDER, SHARDS, PieceCache
from nncift.errors import ResourceError, UsageError
from nncift.storage import checksums
from nncift.storage.locks import locked
from nncift.storage.run_directory import RunDir
from nncift.teachers.abilities import KeepsWorkspace, WarmsUp

if sys.platform != "win32":
    import fcntl

LOCK = ".lock"
TEACHER_FOLDER = "teacher"


@dataclass(frozen=True)
class Shard:
    """One part of `count`; number counts from 1."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read `2/3`. Raises UsageError."""
        match = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise UsageError(f"--shard is i/k with i from 1 to k, such as 2/3; {text!r} was given")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def name(self) -> str:
        """As files are named."""
        return f"{self.number}-of-{self.count}"

    def has(self, place: int) -> bool:
        """Tell whether the task at a place is this shard's."""
        return place % self.count == self.number - 1


@dataclass
class StageShare:
    """What a shard did of a stage, in pieces: now, and before. left: pieces of other shards, by group, that are not there."""

    pieces: int = 0
    before: int = 0
    tokens: int = 0
    passes: int = 0
    seconds: float = 0.0
    lacking: dict[str, int] = field(default_factory=dict)

    @property
    def left(self) -> int:
        """Pieces that are not there."""
        return sum(self.lacking.values())

    def to_json(self) -> JsonObject:
        """Return what `--json` tells."""
        record = asdict(self)
        del record["lacking"]
        return {**record, "left": self.left, "seconds": round(self.seconds, 3)}


@dataclass(frozen=True)
class ShardReport(Record):
    """What `--json` tells of a shard. left: pieces of other shards that are not there, by stage; next: what to do."""

    run: str
    shard: str
    stages: Mapping[str, StageShare]
    left: Mapping[str, int]
    finished: bool
    next: str
    warnings: tuple[str, ...]


class ShardExecutor(LocalExecutor):
    """Does the tasks that are a shard's, leaves their results for the others, and goes on as long as those of all are there.

    stages: what was done. ended: no tasks that shards share out follow.
    """

    partial = True

    def __init__(self, shard: Shard) -> None:
        super().__init__()
        self.shard = shard
        self.stages: dict[str, StageShare] = {}
        self.ended = False

    @contextmanager
    def open(self, out: Path, settings: RunSettings) -> Iterator[RunDir]:
        """Give a folder that looks like the run. Raises ResourceError where the run or the shard has another process."""
        with _folder_like(out, self.shard) as folder, RunDir(folder, settings) as directory:
            self._pieces = PieceCache(out, self.shard.name)
            try:
                yield directory
            except Incomplete as incomplete:
                incomplete.report = self.report(out)
                raise

    def found(self, group: TaskGroup, wanted: Container[str] | None = None) -> Iterator[tuple[str, TaskResult]]:
        """Yield nothing: what others left is read where all of it is there."""
        return iter(())

    def map(self, worker: ModelWorker | None, group: TaskGroup, tasks: Sequence[Task], keep: KeepResult) -> None:
        """Do what is this shard's, and keep the results of all. Raises Incomplete where some are missing, or nothing follows."""
        self.ended = self.ended or group.last
        shared, feeds = in_files(group), group.calculation is None or group.calculation.feeds
        if shared is None and feeds:
            super().map(worker, group, tasks, keep)
        elif shared is not None:
            # What nothing reads is kept by the run that joins alone.
            left = self._map_share(worker, shared, tasks, keep if feeds else _drop)
            if left and feeds:
                raise Incomplete(group.stage, left)
        if group.last:
            raise Incomplete(group.stage)

    def _map_share(self, worker: ModelWorker | None, group: TaskGroup, tasks: Sequence[Task], keep: KeepResult) -> int:
        """Do what is this shard's and not there, and keep the results of all; return how many of others are not there then."""
        share = self.stages.setdefault(group.stage, StageShare())
        there = self._cache.names(group)
        mine = [task for task in tasks if self.shard.has(task.place)]
        todo = [task for task in mine if task.name not in there]
        share.before += len(mine) - len(todo)
        self._do(worker, group, todo, keep)
        # The others were at work meanwhile: of shards that begin together, the last to end must find nothing left.
        there = self._cache.names(group)
        share.lacking[group.key] = left = sum(task.name not in there for task in tasks)
        if not left and not group.last and keep is not _drop:
            rest = {task.name: task for task in tasks}
            for task in todo:
                del rest[task.name]
            for name, result in self._cache.read(group, rest):
                keep(rest.pop(name), result)
            # Who finds one damaged does it again.
            self._do(worker, group, list(rest.values()), keep)
        return left

    def _do(self, worker: ModelWorker | None, group: TaskGroup, tasks: Sequence[Task], keep: KeepResult) -> None:
        """Do tasks, and leave their results for the others."""
        if not tasks:
            return
        share = self.stages[group.stage]
        if worker is not None:
            worker.prepare(group, tasks)
        extra = _warm_up(worker) if worker is not None and group.method == "measure" else 0.0
        with self._cache.writing(group) as write:
            for task in tasks:
                result = timed(worker, group, task)
                result, extra = replace(result, seconds=result.seconds + extra), 0.0
                write(task.name, result)
                share.pieces += 1
                share.tokens += result.tokens
                share.passes += result.passes
                share.seconds += result.seconds
                keep(task, result)

    @property
    def _cache(self) -> PieceCache:
        if self._pieces is None:
            raise RuntimeError("a shard's executor was used before it was opened")
        return self._pieces

    def report(self, run: Path) -> ShardReport:
        """Return what `--json` tells of the shard."""
        left = {name: share.left for name, share in self.stages.items() if share.left}
        if not left:
            then = "nothing is left for shards; run once more without --shard, which joins them and selects"
        else:
            waiting = ", ".join(f"{count} of {name}" for name, count in left.items())
            then = f"{waiting} pieces are left for other shards; when these have run, "
            if self.ended:
                then += "run once more without --shard"
            else:
                then += "run every shard again for what follows from them, or run without --shard, which does the rest"
        return ShardReport(str(run), str(self.shard), self.stages, left, not left, then, tuple(self.notes))


def _drop(task: Task, result: TaskResult) -> None:
    """Keep nothing."""


def _warm_up(worker: ModelWorker) -> float:
    """Let the teacher do what precedes all rows, one shard at a time; return its seconds.

    The first shard that comes trains the warm-up in the run's folder of the teacher, and the others wait and find it there.
    """
    teacher = worker.teacher
    folder = teacher.workspace if isinstance(teacher, KeepsWorkspace) else None
    if not isinstance(teacher, WarmsUp) or folder is None:
        return 0.0
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / LOCK):
        began = time.perf_counter()
        teacher.warm_up()
        return time.perf_counter() - began


@contextmanager
def _folder_like(run: Path, shard: Shard) -> Iterator[Path]:
    """Lock a shard and give a folder that looks like the run; it goes at the end.

    Raises ResourceError where a run without --shard, or another process of the same shard, is at work, or nothing can be written.
    """
    folder = run / FOLDER / SHARDS / shard.name
    whole = f"a process without --shard works on {str(run)!r}; wait until it ends"
    same = f"another process works on shard {shard} of {str(run)!r}; wait until it ends, or give another --shard"
    with (
        _lock(run / LOCK, whole, shared=True),
        _lock(folder.with_name(f"{shard.name}{LOCK}"), same),
    ):
        shutil.rmtree(folder, ignore_errors=True)
        try:
            _link(run, folder)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _link(run: Path, folder: Path) -> None:
    """Link the files of a run, which are replaced and never written into, and copy its labels, which are."""
    folder.mkdir(parents=True)
    for file in run.iterdir():
        if file.is_file() and file.name != LOCK:
            (folder / file.name).symlink_to(file.resolve())
    for name in (checksums.MARKS, "student"):
        if (run / name).is_dir():
            (folder / name).mkdir()
            for file in (run / name).iterdir():
                (folder / name / file.name).symlink_to(file.resolve())
    if (run / "labels").is_dir():
        shutil.copytree(run / "labels", folder / "labels", ignore=shutil.ignore_patterns(TEACHER_FOLDER))


@contextmanager
def _lock(path: Path, refusal: str, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock of a file. Raises ResourceError, with the refusal, where another process has it, and on Windows."""
    if sys.platform == "win32":
        raise ResourceError("--shard needs locks that several processes share, which Windows has not; run without it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Read and write: a lock on a network file system needs the one for sharing and the other for excluding.
        stream = path.open("a+", encoding="ascii")
    except OSError as error:
        raise ResourceError(f"{str(path)!r} cannot be written: {error.strerror}") from error
    with stream:
        try:
            fcntl.flock(stream, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            raise ResourceError(refusal) from error
        yield
