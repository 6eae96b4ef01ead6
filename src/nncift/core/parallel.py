"""Work in parts: calculations that ask no model, tasks that do, and the executors that have either done (docs/scale.md).

What a part consists of is fixed by the numbers, rows and plan alone, never by who does it, and every part is done by one function
that sees nothing else: so all executors come to the same bytes. Who calculates takes a `ParallelMap`, by default `serial_map`. A
stage passes its tasks to the executor of its `RunContext` and keeps the results; it does not ask where they were computed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from nncift.core.fingerprints import fingerprint
from nncift.core.result_types import Record

if TYPE_CHECKING:
    from nncift.config import RunSettings
    from nncift.data.examples import Examples
    from nncift.distributed.model_worker import ModelWorker
    from nncift.storage.run_directory import RunDir

Arrays = Mapping[str, npt.NDArray[Any]]
MULTIPLY_ADDS = 2.5e10
"""Multiply-adds of a core in a second, about."""
WORTH = 10.0
"""Seconds of a core below which a calculation is not shared out."""
BYTES_A_SECOND = 4e8
"""What one process takes in of results, checksums and copies included (docs/scale.md)."""
_WIDEST = 4096
"""Numbers of a projection that no network of ours has, and"""
_LOOK_SECONDS = 1e-8
"""of one core, for a pair that is looked at: with these no calculation over all pairs is taken for less than it is."""
SCORE, CALCULATE = "score", "calculate"
"""The stage and the method of calculations, which need no model."""


@dataclass(frozen=True, eq=False)
class Calculation:
    """Parts to be done.

    what: for people. do: returns the arrays of a part from `shared` and its task; a function of a module, so that another process
    finds it. shared: what all parts read and none changes. seconds: about how long one core takes for all; back: bytes of all
    results. By these two an executor decides whether sharing pays (`pays`). feeds: a later calculation reads the outcome. last:
    no other calculation follows. A process that does parts for another one need not wait for what feeds nothing.
    """

    what: str
    do: Callable[[Any, Any], Arrays]
    shared: Any
    tasks: Sequence[Any]
    seconds: float
    back: float
    feeds: bool = True
    last: bool = False


Keep = Callable[[int, Arrays], None]
"""Keeps the arrays of the task at a place; parts come in any order."""
ParallelMap = Callable[[Calculation, Keep], None]


def serial_map(calculation: Calculation, keep: Keep) -> None:
    """Do all parts in this process, one after the other."""
    for place, task in enumerate(calculation.tasks):
        keep(place, calculation.do(calculation.shared, task))


def ranges(size: int, step: int) -> list[slice]:
    """Return slices of `step` that cover `size`."""
    return [slice(at, min(at + step, size)) for at in range(0, size, step)]


def pays(calculation: Calculation) -> bool:
    """Tell whether sharing pays: it is work for a while, and takes a core twice as long as one process to take in results."""
    return calculation.seconds >= max(WORTH, 2 * calculation.back / BYTES_A_SECOND)


def may_pay(targets: int, sources: int) -> bool:
    """Tell whether there can be a calculation over so many rows that pays, whatever the student is going to be."""
    return float(targets) * sources * (_WIDEST / MULTIPLY_ADDS + _LOOK_SECONDS) >= WORTH


@dataclass(frozen=True)
class Task:
    """What is computed in one go.

    name: hash of its content, the same in every process. place: its position among all tasks of its group, done or not. work:
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

    arrays: Arrays
    tokens: int = 0
    passes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class TaskGroup:
    """What tasks have in common.

    stage: whose cost they are. method: of `ModelWorker`, that does them. key: hash of all that decides results beside the task
    itself: model, wording, precision. what: for people. rows: where the rows are found that a teacher must know. every: gives the
    names of all tasks that the run has of it, done or not. calculation: what its tasks are parts of, where no model is asked;
    basis: the fingerprint of the student that it is about. last: no tasks follow that are worth sharing out.
    """

    stage: str
    method: str
    key: str
    what: str
    rows: Examples | None = None
    every: Callable[[], Iterable[str]] | None = None
    calculation: Calculation | None = None
    basis: str = ""
    last: bool = False

    @classmethod
    def of(cls, calculation: Calculation, basis: str = "") -> TaskGroup:
        """Return the group of a calculation.

        Its key is of versions alone, which is all that workers of this run can differ in; who finds parts in files hashes the
        rest, too (`distributed.content`).
        """
        key = fingerprint(arithmetic())
        return cls(SCORE, CALCULATE, key, calculation.what, None, None, calculation, basis, calculation.last)


KeepResult = Callable[[Task, TaskResult], None]


class Executor(Protocol):
    """Has tasks done.

    partial: it does its share of a run, and leaves the selection to the run that joins the shares. notes: sentences on results of
    other processes that could not be used.
    """

    @property
    def partial(self) -> bool: ...  # noqa: D102

    @property
    def notes(self) -> tuple[str, ...]: ...  # noqa: D102

    def open(self, out: Path, settings: RunSettings) -> AbstractContextManager[RunDir]:
        """Give the run directory to work in, under lock, and be ready for tasks of that run inside the `with` block."""
        ...

    def found(self, group: TaskGroup, wanted: Container[str] | None = None) -> Iterator[tuple[str, TaskResult]]:
        """Yield what other processes have finished of a group, all of it or what is wanted: the task's name and its result."""
        ...

    def map(self, worker: ModelWorker | None, group: TaskGroup, tasks: Sequence[Task], keep: KeepResult) -> None:
        """Have tasks done and keep every result, in this thread. Raises Incomplete where others must do the rest."""
        ...

    def tidy(self, finished: Iterable[tuple[str, str]], basis: str) -> None:
        """Remove what other processes left for a run that needs it no longer. finished: stage and key of groups."""
        ...


class Incomplete(Exception):  # noqa: N818 - no error: a shard has done its part
    """A shard has done what it can: `left` tasks of a stage are other shards', or the rest is for the run that joins them.

    report: what the shard did, as `--json` tells it.
    """

    def __init__(self, stage: str, left: int = 0) -> None:
        super().__init__(f"{left} pieces of {stage} are left for other shards")
        self.stage, self.left = stage, left
        self.report: Record | None = None


def map_found(
    executor: Executor, worker: ModelWorker | None, group: TaskGroup, tasks: Sequence[Task], keep: KeepResult
) -> float:
    """Keep what other processes have finished of a group, and have the rest done; return the seconds of the others.

    worker: None for a calculation, which asks no model.
    """
    others = 0.0
    todo = {task.name: task for task in tasks}
    for name, result in executor.found(group, todo):
        keep(todo.pop(name), result)
        others += result.seconds
    executor.map(worker, group, list(todo.values()), keep)
    return others


def calculate(executor: Executor, calculation: Calculation, keep: Keep, basis: str = "") -> float:
    """Have the parts of a calculation done; return the seconds of other processes. basis: see `TaskGroup`."""
    tasks = [Task(f"{place}", place, work, 1) for place, work in enumerate(calculation.tasks)]
    group = TaskGroup.of(calculation, basis)
    return map_found(executor, None, group, tasks, lambda task, result: keep(task.place, result.arrays))


def map_by(executor: Executor) -> ParallelMap:
    """Return what has parts done by an executor, where no other process has left any."""

    def parallel_map(calculation: Calculation, keep: Keep) -> None:
        calculate(executor, calculation, keep)

    return parallel_map


@cache
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
    """Return an array of a result as float32."""
    return np.asarray(result.arrays[name], np.float32)
