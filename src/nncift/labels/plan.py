"""Label plans: axes, the items set apart, and what is labelled, by generation: one for every time that the plan grew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from nncift.core.arrays import Codes, Places
from nncift.core.result_types import JsonObject
from nncift.teachers import Chunk

SPLITS = ("base", "train", "validation", "q2", "q3", "test")
BASE, TRAIN, VALIDATION, Q2, Q3, TEST = range(6)
NO_SOURCE = -1
SCORE = ("score",)
"""The one target of a pointwise teacher: what it gives a row is a single number."""
ROLES = ("train", "validation", "test")
ROLES_OF = {
    "train": ("train", "train"),
    "validation": ("validation", "validation"),
    "test": ("test", "test"),
    "q2": ("test", "train"),
    "q3": ("train", "test"),
}
"""Roles of target and source in the pairs of a split; all other pairs are the rest."""


@dataclass(frozen=True)
class Roles:
    """The items set apart, by axis; where targets and sources are the same rows, an item has one role on both."""

    validation_targets: tuple[str, ...] = ()
    validation_sources: tuple[str, ...] = ()
    test_targets: tuple[str, ...] = ()
    test_sources: tuple[str, ...] = ()

    def of(self, role: str, axis: str) -> tuple[str, ...]:
        """Return the items of a role (validation or test) on an axis (target or source)."""
        ids: tuple[str, ...] = vars(self)[f"{role}_{axis}s"]
        return ids

    @property
    def targets_apart(self) -> bool:
        """Whether targets are set apart. Where they are too few, or a pointwise teacher's one, each has every role."""
        return bool(self.validation_targets or self.test_targets)

    def apart(self, axis: str) -> set[str]:
        """Return all items of an axis that are set apart."""
        return {*self.of("validation", axis), *self.of("test", axis)}


@dataclass(frozen=True, eq=False)
class PlannedChunk:
    """What is labelled in one go. A plan fixes what a chunk consists of, so its values are the same whenever it is computed.

    place: among all chunks of the plan. generation, index: which of the plan's, and which chunk of that. positions: of its values
    among those of its generation. task: what a teacher is given: a `Chunk`, or ids of rows. ids: the rows that it must know.
    """

    place: int
    generation: int
    index: int
    positions: Places
    task: Any
    ids: tuple[str, ...]
    source: str | None = None


@dataclass(frozen=True)
class Entries:
    """Planned labels, one per row: codes into the plan's axes (`source` is -1 without an example), split and chunk."""

    target: Codes = field(default_factory=lambda: np.empty(0, np.int32))
    source: Codes = field(default_factory=lambda: np.empty(0, np.int32))
    split: npt.NDArray[np.int8] = field(default_factory=lambda: np.empty(0, np.int8))
    chunk: Codes = field(default_factory=lambda: np.empty(0, np.int32))

    def __len__(self) -> int:
        return len(self.target)

    def __add__(self, other: Entries) -> Entries:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Entries(*(np.concatenate(both) for both in pairs))


@dataclass(frozen=True)
class LabelPlan:
    """What the teacher labels: axes, roles, and entries by generation (one for every time that the plan grew).

    target_ids and source_ids: axes with the ids attached; shared: both are the same rows, and the diagonal is masked.
    """

    target_ids: tuple[str, ...]
    source_ids: tuple[str, ...]
    shared: bool
    roles: Roles
    generations: tuple[Entries, ...] = ()

    @property
    def entries(self) -> Entries:
        """All entries, oldest first."""
        return sum(self.generations, Entries())

    @property
    def chunks(self) -> int:
        """Number of chunks over all generations."""
        return 1 + max((int(entries.chunk.max()) for entries in self.generations if len(entries)), default=-1)

    def chunks_of(self, generation: int) -> list[PlannedChunk]:
        """Return the chunks of a generation."""
        entries = self.generations[generation]
        order = np.argsort(entries.chunk, kind="stable")
        starts = np.flatnonzero(np.diff(entries.chunk[order], prepend=-1))
        found: list[PlannedChunk] = []
        for positions in np.split(order, starts[1:]) if len(order) else []:
            code, place = int(entries.source[positions[0]]), int(entries.chunk[positions[0]])
            source = None if code == NO_SOURCE else self.source_ids[code]
            targets = tuple(self.target_ids[target] for target in entries.target[positions])
            ids = targets if source is None else (*targets, source)
            task = Chunk(place, source, targets)
            found.append(PlannedChunk(place, generation, len(found), positions, task, ids, source))
        return found

    def sizes(self, generation: int) -> tuple[int, int]:
        """Return the numbers of pairs and of chunks of a generation."""
        return len(self.generations[generation]), len(np.unique(self.generations[generation].chunk))

    def columns(self, generation: int) -> Mapping[str, npt.NDArray[Any]]:
        """Return target, source, split and chunk of every pair."""
        return vars(self.generations[generation])

    def to_json(self) -> JsonObject:
        """Return all but the generations."""
        return _record(self)

    @classmethod
    def of(cls, record: JsonObject, tables: Sequence[Mapping[str, npt.NDArray[Any]]]) -> LabelPlan:
        """Read a plan. Raises ValueError for codes beyond its axes and ids that come twice, KeyError for what is missing."""
        targets, sources = _axes(record)
        generations = tuple(
            Entries(table["target"], table["source"], table["split"], table["chunk"]) for table in tables
        )
        for entries in generations:
            if any(column.dtype.kind != "i" for column in vars(entries).values()):
                raise ValueError("codes that are no integers")
            for codes, lowest, size in ((entries.target, 0, len(targets)), (entries.source, NO_SOURCE, len(sources))):
                if len(codes) and not lowest <= codes.min() <= codes.max() < size:
                    raise ValueError("codes beyond the axes")
        return cls(targets, sources, bool(record["shared"]), _roles(record), generations)

    @property
    def relative(self) -> bool:
        """Whether targets are labelled without an example, too, which is done for relative teachers alone."""
        return any(bool((entries.split == BASE).any()) for entries in self.generations)

    def full_passes(self, *, relative: bool) -> int:
        """Return the passes of labelling every pair, the masked diagonal left out."""
        pairs = len(self.target_ids) * len(self.source_ids) - (len(self.source_ids) if self.shared else 0)
        return pairs + (len(self.target_ids) if relative else 0)


@dataclass(frozen=True)
class RowPlan:
    """Which rows are measured.

    target_ids and source_ids: axes; shared: both are the same rows. train_targets, train_sources: measured to learn from.
    generations: the rows of every generation, in the groups in which they are measured.
    """

    target_ids: tuple[str, ...]
    source_ids: tuple[str, ...]
    shared: bool
    roles: Roles
    train_targets: tuple[str, ...]
    train_sources: tuple[str, ...]
    generations: tuple[tuple[tuple[str, ...], ...], ...] = ()

    @property
    def measured(self) -> set[str]:
        """Ids of all planned rows."""
        return set(self.order)

    @property
    def order(self) -> list[str]:
        """Ids of all planned rows, oldest generation first, as their values lie."""
        return [item for chunks in self.generations for chunk in chunks for item in chunk]

    @property
    def full(self) -> set[str]:
        """Ids of the rows that the full teacher measures."""
        return {*self.source_ids, *(() if self.target_ids == SCORE else self.target_ids)}

    @property
    def full_rows(self) -> int:
        """Number of rows that the full teacher measures."""
        return len(self.full)

    def of_role(self, role: str, axis: str) -> tuple[str, ...]:
        """Return the planned rows of an axis (target or source) by role (train, validation or test)."""
        ids: tuple[str, ...] = vars(self)[f"train_{axis}s"] if role == "train" else self.roles.of(role, axis)
        return ids

    def chunks_of(self, generation: int) -> list[PlannedChunk]:
        """Return the chunks of a generation."""
        first, start, found = sum(map(len, self.generations[:generation])), 0, list[PlannedChunk]()
        for index, ids in enumerate(self.generations[generation]):
            positions = np.arange(start, start + len(ids))
            found.append(PlannedChunk(first + index, generation, index, positions, ids, ids))
            start += len(ids)
        return found

    def sizes(self, generation: int) -> tuple[int, int]:
        """Return the numbers of rows and of chunks of a generation."""
        return sum(map(len, self.generations[generation])), len(self.generations[generation])

    def columns(self, generation: int) -> Mapping[str, Sequence[Any]]:
        """Return the id and the chunk of every row."""
        chunks = self.generations[generation]
        return {
            "id": [item for ids in chunks for item in ids],
            "chunk": [index for index, ids in enumerate(chunks) for _ in ids],
        }

    def to_json(self) -> JsonObject:
        """Return all but the generations."""
        return _record(self)

    @classmethod
    def of(cls, record: JsonObject, tables: Sequence[Mapping[str, npt.NDArray[Any]]]) -> RowPlan:
        """Read a plan. Raises ValueError for ids that are none or come twice, KeyError for what is missing."""
        generations = []
        for table in tables:
            if table["chunk"].dtype.kind != "i" or not all(isinstance(item, str) for item in table["id"]):
                raise ValueError("ids that are no texts, or chunks that are no integers")
            starts = np.flatnonzero(np.diff(table["chunk"])) + 1
            generations.append(tuple(tuple(ids.tolist()) for ids in np.split(table["id"], starts)))
        axes = _axes(record)
        train = [tuple(record[name]) for name in ("train_targets", "train_sources")]
        return cls(axes[0], axes[1], bool(record["shared"]), _roles(record), train[0], train[1], tuple(generations))


def _record(plan: LabelPlan | RowPlan) -> JsonObject:
    fields = {name: value for name, value in vars(plan).items() if name != "generations"}
    return {**fields, "roles": vars(plan.roles)}


def _axes(record: JsonObject) -> tuple[tuple[str, ...], tuple[str, ...]]:
    targets, sources = (tuple(record[name]) for name in ("target_ids", "source_ids"))
    for ids in (targets, sources):
        if not ids or not all(isinstance(item, str) for item in ids) or len(set(ids)) != len(ids):
            raise ValueError("an axis without ids, or with one that comes twice")
    return targets, sources


def _roles(record: JsonObject) -> Roles:
    return Roles(**{name: tuple(ids) for name, ids in record["roles"].items()})


def describe(plan: LabelPlan) -> dict[str, int]:
    """Return the number of planned labels by split."""
    split = plan.entries.split
    return {name: int((split == code).sum()) for code, name in enumerate(SPLITS)}


def describe_rows(plan: RowPlan) -> dict[str, int]:
    """Return the number of planned rows, by what they are for, and of the pairs (or scores) among them by split."""
    targets, sources = ({role: set(plan.of_role(role, axis)) for role in ROLES} for axis in ("target", "source"))
    counts = {"rows": len(plan.measured)}
    counts |= {
        f"{role}_rows": len(ids if plan.target_ids == SCORE else targets[role] | ids) for role, ids in sources.items()
    }
    if plan.target_ids == SCORE:
        return counts | {role: len(ids) for role, ids in sources.items()}
    if not plan.roles.targets_apart:
        return counts | {role: len(targets["train"]) * len(ids) for role, ids in sources.items()}
    for split, (target, source) in ROLES_OF.items():
        masked = len(targets[target] & sources[source])
        counts[split] = len(targets[target]) * len(sources[source]) - masked
    return counts
