"""The executor of one shard: does its own tasks, and takes those of the others where it needs them; it may wait for them."""

from __future__ import annotations

import fcntl
import time
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from nncift.core.parallel import pays
from nncift.core.tasks import SCORE, Enough, Incomplete, Keep, LocalExecutor, Task, TaskGroup, TaskResult, timed
from nncift.distributed.content import content_of
from nncift.distributed.model_worker import ModelWorker
from nncift.distributed.piece_records import Damage, Names, Reader, Record, Writer
from nncift.distributed.shadow import WORK, Presence, held, locked
from nncift.distributed.shards import END, Left, folder_of, in_files, name_of
from nncift.distributed.waiting import Waiting
from nncift.teachers.abilities import KeepsWorkspace, WarmsUp


@dataclass
class Done:
    """What a shard did of a stage, and what it knows to be left for others, in tasks."""

    pieces: int = 0
    before: int = 0
    left: int = 0
    tokens: int = 0
    passes: int = 0
    seconds: float = 0.0


class Part:
    """The executor of one shard: does its own tasks, and knows which others are done.

    whole: the shard needs the results of all, since what it does next depends on them (rounds of an active plan, labels that
    grow, calculations). Otherwise it is content with names, and no result of another shard is read. waits: it waits for others
    that are at work; patient: also for such as are not there yet.
    """

    def __init__(self, run: Path, presence: Presence) -> None:
        self._run, self._presence, self._shard = run, presence, presence.shard
        self._left = Left(run)
        self._writers: dict[str, Writer] = {}
        self._feeds: dict[str, _Feed] = {}
        self._asked: dict[str, tuple[TaskGroup, Sequence[Task]]] = {}
        self._open: dict[tuple[str, str], int] = {}
        self.whole = self.waits = self.patient = False
        self.done: dict[str, Done] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        """What could not be used."""
        return tuple(self._left.notes)

    @property
    def made(self) -> int:
        """Pieces that this shard has done now."""
        return sum(done.pieces for done in self.done.values())

    def found(self, group: TaskGroup, wanted: Container[str] | None = None) -> Iterator[tuple[str, TaskResult]]:
        """Yield what all shards have done, where it is needed."""
        if not self.whole:
            return
        self._feeds[group.key] = feed = _Feed(self._left, group, self._is_settled)
        given: set[str] = set()
        for record in feed.new():
            if record.task not in given and (wanted is None or record.task in wanted):
                given.add(record.task)
                yield record.task, record.result

    def map(self, worker: ModelWorker, group: TaskGroup, tasks: Sequence[Task], keep: Keep) -> None:
        """Do the tasks that are this shard's.

        Raises Incomplete where the stage cannot be finished here, Enough where nothing comes behind a calculation.
        """
        if group.calculation is not None:
            self._calculate(worker, group, tasks, keep)
        elif self.whole:
            self._take(worker, group, tasks, keep)
        else:
            self._share(worker, group, tasks, keep)

    def await_others(self) -> bool:
        """Wait until all shards have done what this one was asked for; tell whether they have."""
        for group, tasks in self._asked.values():
            seen: dict[Path, Names] = {}
            done: set[str] = set()
            lacking = partial(self._lacking, group, tasks, seen, done)
            with self._waiting(group) as waiting:
                while found := lacking():
                    # Whoever is gone may have finished behind the last look.
                    if not waiting.more(self._owners(found)) and lacking():
                        return False
        return True

    def _lacking(self, group: TaskGroup, tasks: Sequence[Task], seen: dict[Path, Names], done: set[str]) -> list[Task]:
        """Return the tasks that nobody has done until now, by what came into the files since the last look; `done` grows."""
        for file in self._left.files(group):
            done.update(seen.setdefault(file, Names(file)).new())
        found = [task for task in tasks if task.name not in done]
        self._left_over(group, len(found))
        return found

    def forget_others(self, basis: str) -> None:
        """Remove what this shard calculated with other students: nothing asks for it any more."""
        for file in folder_of(self._run, self._shard).glob(f"{SCORE}-*{END}"):
            if not file.name.startswith(f"{SCORE}-{basis}-"):
                file.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the files."""
        for writer in self._writers.values():
            writer.close()

    def _share(self, worker: ModelWorker, group: TaskGroup, tasks: Sequence[Task], keep: Keep) -> None:
        """Do what is this shard's and was not done before; raise Incomplete in any case."""
        self._asked[group.stage] = group, tasks
        raise Incomplete(group.stage, self._do_mine(worker, group, tasks, keep))

    def _do_mine(self, worker: ModelWorker, group: TaskGroup, tasks: Sequence[Task], keep: Keep) -> int:
        """Do what is this shard's and was not done before; return how many tasks are left for others, by their names."""
        own = set(self._writer(group).names)
        finished = own | self._of_others(group)
        todo = [task for task in tasks if task.name not in finished]
        mine = [task for task in todo if self._shard.has(task.place)]
        self._done(group).before += len([task for task in tasks if task.name in own])
        self._do(worker, group, mine, keep)
        # The others were at work meanwhile: of shards that begin together, the last to end must find nothing left.
        finished = self._of_others(group).union(task.name for task in mine)
        return self._left_over(group, len([task for task in todo if task.name not in finished]))

    def _of_others(self, group: TaskGroup) -> set[str]:
        """Return the names of the tasks that other shards have done until now."""
        return {name for file in self._files(group) if not self._is_own(file) for name in Names(file).new()}

    def _take(self, worker: ModelWorker, group: TaskGroup, tasks: Sequence[Task], keep: Keep) -> None:
        """Do what is this shard's, and keep what the others do. Raises Incomplete where something is left to them."""
        lacking = {task.name: task for task in tasks}
        feed = self._feeds.setdefault(group.key, _Feed(self._left, group, self._is_settled))
        self._keep_new(feed, lacking, keep)
        self._do_some(worker, group, [task for task in lacking.values() if self._shard.has(task.place)], keep, lacking)
        with self._waiting(group) as waiting:
            while lacking:
                self._keep_new(feed, lacking, keep)
                if broken := [task for name, task in lacking.items() if name in feed.broken]:
                    # It was done, and cannot be read: whoever is here does it again.
                    waiting.go_on()
                    self._do_some(worker, group, broken, keep, lacking)
                elif lacking and not (self.waits and waiting.more(self._owners(lacking.values()))):
                    # Whoever is gone may have finished behind the last look.
                    self._keep_new(feed, lacking, keep)
                    break
        if self._left_over(group, len(lacking)):
            raise Incomplete(group.stage, len(lacking))

    def _calculate(self, worker: ModelWorker, group: TaskGroup, tasks: Sequence[Task], keep: Keep) -> None:
        """Share a calculation out where that pays; else do it here, where something follows that reads it."""
        asked: Any = group.calculation
        key = content_of(asked) if pays(asked) else None
        if key is None:
            if asked.feeds:
                LocalExecutor().map(worker, group, tasks, keep)
        elif asked.feeds:
            group = in_files(group, key)
            own = self._writer(group).names
            self._done(group).before += len([task for task in tasks if task.name in own])
            self._take(worker, group, tasks, keep)
        else:
            # Nobody waits for what nothing reads.
            self._do_mine(worker, in_files(group, key), tasks, lambda task, result: None)
        if asked.last:
            raise Enough

    def _keep_new(self, feed: _Feed, lacking: dict[str, Task], keep: Keep) -> None:
        for record in feed.new():
            if (task := lacking.pop(record.task, None)) is not None:
                keep(task, record.result)

    def _do_some(
        self, worker: ModelWorker, group: TaskGroup, tasks: Sequence[Task], keep: Keep, lacking: dict[str, Task]
    ) -> None:
        self._do(worker, group, tasks, keep)
        for task in tasks:
            del lacking[task.name]

    def _do(self, worker: ModelWorker, group: TaskGroup, tasks: Sequence[Task], keep: Keep) -> None:
        """Do tasks, and leave them for the others and for the run that joins."""
        writer, done = self._writer(group), self._done(group)
        if group.calculation is None:
            worker.prepare(group, tasks)
        extra = self._warm(worker, group) if tasks else 0.0
        for task in tasks:
            result = timed(worker, group, task)
            result, extra = replace(result, seconds=result.seconds + extra), 0.0
            writer.add(Record(group.key, task.name, result))
            done.pieces += 1
            done.tokens += result.tokens
            done.passes += result.passes
            done.seconds += result.seconds
            keep(task, result)

    def _done(self, group: TaskGroup) -> Done:
        return self.done.setdefault(group.stage, Done())

    def _left_over(self, group: TaskGroup, count: int) -> int:
        """Note how many tasks of a group are left for others, and return that. A stage may have several groups."""
        self._open[group.stage, group.key] = count
        self._done(group).left = sum(left for (stage, _), left in self._open.items() if stage == group.stage)
        return count

    def _owners(self, tasks: Iterable[Task]) -> Mapping[int, int]:
        """Return how many of these tasks each shard does."""
        return dict(Counter(task.place % self._shard.count + 1 for task in tasks))

    def _waiting(self, group: TaskGroup) -> Waiting:
        return Waiting(self._presence, group.stage, even_for_none=self.patient)

    def _writer(self, group: TaskGroup) -> Writer:
        name = name_of(group.stage, group.key)
        if name not in self._writers:
            self._writers[name] = Writer(folder_of(self._run, self._shard) / name)
            for part in self._writers[name].damage:
                self._left.damaged(part)
        return self._writers[name]

    def _files(self, group: TaskGroup) -> list[Path]:
        return self._left.files(group) if group.calculation is None else self._left.made_of(group)

    def _is_own(self, file: Path) -> bool:
        return file.parent == folder_of(self._run, self._shard)

    def _is_settled(self, file: Path) -> bool:
        """Tell whether nobody else writes a file now."""
        return self._is_own(file) or not held(file.parent / WORK)

    def _warm(self, worker: ModelWorker, group: TaskGroup) -> float:
        """Let the teacher do what precedes all rows, one shard at a time; return its seconds.

        The first shard that comes trains the warm-up in the run's folder of the teacher, and the others wait and find it there.
        """
        teacher = worker.teacher
        folder = teacher.workspace if isinstance(teacher, KeepsWorkspace) else None
        if group.method != "measure" or not isinstance(teacher, WarmsUp) or folder is None:
            return 0.0
        with locked(folder / ".lock", fcntl.LOCK_EX, None):
            began = time.perf_counter()
            teacher.warm_up()
            return time.perf_counter() - began


class _Feed:
    """What comes into all shards' files about a group. broken: tasks that were done and cannot be read."""

    def __init__(self, left: Left, group: TaskGroup, is_settled: Any) -> None:
        self._left, self._job, self._is_settled = left, group, is_settled
        self._readers: dict[Path, Reader] = {}
        self.broken: set[str] = set()

    def new(self) -> Iterator[Record]:
        """Yield the sound records that came since; damage is named once nobody writes the file."""
        left, group = self._left, self._job
        for file in left.files(group) if group.calculation is None else left.made_of(group):
            # Before its content: what is written after this look is not taken for damage.
            settled = self._is_settled(file)
            for part in self._readers.setdefault(file, Reader(file)).new(settled=settled):
                if isinstance(part, Damage):
                    left.damaged(part)
                    if part.task is not None:
                        self.broken.add(part.task)
                elif part.group == group.key:
                    yield part
