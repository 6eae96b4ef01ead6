"""Pieces of a stage: blocks of rows, chunks of the label plan, parts of a calculation; and engines, which have them done.

What a piece consists of is fixed by rows and plan alone, never by who does it, so that a run's numbers are the same whichever
engine did them. A stage hands its pieces to the engine of its `RunContext` and keeps the outcomes; it does not ask where they
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
    from nncift.distributed.model_worker import Hands

SCORE, CALCULATE = "score", "calculate"
"""The stage and the hand of calculations, which need no model."""


@dataclass(frozen=True)
class Piece:
    """What is computed in one go.

    name: hash of its content, the same in every process. place: its position among all pieces of its job, done or not. task:
    what a worker is given. size: steps of progress. ids: rows that a teacher must know for it.
    """

    name: str
    place: int
    task: Any
    size: int
    ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What became of a piece: arrays by name, and what it cost: tokens and passes of a model, and seconds."""

    arrays: Mapping[str, npt.NDArray[Any]]
    tokens: int = 0
    passes: int = 0
    seconds: float = 0.0
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """What pieces have in common.

    stage: whose cost they are. hand: the method of `Hands` that does them. key: hash of all that decides outcomes beside the
    piece itself: model, wording, precision. what: for people. rows: where the rows are found that a teacher must know.
    every: gives the names of all pieces that the run has of it, done or not. calculation: what its pieces are parts of, where no
    model is asked; basis: the fingerprint of the student that it is about.
    """

    stage: str
    hand: str
    key: str
    what: str
    rows: Examples | None = None
    every: Callable[[], Iterable[str]] | None = None
    calculation: Calculation | None = None
    basis: str = ""

    @classmethod
    def of(cls, calculation: Calculation, basis: str = "") -> Job:
        """Return the job of a calculation.

        Its key is of versions alone, which is all that workers of this run can differ in; who finds parts in files hashes the
        rest, too (`scale.content`).
        """
        key = fingerprint(arithmetic())
        return cls(SCORE, CALCULATE, key, calculation.what, calculation=calculation, basis=basis)


Keep = Callable[[Piece, Outcome], None]


class Engine(Protocol):
    """Has pieces done."""

    def found(self, job: Job, wanted: Container[str] | None = None) -> Iterator[tuple[str, Outcome]]:
        """Yield what other processes have finished of a job, all of it or what is wanted: the piece's name and its outcome."""
        ...

    def each(self, hands: Hands, job: Job, pieces: Sequence[Piece], keep: Keep) -> None:
        """Have pieces done and keep every outcome, in this thread. Raises Unfinished where others must do the rest."""
        ...


class Unfinished(Exception):  # noqa: N818 - no error: a shard has done its part
    """A stage waits for pieces that other shards do. left: how many."""

    def __init__(self, stage: str, left: int) -> None:
        super().__init__(f"{left} pieces of {stage} are left for other shards")
        self.stage, self.left = stage, left


class Enough(Exception):  # noqa: N818 - no error: a shard has done its part
    """No calculation follows that a shard could have a part in."""


class Here:
    """The engine of a run in one process: one piece after the other."""

    def found(self, job: Job, wanted: Container[str] | None = None) -> Iterator[tuple[str, Outcome]]:
        """Yield nothing: there are no other processes."""
        return iter(())

    def each(self, hands: Hands, job: Job, pieces: Sequence[Piece], keep: Keep) -> None:
        """Do all pieces."""
        if job.calculation is None:
            hands.prepare(job, pieces)
        for piece in pieces:
            keep(piece, timed(hands, job, piece))


def calculate(engine: Engine, hands: Hands, calculation: Calculation, keep: KeepArrays, basis: str = "") -> None:
    """Have the parts of a calculation done by an engine. basis: see `Job`."""
    pieces = [Piece(f"{place}", place, task, 1) for place, task in enumerate(calculation.tasks)]
    engine.each(hands, Job.of(calculation, basis), pieces, lambda piece, outcome: keep(piece.place, outcome.arrays))


def arithmetic() -> Mapping[str, Any]:
    """Return what decides the last bits of a calculation, as far as a process can tell."""
    return {name: metadata.version(name) for name in ("nncift", "numpy", "numba")}


def timed(hands: Hands | None, job: Job, piece: Piece) -> Outcome:
    """Do a piece and measure its seconds; a calculation needs no hands."""
    began = time.perf_counter()
    outcome: Outcome
    if job.calculation is not None:
        outcome = Outcome(job.calculation.do(job.calculation.shared, piece.task))
    else:
        outcome = getattr(hands, job.hand)(piece.task)
    return replace(outcome, seconds=time.perf_counter() - began)


def as_floats(outcome: Outcome, name: str) -> npt.NDArray[np.float32]:
    """Return an array of an outcome as float32."""
    return np.asarray(outcome.arrays[name], np.float32)
