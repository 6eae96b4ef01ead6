"""Labels of a run on disk, of pairs or of rows: a plan that grows by generations, and the teacher's values chunk by chunk.

`labels/` holds for every generation `plan-000.parquet` (what is labelled, in which chunks), `plan-000.json` (axes, roles, what is
kept of a label, the table's checksum), and two `RowStore`s: `values-000`, and `costs-000` with the cost of every chunk, which is
written last: a chunk that was interrupted or is damaged is computed again, whole and alike.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from nncift.core.arrays import Floats, Places
from nncift.core.pairs import LabelledPairs
from nncift.core.parallel import KeepResult, Task, TaskResult, as_floats
from nncift.data import Examples
from nncift.errors import DataError, UsageError
from nncift.labels.label_budget import LabelBudget
from nncift.labels.plan import SCORE, LabelPlan, PlannedChunk, RowPlan
from nncift.storage.atomic import MISMATCH, atomic, digest, read_json, write_sealed
from nncift.storage.parquet import as_numpy, read_columns
from nncift.storage.row_store import RowStore
from nncift.teachers import RowLabels, RowTeacher
from nncift.teachers.abilities import WarmUpCost, figures_of, stored_as

COSTS = ("tokens", "passes", "seconds")
FLUSH_SECONDS = 1.0
"""How long finished chunks may wait to be put on disk: what a kill costs beside the chunk that it interrupts."""
FLUSH_BYTES = 1 << 26
"""Values that may wait at most, where they come faster than from a teacher."""
PlanT = TypeVar("PlanT", bound=LabelPlan | RowPlan)


@dataclass(frozen=True)
class Axes:
    """The rows on both axes. targets: None = the sources themselves. pointwise: one target, which is no row."""

    sources: Examples
    targets: Examples | None = None
    pointwise: bool = False

    @property
    def shared(self) -> bool:
        """Whether targets and sources are the same rows, so that the diagonal is masked."""
        return self.targets is None and not self.pointwise

    @property
    def target_ids(self) -> tuple[str, ...]:
        """Ids of the target axis."""
        if self.pointwise:
            return SCORE
        return self.sources.ids if self.targets is None else self.targets.ids

    @property
    def rows(self) -> Examples:
        """All rows, sources first."""
        return self.sources if self.targets is None else Examples((*self.sources, *self.targets))


class LabelExecutor(Protocol):
    """Has tasks of a plan labelled."""

    def name(self, kind: str, source: str | None, ids: Sequence[str]) -> str:
        """Return a hash of what a task is about: its rows and their content."""
        ...

    def know(self, ids: Sequence[str]) -> None:
        """Make the teacher of this process know rows."""
        ...

    def map(
        self, method: str, what: str, tasks: Sequence[Task], keep: KeepResult, every: Callable[[], Iterable[str]]
    ) -> None:
        """Have tasks done by a method of `ModelWorker` and keep each result; every: gives the names of all, done or not."""
        ...


@dataclass(frozen=True)
class Spent:
    """What labelling has cost so far: tokens and passes of the teacher's model, and seconds of earlier sessions' chunks."""

    tokens: int
    passes: int
    seconds_before: float


@dataclass(frozen=True)
class LabelFormat:
    """What is kept of a label: `width` values of a type, and of a chunk the sums of some figures beside its cost."""

    width: int
    dtype: str = "float32"
    figures: tuple[str, ...] = ()

    @classmethod
    def of(cls, teacher: RowTeacher) -> LabelFormat:
        """Return what a teacher of rows asks for."""
        return cls(teacher.width, stored_as(teacher), figures_of(teacher))

    @property
    def row_bytes(self) -> int:
        """Bytes of a label's values on disk."""
        return self.width * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class LabelTotals:
    """Totals over finished chunks: tokens and passes of the teacher's model, seconds, labels, and labels without a value.

    figures: sums of what is counted beside the values.
    """

    tokens: int
    passes: int
    seconds: float
    labels: int
    missing: int
    figures: Mapping[str, float] = field(default_factory=dict)


class LabelStore(ABC, Generic[PlanT]):
    """The labels of a run. What differs between pairs and rows: how a plan grows, and how utilities follow from values.

    plan: None before there is one. Raises DataError where a file cannot be read, UsageError for another kind of teacher.
    """

    plan_type: ClassVar[type[Any]]
    kind: ClassVar[str]
    """What is labelled: pair or row."""
    method: ClassVar[str]
    what: ClassVar[str]

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._opened: dict[int, tuple[RowStore, RowStore]] = {}
        self._waiting: dict[int, list[tuple[PlannedChunk, npt.NDArray[Any], Sequence[float]]]] = {}
        self._bytes, self._flushed = 0, time.monotonic()
        self.plan, self.format = self._read()

    @abstractmethod
    def grown(self, axes: Axes, budget: LabelBudget, seed: int) -> PlanT:
        """Return the plan that the budget asks for; nothing is written."""

    @abstractmethod
    def utilities(self) -> dict[str, LabelledPairs]:
        """Return the utilities by split, on the plan's axes; NaN where the teacher has no value.

        Raises DataError where labels are pending or damaged.
        """

    @abstractmethod
    def counts(self) -> dict[str, int]:
        """Return the number of labels by split."""

    @abstractmethod
    def training(self) -> int:
        """Return what is planned to train on: pairs, or rows of the sources; 0 before there is a plan."""

    @abstractmethod
    def full_passes(self) -> int:
        """Return the passes of the full teacher, what precedes all labels included."""

    @abstractmethod
    def warnings(self) -> list[str]:
        """Return sentences about labels that could not be had, and about what they mean."""

    @abstractmethod
    def _wanted_format(self, plan: PlanT, executor: LabelExecutor) -> LabelFormat:
        """Return what is to be kept of a label, which may take knowing the rows."""

    def _finished(self, progress: LabelTotals) -> WarmUpCost:
        """Derive and keep what follows from all values; return what preceded all labels."""
        return WarmUpCost()

    def planned(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the target and source ids that a plan exists for."""
        return ((), ()) if self.plan is None else (self.plan.target_ids, self.plan.source_ids)

    def whole(self) -> bool:
        """Tell whether every planned label can be read: none is missing, none is damaged."""
        stores = (store for generation in range(len(self._plan.generations)) for store in self.stored(generation))
        return all(bool(store.filled.all()) for store in stores)

    def compute(self, plan: PlanT, executor: LabelExecutor) -> Spent:
        """Have what is pending labelled, and keep it."""
        if not isinstance(plan, self.plan_type):
            raise DataError("this run was planned for a teacher of another kind; use another --out")
        self.adopt(plan, self._wanted_format(plan, executor))
        before = self.progress().seconds
        pending = {self._name(chunk, executor): chunk for chunk in self.pending()}
        tasks = [
            Task(name, chunk.place, chunk.task, len(chunk.positions), chunk.ids) for name, chunk in pending.items()
        ]

        def keep(task: Task, result: TaskResult) -> None:
            figures = np.asarray(result.arrays["figures"], np.float64).tolist()
            sums = dict(zip(self._format.figures, figures, strict=True))
            labels = RowLabels(as_floats(result, "values"), result.tokens, result.passes, sums)
            self.write(pending[task.name], labels, result.seconds)

        def every() -> Iterator[str]:
            for generation in range(len(plan.generations)):
                yield from (self._name(chunk, executor) for chunk in plan.chunks_of(generation))

        try:
            executor.map(self.method, self.what, tasks, keep, every)
        finally:
            self.flush()
        done = self.progress()
        once = self._finished(done)
        return Spent(done.tokens + once.tokens, done.passes + once.passes, before)

    def adopt(self, plan: PlanT, kept: LabelFormat) -> None:
        """Write the generations that a plan has beyond those on disk; the JSON head, last, makes one count.

        Raises DataError where labels of earlier generations are kept in another format.
        """
        known = 0 if self.plan is None else len(self.plan.generations)
        if known and self.format is not None and self.format != kept:
            raise DataError(
                f"the labels of this run were kept as {self.format}, and the teacher asks for {kept}; use another --out"
            )
        self.plan, self.format, before = plan, kept, self.plan
        for generation in range(known, len(plan.generations)):
            self._write_generation(plan, generation)
        grew = before is not None and plan.to_json() != before.to_json()
        if grew and known == len(plan.generations):
            # More rows, and no label among them.
            self._write_head(plan, known - 1)

    def pending(self) -> Iterator[PlannedChunk]:
        """Yield the chunks without whole labels."""
        plan = self._plan
        for generation in range(len(plan.generations)):
            values, costs = self.stored(generation)
            for chunk in plan.chunks_of(generation):
                if not (costs.filled[chunk.index] and values.filled[chunk.positions].all()):
                    yield chunk

    def write(self, chunk: PlannedChunk, labels: RowLabels, seconds: float) -> None:
        """Keep a chunk's values `(n, width)` and cost.

        They are on disk after `flush`, which comes by itself after FLUSH_SECONDS or FLUSH_BYTES: a disk takes as long for one
        chunk as for many.
        """
        cost = [labels.tokens, labels.passes, seconds, *(labels.figures[name] for name in self._format.figures)]
        self._waiting.setdefault(chunk.generation, []).append((chunk, labels.values, cost))
        self._bytes += labels.values.nbytes
        if time.monotonic() - self._flushed >= FLUSH_SECONDS or self._bytes >= FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Put what waits on disk; costs, which make chunks count, come last."""
        for generation, waiting in self._waiting.items():
            values, costs = self._stores(generation)
            chunks, found, spent = zip(*waiting, strict=True)
            values.write(np.concatenate([chunk.positions for chunk in chunks]), np.concatenate(found))
            costs.write(np.array([chunk.index for chunk in chunks], np.intp), np.array(spent, np.float64))
        self._waiting.clear()
        self._bytes, self._flushed = 0, time.monotonic()

    def stored(self, generation: int) -> tuple[RowStore, RowStore]:
        """Return the values and costs of a generation, nothing left waiting."""
        self.flush()
        return self._stores(generation)

    def progress(self) -> LabelTotals:
        """Sum up the finished chunks."""
        cost = np.zeros(len(COSTS) + len(self._format.figures))
        labels = missing = 0
        for generation in range(len(self._plan.generations)):
            values, costs = self.stored(generation)
            cost += np.asarray(costs.values)[costs.filled].sum(axis=0)
            labels += int(values.filled.sum())
            missing += int(np.isnan(np.asarray(values.values)[values.filled]).any(axis=1).sum())
        sums = dict(zip(self._format.figures, cost[len(COSTS) :].tolist(), strict=True))
        return LabelTotals(int(cost[0]), int(cost[1]), float(cost[2]), labels, missing, sums)

    def values(self, places: Places) -> Floats:
        """Return the values at places, counted over all generations, `(n, width)`."""
        found = np.empty((len(places), self._format.width), np.float32)
        start = 0
        for generation in range(len(self._plan.generations)):
            held = self.stored(generation)[0].values
            here = (places >= start) & (places < start + len(held))
            found[here] = held[places[here] - start]
            start += len(held)
        return found

    def _check_whole(self) -> None:
        # Stores that are not there would be made, however large the plan says that they are.
        made = (
            self._path(what, at, ".json") for at in range(len(self._plan.generations)) for what in ("values", "costs")
        )
        if not (all(head.exists() for head in made) and LabelStore.whole(self)):
            raise DataError(f"labels in {str(self._folder)!r} are not complete; run the same command again")

    @property
    def _plan(self) -> PlanT:
        if self.plan is None:
            raise DataError(f"there is no label plan in {str(self._folder)!r}; use another --out")
        return self.plan

    @property
    def _format(self) -> LabelFormat:
        assert self.format is not None, "a plan is read and written together with its format"
        return self.format

    def _name(self, chunk: PlannedChunk, executor: LabelExecutor) -> str:
        return executor.name(self.kind, chunk.source, chunk.ids)

    def _stores(self, generation: int) -> tuple[RowStore, RowStore]:
        if generation not in self._opened:
            (labels, chunks), kept = self._plan.sizes(generation), self._format
            width = len(COSTS) + len(kept.figures)
            self._opened[generation] = (
                RowStore.open(self._path("values", generation), labels, kept.width, dtype=kept.dtype),
                RowStore.open(self._path("costs", generation), chunks, width, dtype="float64"),
            )
        return self._opened[generation]

    def _read(self) -> tuple[PlanT | None, LabelFormat | None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        heads = sorted(self._folder.glob("plan-???.json"))
        if not heads:
            return None, None
        reading = heads[-1]
        try:
            head = read_json(reading)
            kind = head["kind"]
            kept = LabelFormat(**{**head["format"], "figures": tuple(head["format"]["figures"])})
            tables = []
            for reading in heads:
                whole = read_json(reading)["table"]
                reading = reading.with_suffix(".parquet")
                if digest(reading) != whole:
                    raise ValueError(MISMATCH)
                table = read_columns(reading)
                tables.append({name: as_numpy(table[name]) for name in table.column_names})
            plan: PlanT | None = self.plan_type.of(head, tables) if kind == self.kind else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f"the label plan {str(reading)!r} is damaged ({error}); use another --out") from error
        if plan is None:
            raise UsageError(
                f"the labels in {str(self._folder)!r} were made by another teacher, one that labels {kind}s, and this one labels "
                f"{self.kind}s; use another --out"
            )
        return plan, kept

    def _write_generation(self, plan: PlanT, generation: int) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        with atomic(self._path("plan", generation, ".parquet")) as part, part.open("wb") as stream:
            pq.write_table(
                pa.table({name: pa.array(column) for name, column in plan.columns(generation).items()}), stream
            )
        self._write_head(plan, generation)

    def _write_head(self, plan: PlanT, generation: int) -> None:
        table = digest(self._path("plan", generation, ".parquet"))
        head = {"kind": self.kind, "format": asdict(self._format), **plan.to_json(), "table": table}
        write_sealed(self._path("plan", generation, ".json"), head)

    def _path(self, what: str, generation: int, end: str = "") -> Path:
        return self._folder / f"{what}-{generation:03d}{end}"
