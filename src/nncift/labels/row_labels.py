"""Labels of linear teachers: a few rows are measured, and all pairs among them follow (method.md 1, plan `rows`).

A linear teacher is paid by the row (LESS, SelectIT), so u of the rows cost u of the full teacher and give all `u n * u n` pairs
among them. The rows that are measured carry the same roles as in any plan: training, validation and test items are disjoint.
On disk, `labels/` holds for every generation `rows-000.json` (which rows, in which chunks) and two `RowStore`s: features, and
the cost of every chunk, which is written last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nncift.core.pairs import LabelledPairs
from nncift.core.seeds import shuffled
from nncift.errors import DataError, UsageError
from nncift.labels import LabelBudget, Roles, set_apart
from nncift.labels.sizes import held_out_of_rows, side
from nncift.storage.atomic import read_json, write_sealed
from nncift.storage.row_store import Chunks, RowStore
from nncift.teachers import FeatureTeacher, RowLabels, RowTeacher
from nncift.teachers.abilities import figures_of, stored_as
from nncift.teachers.utility_blocks import utility_blocks

CHUNK_ROWS = 16
COSTS = ("tokens", "passes", "seconds")
SCORE = ("score",)
"""The one target of a pointwise teacher: what it gives a row is a single number."""

Floats = npt.NDArray[np.float32]
SPLITS = ("train", "validation", "q2", "q3", "test", "rest")
ROLES_OF = {
    "train": ("train", "train"),
    "validation": ("validation", "validation"),
    "test": ("test", "test"),
    "q2": ("test", "train"),
    "q3": ("train", "test"),
}
"""Roles of target and source in the pairs of a split; all other pairs are the rest."""


@dataclass(frozen=True)
class RowPlan:
    """Which rows are measured.

    target_ids and source_ids: axes; shared: both are the same rows. train_targets, train_sources: measured to learn from.
    chunks: the rows of every generation, in the groups in which they are measured.
    """

    target_ids: tuple[str, ...]
    source_ids: tuple[str, ...]
    shared: bool
    roles: Roles
    train_targets: tuple[str, ...]
    train_sources: tuple[str, ...]
    chunks: tuple[tuple[tuple[str, ...], ...], ...] = ()

    @property
    def measured(self) -> set[str]:
        """Ids of all planned rows."""
        return {item for generation in self.chunks for chunk in generation for item in chunk}

    @property
    def full(self) -> set[str]:
        """Ids of the rows that the full teacher measures."""
        return {*self.source_ids, *(() if self.target_ids == SCORE else self.target_ids)}

    @property
    def full_rows(self) -> int:
        """Number of rows that the full teacher measures."""
        return len(self.full)


def grow_rows(
    previous: RowPlan | None,
    target_ids: Sequence[str],
    source_ids: Sequence[str],
    budget: LabelBudget,
    seed: int,
    *,
    shared: bool,
) -> RowPlan:
    """Return a plan for these axes that measures u of the rows of each, and keeps all that `previous` measures.

    A small target set (see `plan.sizes.FEW_TARGETS`) is measured whole. Raises UsageError where the wish is below what exists.
    """
    old = previous or RowPlan((), (), shared, Roles(), (), ())
    pointwise = tuple(target_ids) == SCORE
    sides = {
        "target": side(budget, len(target_ids), few=not shared),
        "source": side(budget, len(source_ids), few=False),
    }
    held = (
        held_out_of_rows(budget, len(target_ids), sides["target"]),
        held_out_of_rows(budget, len(source_ids), sides["source"]),
    )
    untouched = set(target_ids) - old.measured, set(source_ids) - old.measured
    roles = set_apart(old.roles, untouched, held, seed, shared=shared or pointwise)
    if pointwise:
        roles = Roles((), roles.validation_sources, (), roles.test_sources)
    train = {}
    for axis, ids in (("target", target_ids), ("source", source_ids)):
        apart = {*getattr(roles, f"test_{axis}s"), *getattr(roles, f"validation_{axis}s")}
        kept: tuple[str, ...] = getattr(old, f"train_{axis}s")
        if len(kept) > sides[axis]:
            raise UsageError(
                f"this run has {len(kept)} measured rows to train on, and --labels asks for {sides[axis]}; labels are never "
                "thrown away: ask for as many or more, or use another --out"
            )
        rest = shuffled(set(ids) - apart - set(kept), seed, "rows", "item" if shared else axis)
        train[axis] = (*kept, *rest[: sides[axis] - len(kept)])
    # A pointwise teacher's one target is no row.
    wanted = [*(() if pointwise else train["target"]), *train["source"]]
    wanted += [*roles.validation_targets, *roles.validation_sources]
    wanted += [*roles.test_targets, *roles.test_sources]
    known = old.measured
    fresh = [item for item in dict.fromkeys(wanted) if item not in known]
    added = tuple(tuple(fresh[start : start + CHUNK_ROWS]) for start in range(0, len(fresh), CHUNK_ROWS))
    chunks = (*old.chunks, added) if added else old.chunks
    return RowPlan(tuple(target_ids), tuple(source_ids), shared, roles, train["target"], train["source"], chunks)


def describe_rows(plan: RowPlan) -> dict[str, int]:
    """Return the number of planned rows, by what they are for, and of the pairs (or scores) among them by split."""
    targets, sources = ({} if plan.target_ids == SCORE else _roles(plan, "target")), _roles(plan, "source")
    counts = {"rows": len(plan.measured)}
    counts |= {f"{role}_rows": len(targets.get(role, set()) | ids) for role, ids in sources.items()}
    if plan.target_ids == SCORE:
        return counts | {role: len(ids) for role, ids in sources.items()}
    for split, (target, source) in ROLES_OF.items():
        masked = len(targets[target] & sources[source])
        counts[split] = len(targets[target]) * len(sources[source]) - masked
    return counts


def _roles(plan: RowPlan, axis: str) -> dict[str, set[str]]:
    """Return the planned rows of an axis by role."""
    return {
        "train": set(getattr(plan, f"train_{axis}s")),
        "validation": set(getattr(plan.roles, f"validation_{axis}s")),
        "test": set(getattr(plan.roles, f"test_{axis}s")),
    }


@dataclass(frozen=True)
class RowFormat:
    """What is kept of a row: `width` values of a type, and of a chunk the sums of some figures beside its cost."""

    width: int
    dtype: str = "float32"
    figures: tuple[str, ...] = ()

    @classmethod
    def of(cls, teacher: RowTeacher) -> RowFormat:
        """Return what a teacher asks for."""
        return cls(teacher.width, stored_as(teacher), figures_of(teacher))

    @property
    def row_bytes(self) -> int:
        """Bytes of a row's values on disk."""
        return self.width * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class RowProgress:
    """Totals over finished chunks: tokens and passes of the teacher's model, seconds, rows, and rows without a value.

    figures: sums of what a monitored teacher counts.
    """

    tokens: int
    passes: int
    seconds: float
    rows: int
    missing: int
    figures: Mapping[str, float] = field(default_factory=dict)


class RowLabelStore:
    """The measured rows of a run."""

    def __init__(self, folder: Path, plan: RowPlan | None) -> None:
        self._folder = folder
        self._chunks = Chunks(self._open)
        self._starts: dict[int, list[int]] = {}
        self._known: RowFormat | None = None
        self.plan = plan

    @classmethod
    def open(cls, folder: Path) -> RowLabelStore:
        """Open the rows in a folder, which may be empty. Raises DataError where a file there cannot be read."""
        folder.mkdir(parents=True, exist_ok=True)
        heads = sorted(folder.glob("rows-???.json"))
        if not heads:
            return cls(folder, None)
        path = heads[-1]
        try:
            record = []
            for path in heads:
                record.append(read_json(path))
                _ = record[-1]["chunks"]
            last = record[-1]
            roles = Roles(**{name: tuple(ids) for name, ids in last["roles"].items()})
            axes = [tuple(last[name]) for name in ("target_ids", "source_ids")]
            train = [tuple(last[name]) for name in ("train_targets", "train_sources")]
            chunks = tuple(tuple(tuple(chunk) for chunk in head["chunks"]) for head in record)
            plan = RowPlan(axes[0], axes[1], bool(last["shared"]), roles, train[0], train[1], chunks)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f"the label plan {path.name} is damaged ({error}); use another --out") from error
        return cls(folder, plan)

    def adopt(self, plan: RowPlan) -> None:
        """Write the generations that a plan has beyond those on disk, and its axes and roles into the last."""
        for generation, chunks in enumerate(plan.chunks):
            path = self._folder / f"rows-{generation:03d}.json"
            if not path.exists() or generation == len(plan.chunks) - 1:
                record: dict[str, Any] = {**asdict(plan), "chunks": chunks}
                write_sealed(path, record)
        self.plan = plan

    def set_format(self, wanted: RowFormat) -> None:
        """Fix what is kept of a row. Raises DataError where an earlier session kept something else."""
        known = self._read_format()
        if known is not None and known.width != wanted.width:
            raise DataError(
                f"the rows of this run have {known.width} values each, and the teacher gives {wanted.width}; use another --out"
            )
        if known is not None and known != wanted:
            raise DataError(f"the rows of this run were kept as {known}, and now it is {wanted}; use another --out")
        write_sealed(self._folder / "width.json", asdict(wanted))
        self._known = wanted

    def _read_format(self) -> RowFormat | None:
        path = self._folder / "width.json"
        try:
            record = read_json(path) if path.exists() else None
            if record is None:
                return None
            record = record if isinstance(record, dict) else {"width": record}
            return RowFormat(
                int(record["width"]), str(record.get("dtype", "float32")), tuple(record.get("figures", ()))
            )
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise DataError(f"{str(path)!r} is damaged ({error}); use another --out") from error

    def pending(self) -> Iterator[tuple[int, int, tuple[str, ...]]]:
        """Yield what is not measured yet: generation, chunk, ids."""
        for generation, chunks in enumerate(self._plan.chunks):
            values, done = self._chunks.of(generation)
            for index, (chunk, start) in enumerate(zip(chunks, self._starts_of(generation), strict=True)):
                if not (done.filled[index] and values.filled[start : start + len(chunk)].all()):
                    yield generation, index, chunk

    def write(self, generation: int, index: int, labels: RowLabels, seconds: float) -> None:
        """Keep a chunk's values and cost; they are on disk after `flush`, which comes by itself now and then."""
        start = self._starts_of(generation)[index]
        rows = np.arange(start, start + len(labels.values))
        cost = [labels.tokens, labels.passes, seconds, *(labels.figures[name] for name in self._format.figures)]
        self._chunks.keep(generation, rows, labels.values, index, cost)

    def flush(self) -> None:
        """Put what waits on disk."""
        self._chunks.flush()

    def progress(self) -> RowProgress:
        """Sum up the finished chunks."""
        figures = self._format.figures
        cost = np.zeros(len(COSTS) + len(figures))
        rows = missing = 0
        for generation in range(len(self._plan.chunks)):
            values, done = self._chunks.of(generation)
            cost += np.asarray(done.values)[np.asarray(done.filled)].sum(axis=0)
            filled = np.asarray(values.filled)
            rows += int(filled.sum())
            missing += int(np.isnan(np.asarray(values.values)[filled]).any(axis=1).sum())
        sums = dict(zip(figures, cost[len(COSTS) :].tolist(), strict=True))
        return RowProgress(int(cost[0]), int(cost[1]), float(cost[2]), rows, missing, sums)

    def utilities(self, teacher: RowTeacher) -> dict[str, LabelledPairs]:
        """Return the utilities by split; `rest` are pairs of measured rows that no other split has, known all the same."""
        plan = self._plan
        if next(self.pending(), None) is not None:
            raise DataError(f"rows in {str(self._folder)!r} are not all measured; run the same command again")
        ids = [item for generation in plan.chunks for chunk in generation for item in chunk]
        place = {item: row for row, item in enumerate(ids)}
        axis = {item: code for code, item in enumerate(plan.source_ids)}
        rows = [place[item] for item in plan.source_ids if item in place]
        columns = np.array([axis[ids[row]] for row in rows], np.int32)
        if plan.target_ids == SCORE:
            return _pointwise(plan, columns, self._features(np.array(rows, np.intp))[:, 0])
        across = {item: code for code, item in enumerate(plan.target_ids)}
        lines = [place[item] for item in plan.target_ids if item in place]
        codes = np.array([across[ids[row]] for row in lines], np.int32)
        if not isinstance(teacher, FeatureTeacher):
            raise UsageError(f"the teacher {teacher.name} says it is pairwise but has no utility of two rows")
        blocks = utility_blocks(
            teacher,
            self._features,
            np.array(lines, np.intp),
            np.array(rows, np.intp),
            [ids[line] for line in lines],
        )
        parts = [split_by_roles(plan, codes[across], columns[along], table) for across, along, table in blocks]
        return {name: _joined([part[name] for part in parts]) for name in SPLITS}

    def _features(self, places: npt.NDArray[np.intp]) -> Floats:
        """Return the values of rows, counted over all generations, `(n, width)`."""
        found = np.empty((len(places), self._format.width), np.float32)
        start = 0
        for generation, chunks in enumerate(self._plan.chunks):
            end = start + sum(map(len, chunks))
            here = (places >= start) & (places < end)
            found[here] = self._chunks.of(generation)[0].values[places[here] - start]
            start = end
        return found

    @property
    def _format(self) -> RowFormat:
        if self._known is None:
            self._known = self._read_format()
        if self._known is None:
            raise DataError("the rows of this run were never measured")
        return self._known

    @property
    def _plan(self) -> RowPlan:
        if self.plan is None:
            raise DataError("this run has no label plan yet")
        return self.plan

    def _starts_of(self, generation: int) -> list[int]:
        """Return the first row of every chunk of a generation."""
        if generation not in self._starts:
            chunks = self._plan.chunks[generation]
            self._starts[generation] = [0, *accumulate(len(chunk) for chunk in chunks)][: len(chunks)]
        return self._starts[generation]

    def _open(self, generation: int) -> tuple[RowStore, RowStore]:
        chunks, kept = self._plan.chunks[generation], self._format
        values, costs = (self._folder / f"row{what}-{generation:03d}" for what in ("values", "costs"))
        return (
            RowStore.open(values, sum(map(len, chunks)), kept.width, dtype=kept.dtype),
            RowStore.open(costs, len(chunks), len(COSTS) + len(kept.figures), dtype="float64"),
        )


def _pointwise(plan: RowPlan, columns: npt.NDArray[np.int32], values: Floats) -> dict[str, LabelledPairs]:
    roles = {
        **dict.fromkeys(plan.roles.validation_sources, "validation"),
        **dict.fromkeys(plan.roles.test_sources, "test"),
    }
    of = np.array([roles.get(plan.source_ids[code], "train") for code in columns])
    return {
        split: LabelledPairs(
            SCORE,
            plan.source_ids,
            np.zeros(int((of == split).sum()), np.int32),
            columns[of == split],
            values[of == split],
        )
        for split in ("train", "validation", "test")
    }


def split_by_roles(
    plan: RowPlan, codes: npt.NDArray[np.int32], columns: npt.NDArray[np.int32], table: Floats
) -> dict[str, LabelledPairs]:
    """Cut a table over measured targets and sources into splits by the roles of its two items."""
    roles = plan.roles
    part = {}
    for axis, ids, at in (("target", plan.target_ids, codes), ("source", plan.source_ids, columns)):
        record = dict.fromkeys(getattr(plan, f"train_{axis}s"), "train")
        record |= dict.fromkeys(getattr(roles, f"validation_{axis}s"), "validation")
        record |= dict.fromkeys(getattr(roles, f"test_{axis}s"), "test")
        part[axis] = np.array([record.get(ids[code], "other") for code in at])
    t, s = part["target"][:, None], part["source"][None, :]
    split = np.full(table.shape, SPLITS.index("rest"), np.uint8)
    for name, (target, source) in ROLES_OF.items():
        split[(t == target) & (s == source)] = SPLITS.index(name)
    if plan.shared:
        split[codes[:, None] == columns[None, :]] = len(SPLITS)
    found = {}
    for number, name in enumerate(SPLITS):
        rows, places = np.nonzero(split == number)
        found[name] = LabelledPairs(plan.target_ids, plan.source_ids, codes[rows], columns[places], table[rows, places])
    return found


def _joined(parts: Sequence[LabelledPairs]) -> LabelledPairs:
    if len(parts) == 1:
        return parts[0]
    joined = [np.concatenate([getattr(part, name) for part in parts]) for name in ("target", "source", "value")]
    return LabelledPairs(parts[0].target_ids, parts[0].source_ids, *joined)
