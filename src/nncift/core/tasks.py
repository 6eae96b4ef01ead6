"""Pieces of a stage: blocks of rows, chunks of the label plan, parts of a calculation; and executors, which have them done.

What a task consists of is fixed by rows and plan alone, never by who does it, so that a run's numbers are the same whichever
executor did them. A stage passes its tasks to the executor of its `RunContext` and keeps the results; it does not ask where they
were computed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from nncift.core.fingerprints import fingerprint
from nncift.core.parallel import Calculation
from nncift.core.parallel import Keep as KeepArrays

if TYPE_CHECKING:
    from nncift.data.examples import Examples
    from nncift.distributed.model_worker import ModelWorker

SCORE, CALCULATE = "score", "calculate"
"""The stage and the method of calculations, which need no model."""


@dataclass(frozen=True)
class Task:
    """What is computed in one go.

    name: hash of its content, the same in every process. place: its position among all tasks of its group, done or not. task:
    what a worker is given. size: steps of progress. ids: rows that a teacher must know for it.
    """

    name: str
    place: int
    work: Any
    size: int
    ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskResult:
    """What became of a task: arrays by name, and what it cost: tokens and passes of a model, and seconds."""

    arrays: Mapping[str, npt.NDArray[Any]]
    tokens: int = 0
    passes: int = 0
    seconds: float = 0.0
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskGroup:
    """What tasks have in common.

    stage: whose cost they are. method: of `ModelWorker`, that does them. key: hash of all that decides results beside the
    task itself: model, wording, precision. what: for people. rows: where the rows are found that a teacher must know.
    every: gives the names of all tasks that the run has of it, done or not. calculation: what its tasks are parts of, where no
    model is asked; basis: the fingerprint of the student that it is about.
    """

    stage: str
    method: str
    key: str
    what: str
    rows: Examples | None = None
    every: Callable[[], Iterable[str]] | None = None
    calculation: Calculation | None = None
    basis: str = ""

    @classmethod
    def of(cls, calculation: Calculation, basis: str = "") -> TaskGroup:
        """Return the group of a calculation.

        Its key is of versions alone, which is all that workers of this run can differ in; who finds parts in files hashes the
        rest, too (`scale.content`).
        """
        key = fingerprint(arithmetic())
        return cls(SCORE, CALCULATE, key, calculation.what, calculation=calculation, basis=basis)


Keep = Callable[[Task, TaskResult], None]


class Executor(Protocol):
    """Has tasks done."""

    def found(self, group: TaskGroup, wanted: Container[str] | None = None) -> Iterator[tuple[str, TaskResult]]:
        """Yield what other processes have finished of a group, all of it or what is wanted: the task's name and its result."""
        ...

    def map(self, worker: ModelWorker, group: TaskGroup, tasks: Sequence[Task], keep: Keep) -> None:
        """Have tasks done and keep every result, in this thread. Raises Incomplete where others must do the rest."""
        ...


class Incomplete(Exception):  # noqa: N818 - no error: a shard has done its part
    """A stage waits for tasks that other shards do. left: how many."""

    def __init__(self, stage: str, left: int) -> None:
        super().__init__(f"{left} tasks of {stage} are left for other shards")
        self.stage, self.left = stage, left


class Enough(Exception):  # noqa: N818 - no error: a shard has done its part
    """No calculation follows that a shard could have a part in."""


class LocalExecutor:
    """The executor of a run in one process: one task after the other."""

    def found(self, group: TaskGroup, wanted: Container[str] | None = None) -> Iterator[tuple[str, TaskResult]]:
        """Yield nothing: there are no other processes."""
        return iter(())

    def map(self, worker: ModelWorker, group: TaskGroup, tasks: Sequence[Task], keep: Keep) -> None:
        """Do all tasks."""
        if group.calculation is None:
            worker.prepare(group, tasks)
        for task in tasks:
            keep(task, timed(worker, group, task))


def calculate(
    executor: Executor, worker: ModelWorker, calculation: Calculation, keep: KeepArrays, basis: str = ""
) -> None:
    """Have the parts of a calculation done by an executor. basis: see `TaskGroup`."""
    tasks = [Task(f"{place}", place, work, 1) for place, work in enumerate(calculation.tasks)]
    executor.map(worker, TaskGroup.of(calculation, basis), tasks, lambda task, result: keep(task.place, result.arrays))


def arithmetic() -> Mapping[str, Any]:
    """Return what decides the last bits of a calculation, as far as a process can tell."""
    return {name: metadata.version(name) for name in ("nncift", "numpy", "numba")}


def timed(worker: ModelWorker | None, group: TaskGroup, task: Task) -> TaskResult:
    """Do a task and measure its seconds; a calculation needs no worker."""
    began = time.perf_counter()
    result: TaskResult
    if group.calculation is not None:
        result = TaskResult(group.calculation.do(group.calculation.shared, task.work))
    else:
        result = getattr(worker, group.method)(task.work)
    return replace(result, seconds=time.perf_counter() - began)


def as_floats(result: TaskResult, name: str) -> npt.NDArray[np.float32]:
    """Return an array of an result as float32."""
    return np.asarray(result.arrays[name], np.float32)
