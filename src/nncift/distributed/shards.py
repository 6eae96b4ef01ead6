"""Shards: processes that do a part of a run's tasks each and leave the results in the run directory (docs/scale.md).

`shards/2-of-3/` holds what shard 2 of 3 has done, one file per stage and per hash of what decides its results: the model, its
wording and precision; of a calculation, all that it reads. A shard reads the run and never writes into it: it works on a shadow
of it, which goes at the end. A run without a shard takes what is in these files, does what is missing, and removes them.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nncift.core.parallel import pays
from nncift.core.tasks import SCORE, Executor, Keep, Task, TaskGroup, TaskResult
from nncift.distributed.content import content_of
from nncift.distributed.model_worker import ModelWorker
from nncift.distributed.piece_records import Damage, Record, read
from nncift.errors import UsageError

log = logging.getLogger(__name__)
FOLDER = "shards"
END = ".pieces"
TEACHER_FOLDER = "teacher"
ALL = "all"
"""What one shard has made for all: vectors, and the student."""


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

    def has(self, place: int) -> bool:
        """Tell whether the task at a place is this shard's."""
        return place % self.count == self.number - 1


def folder_of(run: Path, shard: Shard) -> Path:
    """Return where a shard leaves what it has done."""
    return run / FOLDER / f"{shard.number}-of-{shard.count}"


class Left:
    """What shards have left in a run directory, as far as it was read. notes: sentences on what could not be used."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self.notes: list[str] = []

    def files(self, group: TaskGroup) -> list[Path]:
        """Return the files about a group; says so, once, where there are files of the stage about another one."""
        every = sorted(self._run.glob(f"{FOLDER}/*/{group.stage}-*{END}"))
        own = [file for file in every if file.name == name_of(group.stage, group.key)]
        for file in sorted(set(every) - set(own)):
            self.note(
                f"{self._told(file)} was made with another model or other settings than this run's ({group.stage}); "
                "it is not used"
            )
        return own

    def read(self, group: TaskGroup) -> Iterator[tuple[Path, Record]]:
        """Yield all sound records of a group; what is damaged is named."""
        for file in self.files(group) if group.calculation is None else self.made_of(group):
            for part in read(file):
                if isinstance(part, Damage):
                    self.damaged(part)
                elif part.group == group.key:
                    yield file, part
                else:
                    self.note(f"{self._told(file)} holds tasks of another group; they are not used")

    def about(self, basis: str) -> list[Path]:
        """Return the files about all calculations with a student."""
        return sorted(self._run.glob(f"{FOLDER}/*/{SCORE}-{basis}-*{END}"))

    def made_of(self, group: TaskGroup) -> list[Path]:
        """Return the files about a calculation; those about other ones are no reason to say anything."""
        return sorted(self._run.glob(f"{FOLDER}/*/{name_of(group.stage, group.key)}"))

    def damaged(self, part: Damage) -> None:
        """Name a damaged part."""
        rest = "what is behind it, too, is" if part.whole else "it is"
        self.note(f"{self._told(part.file)} is damaged at byte {part.at} ({part.why}); {rest} computed again")

    def note(self, sentence: str) -> None:
        """Say something once."""
        if sentence not in self.notes:
            self.notes.append(sentence)
            log.warning("%s", sentence)

    def _told(self, file: Path) -> str:
        return f"the shard file {str(file)!r}"


class Joining:
    """The executor of a run that takes what shards left and has the rest done by another executor.

    seconds: that shards took for the parts of calculations that were taken.
    """

    def __init__(self, run: Path, inner: Executor) -> None:
        self._run, self._left, self._inner = run, Left(run), inner
        self._strange: dict[Path, set[str]] = {}
        self._every: list[Callable[[], Iterable[str]]] = []
        self._calculated: set[str] = set()
        self.seconds = 0.0

    @property
    def notes(self) -> tuple[str, ...]:
        """What could not be used."""
        return tuple(self._left.notes)

    def found(self, group: TaskGroup, wanted: Container[str] | None = None) -> Iterator[tuple[str, TaskResult]]:
        """Yield what shards left."""
        given: set[str] = set()
        if group.every is not None:
            self._every.append(group.every)
        for file, record in self._left.read(group):
            name = record.task
            if name in given:
                continue
            if wanted is not None and name not in wanted:
                self._strange.setdefault(file, set()).add(name)
                continue
            given.add(name)
            yield name, record.result
        yield from self._inner.found(group, wanted)

    def map(self, worker: ModelWorker, group: TaskGroup, tasks: Sequence[Task], keep: Keep) -> None:
        """Have the rest done; of a calculation, what shards left is kept first."""
        if group.calculation is not None:
            tasks = self._without_found(group, tasks, keep)
        self._inner.map(worker, group, tasks, keep)

    def _without_found(self, group: TaskGroup, tasks: Sequence[Task], keep: Keep) -> Sequence[Task]:
        """Keep the parts of a calculation that shards did, and return the others."""
        if group.calculation is None or not pays(group.calculation) or not self._left.about(group.basis):
            return tasks
        key = content_of(group.calculation)
        if key is None:
            return tasks
        group = in_files(group, key)
        self._calculated.add(group.key)
        todo = {task.name: task for task in tasks}
        for _, record in self._left.read(group):
            if (task := todo.pop(record.task, None)) is not None:
                self.seconds += record.result.seconds
                keep(task, record.result)
        return list(todo.values())

    def tidy(self, finished: Iterable[tuple[str, str]]) -> None:
        """Remove the files of groups that are finished, given by stage and key, and name those with tasks that fitted nothing."""
        # What was kept before this session is no longer wanted, and is the run's all the same.
        own = {name for every in self._every[-1:] for name in every()} if self._strange else set()
        for file, found in sorted(self._strange.items()):
            if strange := found - own:
                self._left.note(
                    f"{len(strange)} tasks in {str(file)!r} are none of this run's: the shard had other rows or other --labels"
                )
        for stage, key in finished:
            for file in self._run.glob(f"{FOLDER}/*/{name_of(stage, key)}"):
                file.unlink(missing_ok=True)
        shutil.rmtree(self._run / FOLDER / ALL, ignore_errors=True)
        self._remove_empty()

    def tidy_calculated(self, basis: str) -> None:
        """Remove what shards calculated with a student once the run has selected; name what it had no use for, and what stays."""
        for file in self._left.about(basis):
            key = file.name.removeprefix(f"{SCORE}-").removesuffix(END)
            # Nothing was asked for where an earlier session has selected.
            if self._calculated and key not in self._calculated:
                self._left.note(
                    f"the shard file {str(file)!r} holds parts of a calculation that is not this run's: other settings of the "
                    "selection, another --max-mem, or a machine that rounds otherwise; it was not used"
                )
            file.unlink(missing_ok=True)
        for file in sorted(self._run.glob(f"{FOLDER}/*/{SCORE}-*{END}")):
            self._left.note(
                f"the shard file {str(file)!r} was calculated from other labels, rows or settings than this run's; it is not used"
            )
        self._remove_empty()

    def _remove_empty(self) -> None:
        folders = sorted((self._run / FOLDER).glob("*-of-*"))
        for folder in folders:
            # A shard that was killed has left its shadow of the run.
            shutil.rmtree(folder / "work", ignore_errors=True)
            if not any(folder.glob(f"*{END}")):
                shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            (self._run / FOLDER).rmdir()


def name_of(stage: str, key: str) -> str:
    """Return the name of a shard's file about a group."""
    return f"{stage}-{key}{END}"


def in_files(group: TaskGroup, content: str) -> TaskGroup:
    """Return the group of a calculation as files name it: by its student, and by a hash of all that decides it."""
    return replace(group, key=f"{group.basis}-{content}")
