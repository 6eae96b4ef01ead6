"""Which rows a run is about: wishes that cannot be met are refused, rows that the teacher cannot read set aside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from nncift.config import RunSettings, TeacherSettings, load, resolve
from nncift.core.amounts import CostCap
from nncift.data import Examples
from nncift.data.examples import Rejection
from nncift.data.pool import PoolTable
from nncift.errors import DataError, InfeasibleError, UsageError
from nncift.labels import SCORE, check_pool_size
from nncift.labels.store import Axes
from nncift.selection.constraints import Constraints
from nncift.selection.problem import check_graph, check_sets, default_objective
from nncift.stages.context import RunContext, identity
from nncift.storage.atomic import write_json
from nncift.storage.ledger import training_cost
from nncift.storage.run_directory import MANIFEST, RunDir
from nncift.teachers import RowTeacher, Teacher, subtasks
from nncift.teachers.abilities import (
    FORWARD,
    HasLanguageModel,
    check_language_model,
    notes_of,
    pass_weight,
    subtask_column,
)

FEWEST_TARGETS = 3
DEFAULT_SHARE = 0.1
"""Share of training on the whole pool that a run may cost by default ..."""

LEAST_PASSES = 3000
"""... or so many forward passes, where that is more."""

NOTES = "notes.json"
"""What the teacher has to tell about the rows."""


def usable_rows(
    context: RunContext, pool: Examples, wanted: Examples | None = None
) -> tuple[Axes, tuple[Rejection, ...]]:
    """Return the rows that the teacher can label on both axes, rows of an earlier plan first, and all rejected rows.

    wanted: the target set, with ids of its own. Raises DataError where none is left, UsageError where a row of the run that is
    being extended is gone or changed.
    """
    settings = context.settings
    everything = pool if wanted is None else Examples((*pool, *wanted))
    planned = context.labels().planned()
    _check_rows_kept(
        context.directory, everything, list(dict.fromkeys(item for ids in planned for item in ids if item not in SCORE))
    )
    key = context.key("check", identity(everything), settings.part(TeacherSettings))
    with context.directory.stage("check", key, ("unusable.json", "pool.json", NOTES)) as stage:
        if not stage.done:
            found = prepare_all(context.teacher, pool, wanted)
            context.prepared = True
            reasons = {(refused.source, refused.line): refused.reason for refused in found}
            # By id: the same rows may stand on other lines the next time.
            by_id = {row.id: reasons[row.source, row.line] for row in everything if (row.source, row.line) in reasons}
            write_json(context.directory.file("unusable.json"), by_id)
            write_json(context.directory.file(NOTES), list(notes_of(context.teacher)))
            write_json(context.directory.file("pool.json"), {row.id: row.content_hash for row in everything})
    out: dict[str, str] = context.directory.read_json("unusable.json")
    refused = tuple(Rejection(row.source, row.line, out[row.id]) for row in everything if row.id in out)
    sources = _ordered(pool, out, planned[1])
    targets = None if wanted is None else _ordered(wanted, out, planned[0])
    check_labelled(context.teacher.name, (pool, sources), (wanted, targets), refused)
    rejected = (*pool.rejected, *(() if wanted is None else wanted.rejected), *refused)
    return Axes(sources, targets, pointwise=context.teacher.kind == "pointwise"), rejected


def check_labelled(
    teacher: str,
    pool: tuple[Examples, Examples],
    target: tuple[Examples | None, Examples | None],
    refused: Sequence[Rejection],
) -> None:
    """Raise DataError where the teacher can label too few rows. pool, target: all rows, and those that it can label."""
    for what, (given, usable) in (("", pool), ("of the target set ", target)):
        if given is not None and not usable:
            why = next(
                (f"; the first: {no.source} line {no.line} {no.reason}" for no in refused if _is_of(no, given)), ""
            )
            raise DataError(f"none of the {len(given)} rows {what}can be labelled by the teacher {teacher}{why}")
    if target[1] is not None:
        _check_target_count(len(target[1]))


def prepare_all(teacher: Teacher | RowTeacher, pool: Examples, wanted: Examples | None) -> tuple[Rejection, ...]:
    """Make the teacher know all rows. The pool comes first and alone: LESS draws its warm-up from it, never from targets."""
    if wanted is None or not isinstance(teacher, RowTeacher):
        return teacher.prepare(pool if wanted is None else Examples((*pool, *wanted)))
    return (*teacher.prepare(pool), *teacher.prepare(wanted))


def named_target(target: Examples) -> Examples:
    """Return the target set with `target:` before ids and sources, so that they never meet the pool's."""
    renamed = tuple(replace(row, id=f"target:{row.id}", source=f"target:{row.source}") for row in target)
    rejected = tuple(replace(rejection, source=f"target:{rejection.source}") for rejection in target.rejected)
    return Examples(renamed, rejected, target.notes)


def check_request(
    settings: RunSettings,
    pool: Examples,
    teacher: Teacher | RowTeacher,
    target: Examples | None = None,
    existing: Examples | None = None,
) -> RunSettings:
    """Refuse wishes that cannot be met, before anything is loaded or written, and return settings with defaults filled in.

    Features, plan and objective follow the teacher and the sets at hand: a probe where it is cheap beside the teacher; `rows` for
    teachers that are paid by the row, else `scatter`; `topk` for pointwise teachers, `flcg` with an existing set, with a target
    set `rr` for LESS and RDS and `fl2mi` for others, else `fl`. Raises DataError for too few rows, UsageError and InfeasibleError
    for labels, budgets, rules, and plans or objectives that do not fit.
    """
    count = settings.labels.count
    check_pool_size(len(pool))
    Constraints.read(settings).check(PoolTable.of(pool))
    by_row, pointwise = isinstance(teacher, RowTeacher), teacher.kind == "pointwise"
    most = max(len(pool), 0 if target is None else len(target))
    if by_row and count is not None and count > most:
        raise InfeasibleError(
            f"--labels {count} was given; the teacher {teacher.name} is paid by the row, so that is a number of rows, and there "
            f"are {most}. Give at most that, or a share such as 5%"
        )
    plan = settings.plan or ("rows" if by_row else "scatter")
    if by_row != (plan == "rows"):
        fitting = (
            "rows, since it is paid by the row" if by_row else "scatter, active or block, since it is paid by the pair"
        )
        raise UsageError(f"--plan {plan} does not fit the teacher {teacher.name}; use {fitting}")
    if settings.features == "probe":
        check_language_model(teacher, "--features probe")
    features = settings.features or ("probe" if is_worth_a_probe(teacher, settings.cost, most) else "text")
    aimed = bool(settings.target) or target is not None
    if aimed and pointwise:
        raise UsageError(
            f"--target was given, and the teacher {teacher.name} rates rows without a target; leave it out"
        )
    if target:
        _check_target_count(len(target))
    sets = {"pointwise": pointwise, "target": aimed, "existing": bool(settings.existing) or existing is not None}
    objective = settings.objective or default_objective(**sets, teacher=teacher.name)
    check_sets(objective, **sets)
    column = subtask_column(teacher)
    check_graph(settings, objective, pointwise=pointwise, existing=sets["existing"], subtasks=column is not None)
    subtasks.check_fits(column, target, objective)
    return settings.model_copy(update={"plan": plan, "objective": objective, "features": features})


def as_begun(settings: RunSettings, out: str | Path) -> RunSettings:
    """Return settings with what a run in this directory was begun with where the choice is not given: its student's features.

    A pool that grows past what a probe may cost keeps the student that it has. Raises DataError for a damaged manifest.
    """
    manifest = Path(out) / MANIFEST
    if settings.features is not None or not manifest.exists():
        return settings
    return settings.model_copy(update={"features": resolve(load(manifest)).features})


def is_worth_a_probe(teacher: Teacher | RowTeacher, cost: CostCap | None, rows: int) -> bool:
    """Tell whether a pass of the teacher's model over every row is cheap: beside the full teacher, and under the cap on cost.

    It is for teachers of pairs that label pairs or take gradients; on a real model a probe raised their students' skill at every
    budget (docs/results/fidelity.md). Under the cap it may take a half, so that labels have the other.
    """
    if teacher.kind != "pairwise" or not isinstance(teacher, HasLanguageModel):
        return False
    if isinstance(teacher, RowTeacher) and pass_weight(teacher) <= FORWARD:
        return False
    share = DEFAULT_SHARE if cost is None else cost.share
    allowed = share * training_cost(rows)
    return 2 * rows <= (max(allowed, LEAST_PASSES) if cost is None else allowed)


def _check_target_count(rows: int) -> None:
    if rows < FEWEST_TARGETS:
        raise DataError(
            f"the target set has {rows} usable rows, and at least {FEWEST_TARGETS} are needed: one each to learn from, to "
            "validate and to test"
        )


def _is_of(refused: Rejection, rows: Examples) -> bool:
    return any((row.source, row.line) == (refused.source, refused.line) for row in rows)


def _ordered(rows: Examples, out: Mapping[str, str], planned: Sequence[str]) -> Examples:
    """Return the usable rows, planned ones first in the plan's order."""
    if not out and not planned:
        return Examples(rows.items)
    usable = {row.id: row for row in rows if row.id not in out}
    first = [usable.pop(item) for item in planned if item in usable]
    return Examples((*first, *usable.values()))


def _check_rows_kept(directory: RunDir, pool: Examples, planned: Sequence[str]) -> None:
    if not planned:
        return
    before: dict[str, str] = directory.whole_json("pool.json", "check", {})
    now = {example.id: example.content_hash for example in pool}
    lost = [item for item in planned if item not in now or before.get(item, now[item]) != now[item]]
    if lost:
        raise UsageError(
            f"{len(lost)} of the {len(planned)} rows that this run has labels for are gone or changed, the first "
            f"{lost[0]!r}; a run can be extended by rows, not cut. Use another --out"
        )
