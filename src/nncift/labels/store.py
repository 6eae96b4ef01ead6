"""Labels of a run, one face for teachers that are paid by the pair and those that are paid by the row.

What stages need of either: which rows were planned before, a grown plan, the labels computed, the utilities by split, and
the cost of the full teacher.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nncift.core.fingerprints import fingerprint
from nncift.core.pairs import LabelledPairs
from nncift.core.tasks import Keep, Task, TaskResult, as_floats
from nncift.data import Examples
from nncift.errors import DataError
from nncift.labels import BASE, LabelBudget, LabelPlan, describe, grow
from nncift.labels.pair_labels import LabelStore
from nncift.labels.row_labels import SCORE, RowFormat, RowLabelStore, RowPlan, describe_rows, grow_rows
from nncift.storage.atomic import read_arrays, read_json, write_arrays, write_sealed
from nncift.teachers import Chunk, ChunkLabels, RowLabels, RowTeacher, Teacher
from nncift.teachers.abilities import Monitored, figures_of, warm_up_cost

log = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class Spent:
    """What labelling has cost so far: tokens and passes of the teacher's model, and seconds of earlier sessions' chunks."""

    tokens: int
    passes: int
    seconds_before: float


class LabelExecutor(Protocol):
    """Has tasks of a plan labelled."""

    def name(self, kind: str, source: str | None, ids: Sequence[str]) -> str:
        """Return a hash of what a task is about: its rows and their content."""
        ...

    def know(self, ids: Sequence[str]) -> None:
        """Make the teacher of this process know rows."""
        ...

    def map(
        self, method: str, what: str, tasks: Sequence[Task], keep: Keep, every: Callable[[], Iterable[str]]
    ) -> None:
        """Have tasks done by a method of `ModelWorker` and keep each result; every: gives the names of all, done or not."""
        ...


class Labelling(Protocol):
    """The labels of a run on disk."""

    def planned(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the target and source ids that a plan exists for."""
        ...

    def grown(self, axes: Axes, budget: LabelBudget, seed: int) -> LabelPlan | RowPlan:
        """Return the plan that the wish asks for; nothing is written."""
        ...

    def compute(self, plan: LabelPlan | RowPlan, work: LabelExecutor) -> Spent:
        """Have what is pending labelled, and keep it."""
        ...

    def whole(self) -> bool:
        """Tell whether every planned label can be read: none is missing, none is damaged."""
        ...

    def utilities(self) -> dict[str, LabelledPairs]:
        """Return the utilities by split, on the plan's axes."""
        ...

    def counts(self) -> dict[str, int]:
        """Return the number of labels by split."""
        ...

    def training(self) -> int:
        """Return what is planned to train on: pairs, or rows of the sources; 0 before there is a plan."""
        ...

    def full_passes(self) -> int:
        """Return the passes of the full teacher."""
        ...

    def warnings(self) -> list[str]:
        """Return sentences about labels that could not be had."""
        ...


class PairLabelling:
    """Labels of a teacher that is paid by the pair."""

    def __init__(self, folder: Path, teacher: Teacher) -> None:
        self._teacher = teacher
        self._store = LabelStore.open(folder)

    def planned(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the ids of the plan's axes."""
        plan = self._store.plan
        return ((), ()) if plan is None else (plan.target_ids, plan.source_ids)

    def grown(self, axes: Axes, budget: LabelBudget, seed: int) -> LabelPlan:
        """Return the grown plan."""
        return grow(
            self._store.plan,
            axes.target_ids,
            axes.sources.ids,
            budget,
            seed,
            shared=axes.shared,
            relative=self._teacher.relative,
        )

    def compute(self, plan: LabelPlan | RowPlan, work: LabelExecutor) -> Spent:
        """Label chunk by chunk."""
        if not isinstance(plan, LabelPlan):
            raise DataError("this run was planned for a teacher that is paid by the row; use another --out")
        store = self._store
        store.adopt(plan)
        before = store.progress().seconds

        def named(chunk: Chunk) -> tuple[str, tuple[str, ...]]:
            ids = tuple(item for item in (*chunk.targets, chunk.source) if item is not None)
            return work.name("pair", chunk.source, ids), ids

        def every() -> Iterator[str]:
            for generation in range(len(plan.generations)):
                yield from (named(chunk)[0] for chunk, _ in plan.generation_chunks(generation))

        pending = {}
        for generation, chunk, positions in store.pending():
            name, ids = named(chunk)
            pending[name] = generation, positions, Task(name, chunk.index, chunk, len(chunk.targets), ids)

        def keep(task: Task, result: TaskResult) -> None:
            generation, positions, _ = pending[task.name]
            labels = ChunkLabels(as_floats(result, "values"), result.tokens, bool(result.details["shortened"]))
            store.write(generation, task.work, positions, labels, result.seconds)

        try:
            work.map("label", "labelling pairs", [task for *_, task in pending.values()], keep, every)
        finally:
            store.flush()
        done = store.progress()
        return Spent(done.tokens, done.passes, before)

    def whole(self) -> bool:
        """Tell whether no chunk is pending."""
        return next(self._store.pending(), None) is None

    def utilities(self) -> dict[str, LabelledPairs]:
        """Return the utilities by split."""
        return self._store.utilities(relative=self._teacher.relative)

    def training(self) -> int:
        """Return the training pairs that are planned."""
        return 0 if self._store.plan is None else describe(self._store.plan)["train"]

    def counts(self) -> dict[str, int]:
        """Return the planned labels by split."""
        return describe(self.plan)

    def full_passes(self) -> int:
        """Return the passes of labelling every pair that fits, as far as the labelled pairs tell."""
        done = self._store.progress()
        pairs = self.plan.full_passes(relative=False)
        without = len(self.plan.target_ids) if self._teacher.relative else 0
        return without + round(pairs * (1 - done.missing / max(done.pairs, 1)))

    def warnings(self) -> list[str]:
        """Return what did not fit."""
        done = self._store.progress()
        found = []
        if done.missing:
            found.append(
                f"{done.missing} of {done.pairs} labelled pairs ({100 * done.missing / done.pairs:.1f} %) do not fit the "
                "model's context and stay without a value."
            )
        if done.shortened:
            found.append(
                f"{done.shortened} of {done.blocks} examples in front ({100 * done.shortened / done.blocks:.1f} %) were "
                "shortened at their prompt's start to half of the model's context."
            )
        return found

    @property
    def relative(self) -> bool:
        """Whether targets without an example are labelled, too."""
        return self._teacher.relative

    @property
    def plan(self) -> LabelPlan:
        """The plan. Raises DataError where it is gone."""
        if self._store.plan is None:
            raise DataError("the labels of this run are gone; use another --out")
        return self._store.plan


class RowLabelling:
    """Labels of a teacher that is paid by the row. Utilities are kept on disk, so that reading them needs no teacher."""

    def __init__(self, folder: Path, teacher: RowTeacher) -> None:
        self._folder = folder
        self._teacher = teacher
        self._store = RowLabelStore.open(folder)

    def planned(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the ids of the plan's axes."""
        plan = self._store.plan
        return ((), ()) if plan is None else (plan.target_ids, plan.source_ids)

    def grown(self, axes: Axes, budget: LabelBudget, seed: int) -> RowPlan:
        """Return the grown plan."""
        return grow_rows(self._store.plan, axes.target_ids, axes.sources.ids, budget, seed, shared=axes.shared)

    def compute(self, plan: LabelPlan | RowPlan, work: LabelExecutor) -> Spent:
        """Measure chunk by chunk, then derive the utilities of all pairs among measured rows."""
        if not isinstance(plan, RowPlan):
            raise DataError("this run was planned for a teacher that is paid by the pair; use another --out")
        store, teacher = self._store, self._teacher
        store.adopt(plan)
        work.know(sorted(plan.measured))
        store.set_format(RowFormat.of(teacher))
        before = store.progress().seconds
        names = figures_of(teacher)
        sizes = [0, *accumulate(len(chunks) for chunks in plan.chunks)]
        pending = {}
        for generation, index, ids in store.pending():
            name = work.name("rows", None, ids)
            pending[name] = generation, index, Task(name, sizes[generation] + index, ids, len(ids), ids)

        def every() -> Iterator[str]:
            return (work.name("rows", None, ids) for chunks in plan.chunks for ids in chunks)

        def keep(task: Task, result: TaskResult) -> None:
            generation, index, _ = pending[task.name]
            sums = dict(zip(names, np.asarray(result.arrays["figures"], np.float64).tolist(), strict=True))
            labels = RowLabels(as_floats(result, "values"), result.tokens, result.passes, sums)
            store.write(generation, index, labels, result.seconds)

        try:
            work.map("measure", "measuring rows", [task for *_, task in pending.values()], keep, every)
        finally:
            store.flush()
        self._save(store.utilities(teacher))
        done = store.progress()
        # What precedes all rows, such as a warm-up, is paid once. On disk, since a finished run is told of without its teacher.
        once = warm_up_cost(teacher)
        means = {name: total / max(done.rows, 1) for name, total in done.figures.items()}
        sentences = teacher.warnings(means) if isinstance(teacher, Monitored) else ()
        write_sealed(self._once, {**vars(once), "warnings": sentences, "figures": means})
        return Spent(done.tokens + once.tokens, done.passes + once.passes, before)

    def whole(self) -> bool:
        """Tell whether no chunk is pending, and what follows from them can be read."""
        if next(self._store.pending(), None) is not None:
            return False
        try:
            self.utilities()
            self.full_passes()
        except DataError as error:
            log.warning("%s", error)
            return False
        return True

    def utilities(self) -> dict[str, LabelledPairs]:
        """Return the utilities by split. Raises DataError where their file is missing, damaged or of another plan."""
        return load_utilities(self._folder, self._plan)

    def training(self) -> int:
        """Return the rows that are planned to train on."""
        return 0 if self._store.plan is None else len(self._store.plan.train_sources)

    def counts(self) -> dict[str, int]:
        """Return the number of measured rows, and of the pairs among them by split."""
        rows = {name: count for name, count in describe_rows(self._plan).items() if name.endswith("rows")}
        return {**rows, **{name: len(pairs) for name, pairs in self.utilities().items()}}

    def full_passes(self) -> int:
        """Return the passes of measuring every row, what precedes all rows included."""
        done = self._store.progress()
        try:
            once = int(read_json(self._once)["passes"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"{str(self._once)!r} is missing or damaged ({error}); use another --out") from error
        return round(self._plan.full_rows * done.passes / max(done.rows, 1)) + once

    def warnings(self) -> list[str]:
        """Return how many rows have no value, and what the teacher said of its values when they were measured."""
        done = self._store.progress()
        missing = [f"{done.missing} of {done.rows} measured rows have no value."] if done.missing else []
        return [*missing, *read_json(self._once).get("warnings", ())]

    @property
    def _once(self) -> Path:
        return self._folder / "once.json"

    @property
    def _plan(self) -> RowPlan:
        if self._store.plan is None:
            raise DataError("the labels of this run are gone; use another --out")
        return self._store.plan

    def _save(self, utilities: dict[str, LabelledPairs]) -> None:
        arrays: dict[str, Any] = {
            f"{name}.{part}": getattr(pairs, part)
            for name, pairs in utilities.items()
            for part in ("target", "source", "value")
        }
        write_arrays(_utility_file(self._folder, self._plan), arrays)


def load_utilities(folder: Path, plan: RowPlan) -> dict[str, LabelledPairs]:
    """Return the utilities that a row teacher left. Raises DataError where their file is missing, damaged or of another plan."""
    file = _utility_file(folder, plan)
    try:
        arrays = read_arrays(file)
        names = sorted({name.split(".")[0] for name in arrays})
        parts = {name: [arrays[f"{name}.{part}"] for part in ("target", "source", "value")] for name in names}
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{str(file)!r} cannot be read: {error}; run the same command again") from error
    return {name: LabelledPairs(plan.target_ids, plan.source_ids, *found) for name, found in parts.items()}


def _utility_file(folder: Path, plan: RowPlan) -> Path:
    return folder / f"utility-{fingerprint(sorted(plan.measured))}.safetensors"


def open_labels(folder: Path, teacher: Teacher | RowTeacher) -> Labelling:
    """Return the labels in a folder, for the kind of teacher at hand."""
    if isinstance(teacher, RowTeacher):
        return RowLabelling(folder, teacher)
    return PairLabelling(folder, teacher)


def read_utilities(folder: Path) -> dict[str, LabelledPairs]:
    """Return the utilities of a finished run by split, without its teacher. Raises DataError where there are none."""
    if (store := LabelStore.open(folder)).plan is not None:
        # Labels without an example in front are planned for relative teachers alone.
        relative = bool((store.plan.entries.split == BASE).any())
        return store.utilities(relative=relative)
    if (rows := RowLabelStore.open(folder)).plan is not None:
        return load_utilities(folder, rows.plan)
    raise DataError(f"there are no labels in {str(folder)!r}; run the same command again")
