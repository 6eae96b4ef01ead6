"""Labels of teachers that label rows: a few rows are measured, and all pairs among them follow (method.md 1, plan `rows`).

Measuring u of the rows costs u of the full teacher and gives all `u n * u n` pairs among them. The rows that are measured carry
the same roles as in any plan: training, validation and test items are disjoint. Beside the measured values, `labels/` holds the
utilities that follow, so that reading them needs no teacher, and `once.json` with what preceded all rows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nncift.core.arrays import Codes, Floats, Places
from nncift.core.fingerprints import fingerprint
from nncift.core.pairs import LabelledPairs
from nncift.core.seeds import shuffled
from nncift.errors import DataError, UsageError
from nncift.labels.label_budget import LabelBudget
from nncift.labels.pair_labels import combine
from nncift.labels.plan import ROLES, ROLES_OF, SCORE, Roles, RowPlan, describe_rows
from nncift.labels.sampling import keeps_apart, set_apart
from nncift.labels.sizes import held_out_of_rows, none_apart, side
from nncift.labels.store import Axes, LabelExecutor, LabelFormat, LabelStore, LabelTotals
from nncift.storage.atomic import read_arrays, read_json, write_arrays, write_sealed
from nncift.teachers import FeatureTeacher, RowTeacher
from nncift.teachers.abilities import Monitored, WarmUpCost, warm_up_cost
from nncift.teachers.utility_blocks import utility_blocks

log = logging.getLogger(__name__)
CHUNK_ROWS = 16
ROW_SPLITS = ("train", "validation", "q2", "q3", "test", "rest")
PARTS = ("target", "source", "value")


def grow_rows(
    previous: RowPlan | None,
    target_ids: Sequence[str],
    source_ids: Sequence[str],
    budget: LabelBudget,
    seed: int,
    *,
    shared: bool,
    length: Callable[[str], int] | None = None,
) -> RowPlan:
    """Return a plan for these axes that measures u of the rows of each, and keeps all that `previous` measures.

    A small target set (see `sizes.FEW_TARGETS`) is measured whole. length: of a row, by its id; rows of like length are measured
    together, so that a model reads less padding. Raises UsageError where fewer labels are asked for than exist.
    """
    old = previous or RowPlan((), (), shared, Roles(), (), ())
    pointwise = tuple(target_ids) == SCORE
    sides = {
        "target": side(budget, len(target_ids), few=not shared),
        "source": side(budget, len(source_ids), few=False),
    }
    apart = keeps_apart(old.roles, len(old.target_ids), len(target_ids), shared=shared)
    held = (
        held_out_of_rows(budget, len(target_ids), sides["target"]) if apart else none_apart(len(target_ids)),
        held_out_of_rows(budget, len(source_ids), sides["source"]),
    )
    untouched = set(target_ids) - old.measured, set(source_ids) - old.measured
    roles = set_apart(old.roles, untouched, held, seed, shared=shared or pointwise)
    if pointwise:
        roles = Roles((), roles.validation_sources, (), roles.test_sources)
    train = {}
    for axis, ids in (("target", target_ids), ("source", source_ids)):
        kept = old.of_role("train", axis)
        if len(kept) > sides[axis]:
            raise UsageError(
                f"this run has {len(kept)} measured rows to train on, and --labels asks for {sides[axis]}; labels are never "
                "thrown away: ask for as many or more, or use another --out"
            )
        rest = shuffled(set(ids) - roles.apart(axis) - set(kept), seed, "rows", "item" if shared else axis)
        train[axis] = (*kept, *rest[: sides[axis] - len(kept)])
    # A pointwise teacher's one target is no row.
    wanted = [*(() if pointwise else train["target"]), *train["source"]]
    wanted += [*roles.validation_targets, *roles.validation_sources]
    wanted += [*roles.test_targets, *roles.test_sources]
    known = old.measured
    fresh = [item for item in dict.fromkeys(wanted) if item not in known]
    added = chunks_of(fresh, length)
    generations = (*old.generations, added) if added else old.generations
    return RowPlan(tuple(target_ids), tuple(source_ids), shared, roles, train["target"], train["source"], generations)


def chunks_of(rows: Sequence[str], length: Callable[[str], int] | None) -> tuple[tuple[str, ...], ...]:
    """Return rows in the chunks in which they are measured, long and short chunks mixed as their first rows are."""
    place = {item: at for at, item in enumerate(rows)}
    ordered = rows if length is None else sorted(rows, key=length)
    chunks = [ordered[start : start + CHUNK_ROWS] for start in range(0, len(ordered), CHUNK_ROWS)]
    mixed = sorted((sorted(chunk, key=place.__getitem__) for chunk in chunks), key=lambda chunk: place[chunk[0]])
    return tuple(tuple(chunk) for chunk in mixed)


class RowLabelStore(LabelStore[RowPlan]):
    """Labels of a teacher that labels rows; without a teacher they can be read."""

    plan_type, kind, method, what = RowPlan, "row", "measure", "measuring rows"

    def __init__(self, folder: Path, teacher: RowTeacher | None = None) -> None:
        super().__init__(folder)
        self._teacher = teacher

    def grown(self, axes: Axes, budget: LabelBudget, seed: int) -> RowPlan:
        """Return the grown plan."""
        characters = {row.id: len(row.prompt) + len(row.response) for row in axes.rows}
        length = characters.__getitem__
        return grow_rows(self.plan, axes.target_ids, axes.sources.ids, budget, seed, shared=axes.shared, length=length)

    def _wanted_format(self, plan: RowPlan, executor: LabelExecutor) -> LabelFormat:
        executor.know(sorted(plan.measured))
        return LabelFormat.of(self._own_teacher)

    def _finished(self, progress: LabelTotals) -> WarmUpCost:
        teacher, arrays = self._own_teacher, dict[str, npt.NDArray[Any]]()
        for name, pairs in self.derived().items():
            arrays |= {f"{name}.{part}": vars(pairs)[part] for part in PARTS}
        write_arrays(self._utility_file, arrays)
        # What precedes all rows, such as a warm-up, is paid once. On disk, since a finished run is read without its teacher.
        once = warm_up_cost(teacher)
        means = {name: total / max(progress.labels, 1) for name, total in progress.figures.items()}
        sentences = teacher.warnings(means) if isinstance(teacher, Monitored) else ()
        write_sealed(self._once, {**vars(once), "warnings": sentences, "figures": means})
        return once

    def derived(self) -> dict[str, LabelledPairs]:
        """Return the utilities by split, from the measured values; `rest` are pairs of measured rows that no other split has."""
        plan, teacher = self._plan, self._own_teacher
        self._check_whole()
        ids = plan.order
        place = {item: row for row, item in enumerate(ids)}
        (lines, codes), (rows, columns) = (_measured(axis, place) for axis in (plan.target_ids, plan.source_ids))
        if plan.target_ids == SCORE:
            return _pointwise(plan, columns, self.values(rows)[:, 0])
        if not isinstance(teacher, FeatureTeacher):
            raise UsageError(f"the teacher {teacher.name} says it is pairwise but has no utility of two rows")
        blocks = utility_blocks(teacher, self.values, lines, rows, [ids[line] for line in lines])
        parts = [split_by_roles(plan, codes[across], columns[along], table) for across, along, table in blocks]
        return {name: combine({str(at): part[name] for at, part in enumerate(parts)}) for name in ROW_SPLITS}

    def whole(self) -> bool:
        """Tell whether no chunk is pending, and what follows from them can be read."""
        if not super().whole():
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
        plan = self._plan
        try:
            arrays = read_arrays(self._utility_file)
            names = sorted({name.split(".")[0] for name in arrays})
            parts = {name: [arrays[f"{name}.{part}"] for part in PARTS] for name in names}
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                f"{str(self._utility_file)!r} cannot be read: {error}; run the same command again"
            ) from error
        return {name: LabelledPairs(plan.target_ids, plan.source_ids, *found) for name, found in parts.items()}

    def measured(self, ids: Sequence[str]) -> Floats | None:
        """Return the values of rows, `(n, width)`, None where some are not measured. Raises DataError where labels are lost."""
        place = {item: at for at, item in enumerate(self._plan.order)}
        if any(item not in place for item in ids):
            return None
        self._check_whole()
        return self.values(np.array([place[item] for item in ids], np.intp))

    def training(self) -> int:
        """Return the rows that are planned to train on."""
        return 0 if self.plan is None else len(self.plan.train_sources)

    def counts(self) -> dict[str, int]:
        """Return the number of measured rows, and of the pairs among them by split."""
        rows = {name: count for name, count in describe_rows(self._plan).items() if name.endswith("rows")}
        return {**rows, **{name: len(pairs) for name, pairs in self.utilities().items()}}

    def full_passes(self) -> int:
        """Return the passes of measuring every row, what precedes all rows included."""
        done = self.progress()
        try:
            once = int(read_json(self._once)["passes"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"{str(self._once)!r} is missing or damaged ({error}); use another --out") from error
        return round(self._plan.full_rows * done.passes / max(done.labels, 1)) + once

    def warnings(self) -> list[str]:
        """Return how many rows have no value, and what the teacher said of its values when they were measured."""
        done = self.progress()
        missing = [f"{done.missing} of {done.labels} measured rows have no value."] if done.missing else []
        return [*missing, *read_json(self._once).get("warnings", ())]

    @property
    def _own_teacher(self) -> RowTeacher:
        if self._teacher is None:
            raise UsageError("labels that were opened without a teacher can be read and not computed")
        return self._teacher

    @property
    def _once(self) -> Path:
        return self._folder / "once.json"

    @property
    def _utility_file(self) -> Path:
        return self._folder / f"utility-{fingerprint(sorted(self._plan.measured))}.safetensors"


def _measured(axis: Sequence[str], place: Mapping[str, int]) -> tuple[Places, Codes]:
    """Return the places of those items of an axis that are measured, and their codes on the axis."""
    codes = [code for code, item in enumerate(axis) if item in place]
    return np.array([place[axis[code]] for code in codes], np.intp), np.array(codes, np.int32)


def _pointwise(plan: RowPlan, columns: Codes, values: Floats) -> dict[str, LabelledPairs]:
    record = {item: role for role in ROLES for item in plan.of_role(role, "source")}
    of = np.array([record.get(plan.source_ids[code], "train") for code in columns])
    found = {}
    for split in ROLES:
        here = of == split
        codes = np.zeros(int(here.sum()), np.int32), columns[here]
        found[split] = LabelledPairs(SCORE, plan.source_ids, *codes, values[here])
    return found


def split_by_roles(plan: RowPlan, codes: Codes, columns: Codes, table: Floats) -> dict[str, LabelledPairs]:
    """Cut a table over measured targets and sources into splits by the roles of its two items."""
    part = {}
    for axis, ids, at in (("target", plan.target_ids, codes), ("source", plan.source_ids, columns)):
        record = {item: role for role in ROLES for item in plan.of_role(role, axis)}
        part[axis] = np.array([record.get(ids[code], "other") for code in at])
    t, s = part["target"][:, None], part["source"][None, :]
    split = np.full(table.shape, ROW_SPLITS.index("rest"), np.uint8)
    if plan.roles.targets_apart:
        for name, (target, source) in ROLES_OF.items():
            split[(t == target) & (s == source)] = ROW_SPLITS.index(name)
    else:
        for name in ROLES:
            split[:, part["source"] == name] = ROW_SPLITS.index(name)
    if plan.shared:
        split[codes[:, None] == columns[None, :]] = len(ROW_SPLITS)
    found = {}
    for number, name in enumerate(ROW_SPLITS):
        rows, places = np.nonzero(split == number)
        found[name] = LabelledPairs(plan.target_ids, plan.source_ids, codes[rows], columns[places], table[rows, places])
    return found
