"""What a run is asked to do: read, checked and completed once, before a model is asked or anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import floor
from pathlib import Path
from typing import Any, Self

from nncift.config import RunSettings, StudentSettings, recorded
from nncift.core.amounts import CostCap, ProbeShare
from nncift.core.progress import Progress, silent
from nncift.data import Examples
from nncift.data.pool import PoolTable
from nncift.data.python_rows import are_paths
from nncift.errors import InfeasibleError, UsageError
from nncift.labels import check_pool_size
from nncift.models.encoders import Encoder
from nncift.selection.constraints import Constraints
from nncift.selection.problem import Sets, check_graph, check_sets, default_objective
from nncift.stages.decontaminate import screened
from nncift.stages.first_checks import check_first
from nncift.stages.holdout import set_aside
from nncift.stages.inputs import (
    GivenRows,
    check_named,
    check_named_locally,
    held,
    note_unread_existing,
    read_against,
    read_existing,
    read_pool,
    read_target,
    workspace_of,
)
from nncift.storage.ledger import training_cost
from nncift.storage.run_directory import MANIFEST, with_settings_of
from nncift.student.networks import network
from nncift.student.pretrained_map import PRETRAINED
from nncift.teachers import RowTeacher, Teacher, registry, subtasks
from nncift.teachers.abilities import (
    FORWARD,
    HasLanguageModel,
    check_aim,
    check_language_model,
    pass_weight,
    subtask_column,
)

DEFAULT_SHARE = 0.1
"""Share of training on the whole pool that a run may cost by default ..."""

LEAST_PASSES = 3000
"""... or so many forward passes, where that is more."""

WHOLE_ROWS = ProbeShare.parse("100%")

LEAST_PERCENT = 15
"""Percent of each row's tokens below which no probe is made by default: the least tried on a real model (600 rows, 3 seeds)."""


@dataclass(frozen=True)
class Request:
    """What a run is asked to do.

    settings: as given, with what follows from the teacher and the sets at hand: features, plan and objective. target: the target
    set, whose ids and sources begin with `target:`. encoder: in the place of the one that the settings name. holdout: rows
    that are set aside; they are not in the pool. notes: what was chosen for the user, and would surprise.
    """

    settings: RunSettings
    teacher: Teacher | RowTeacher
    pool: Examples
    constraints: Constraints
    target: Examples | None = None
    existing: Examples | None = None
    encoder: Encoder | None = None
    holdout: Examples | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def resolve(
        cls,
        settings: RunSettings,
        *,
        teacher: Teacher | RowTeacher | None = None,
        pool: Examples | None = None,
        target: Examples | None = None,
        existing: Examples | None = None,
        encoder: Encoder | None = None,
        out: str | Path | None = None,
    ) -> Self:
        """Return the request for rows that are at hand, or are read from the files that settings name; see `of_rows`."""
        return cls.of_rows(settings, GivenRows(pool, target, existing), teacher=teacher, encoder=encoder, out=out)

    @classmethod
    def of_call(
        cls,
        sets: Mapping[str, Any],
        settings: Mapping[str, Any],
        *,
        teacher: str | Teacher | RowTeacher | None,
        encoder: str | Encoder | None,
        out: str | Path,
        progress: Progress,
    ) -> Self:
        """Return the request of a call from Python.

        sets: `pool`, `target`, `existing` and `against`: paths, or rows in whatever holds them; None = the set of a run in `out`.
        settings: those that the call names. teacher, encoder: names or objects. Raises what `of_rows` raises.
        """
        given = dict(settings)
        if isinstance(teacher, str):
            given["teacher"] = teacher
        elif teacher is not None:
            given.update(registry.as_settings(teacher.options))
        if encoder is not None:
            given["encoder"] = encoder if isinstance(encoder, str) else str(encoder.describe()["encoder"])
        named = {name: rows for name, rows in sets.items() if rows is not None}
        for name, rows in named.items():
            paths = [rows] if isinstance(rows, str | Path) else rows
            given[name] = tuple(str(path) for path in paths) if are_paths(rows) else ()
        resolved = with_settings_of(out, given, aimed="target" in named)
        check_named_locally(resolved, given, out)
        found = {
            name: held(resolved, rows, resolved.limit if name == "pool" else None)
            for name, rows in named.items()
            if not are_paths(rows)
        }
        return cls.of_rows(
            resolved,
            GivenRows(**found),
            teacher=None if isinstance(teacher, str) else teacher,
            encoder=None if isinstance(encoder, str) else encoder,
            out=out,
            progress=progress,
        )

    @classmethod
    def of_rows(
        cls,
        settings: RunSettings,
        rows: GivenRows,
        *,
        teacher: Teacher | RowTeacher | None = None,
        encoder: Encoder | None = None,
        out: str | Path | None = None,
        progress: Progress = silent,
    ) -> Self:
        """Read what is not at hand from the files that settings name, and check that all of it can be met together.

        A probe is the default where it is cheap beside the teacher, `rows` for teachers that label rows, else `scatter`; `topk`
        for pointwise teachers, `flcg` with an existing set, with a target set `rr` for RDS+ and gradients and `fl2mi` for others,
        else `fl`. out: the run's directory, where a run that was begun keeps the features of its student.

        Raises DataError for rows or files that cannot be used, QualityError where rows of `--against` are in the pool, UsageError
        and InfeasibleError for labels, budgets, rules, plans and objectives that do not fit.
        """
        _check_student(settings)
        _check_proof(settings)
        named, settings = teacher is None, _as_begun(settings, out)
        if rows.pool is None:
            check_named(settings)
        teacher = teacher or registry.create(
            settings, settings.device, seed=settings.seed, encoder=settings.encoder, workspace=workspace_of(out)
        )
        _check_kind(settings, teacher)
        check_first(_as_recorded(settings), model=named, encoder=encoder is None, out=out)
        target = read_target(settings) if rows.target is None else rows.target
        existing = read_existing(settings) if rows.existing is None else rows.existing
        pool = read_pool(settings) if rows.pool is None else rows.pool
        against = read_against(settings) if rows.against is None else rows.against
        # A run that is only estimated embeds nothing.
        pool = screened(settings, pool, against, encoder, meaning=out is not None, progress=progress)
        parted = set_aside(note_unread_existing(pool, existing), settings, out, (target, existing))
        pool = pool if parted is None else parted.pool
        check_pool_size(len(pool))
        constraints = Constraints.read(settings)
        constraints.check(PoolTable.of(pool))
        most = max(len(pool), 0 if target is None else len(target))
        chosen = {
            "plan": _plan(settings, teacher, most),
            **_features(settings, teacher, most),
            "objective": _objective(settings, teacher, target, existing=existing is not None),
        }
        goals = None if target is None else named_target(target)
        held = None if parted is None else parted.holdout
        notes = _chosen(settings, chosen, teacher, most)
        settings = settings.model_copy(update=chosen)
        return cls(settings, teacher, pool, constraints, goals, existing, encoder, held, notes)


def named_target(target: Examples) -> Examples:
    """Return the target set with `target:` before ids and sources, so that they never meet the pool's."""
    renamed = tuple(replace(row, id=f"target:{row.id}", source=f"target:{row.source}") for row in target)
    rejected = tuple(replace(rejection, source=f"target:{rejection.source}") for rejection in target.rejected)
    return Examples(renamed, rejected, target.notes)


def _check_student(settings: StudentSettings) -> None:
    """Raise UsageError for an unknown network, and for a recipe that it does not have."""
    recipes = network(settings.student).recipes
    if settings.recipe not in recipes:
        raise UsageError(
            f"--recipe {settings.recipe} is not one of the student {settings.student}, which has {', '.join(recipes)}; the "
            "published recipe belongs to --student paper"
        )


def _check_kind(settings: StudentSettings, teacher: Teacher | RowTeacher) -> None:
    """Raise UsageError for the student in the package where a teacher's values are of no pairs."""
    if settings.student == PRETRAINED and teacher.kind == "pointwise":
        raise UsageError(
            f"--student {PRETRAINED} predicts what a row does for another, and the teacher {teacher.name} gives each row one "
            "score; give another --student"
        )


def _check_proof(settings: RunSettings) -> None:
    """Raise UsageError where `--prove` has no rows to judge by, or no model to train."""
    if settings.prove and settings.holdout is None:
        raise UsageError("--prove was given without --holdout; give --holdout 10%, the rows that it judges by")
    if settings.prove and settings.model is None:
        raise UsageError(
            f"--prove trains the run's language model, and the teacher {settings.teacher} was given none: name one with --model, "
            "or afterwards, nncift tune DIR --model M"
        )


def _as_begun(settings: RunSettings, out: str | Path | None) -> RunSettings:
    """Return settings with what a run in this directory was begun with where the choice is not given: its student's features.

    A pool that grows past what a probe may cost keeps the student and the probe that it has. Raises DataError for a damaged
    manifest.
    """
    manifest = None if out is None else Path(out) / MANIFEST
    if manifest is None or not manifest.exists():
        return settings
    before = recorded(manifest)
    chosen: dict[str, object] = {}
    if settings.features is None:
        chosen["features"] = before.features
    if settings.probe_share is None and before.features == "probe" and settings.features != "text":
        chosen["probe_share"] = before.probe_share or WHOLE_ROWS
    return settings.model_copy(update=chosen)


def _as_recorded(settings: RunSettings) -> RunSettings:
    """Return settings as a manifest holds them: a probe of whole rows has no share."""
    whole = settings.probe_share == WHOLE_ROWS
    return settings.model_copy(update={"probe_share": None}) if whole else settings


def _plan(settings: RunSettings, teacher: Teacher | RowTeacher, most: int) -> str:
    """Return where labels lie. most: rows of the longer axis."""
    by_row, count = isinstance(teacher, RowTeacher), settings.labels.count
    if by_row and count is not None and count > most:
        raise InfeasibleError(
            f"--labels {count} was given; the teacher {teacher.name} labels rows, so that is a number of rows, and there are "
            f"{most}. Give at most that, or a share such as 5%"
        )
    plan = settings.plan or ("rows" if by_row else "scatter")
    if by_row != (plan == "rows"):
        fitting = "rows, since it labels rows" if by_row else "scatter, active or block, since it labels pairs"
        raise UsageError(f"--plan {plan} does not fit the teacher {teacher.name}; use {fitting}")
    return plan


def _features(settings: RunSettings, teacher: Teacher | RowTeacher, most: int) -> dict[str, object]:
    """Return what the student reads, and the share of each row that a probe reads of it. most: rows of the longer axis."""
    if settings.features == "probe" or settings.probe_share is not None:
        check_language_model(teacher, "--features probe" if settings.features == "probe" else "--probe-share")
    if settings.features == "text" and settings.probe_share is not None:
        raise UsageError("--probe-share was given with --features text, which makes no probe; give one of them")
    share = settings.probe_share or affordable_probe(settings.cost, most)
    worth = settings.probe_share is not None or (suits_a_probe(teacher) and share is not None)
    if (settings.features or ("probe" if worth else "text")) == "text":
        return {"features": "text", "probe_share": None}
    return {"features": "probe", "probe_share": None if share is None or share.share == 1 else share}


def _chosen(
    settings: RunSettings, chosen: Mapping[str, object], teacher: Teacher | RowTeacher, most: int
) -> tuple[str, ...]:
    """Return what to say where a probe of whole rows would suit, and it costs too much. most: rows of the longer axis."""
    if (
        settings.probe_share is not None
        or not suits_a_probe(teacher)
        or affordable_probe(settings.cost, most) == WHOLE_ROWS
    ):
        return ()
    cap = f"the default cap of {100 * DEFAULT_SHARE:g} %" if settings.cost is None else f"--cost {settings.cost}"
    whole = (
        f"one pass of the model for each of {most:,} rows, {100 * most / training_cost(most):.0f} % of training on them, is more "
        f"than half of what {cap} allows"
    )
    if share := chosen["probe_share"]:
        return (
            f"The probe reads {share} of each row's tokens, where its response begins: {whole}. Whole rows make the student "
            "better: --probe-share 100% --cost 25%.",
        )
    if settings.features is not None:
        return ()
    return (
        f"The student reads text alone, since a probe is too dear: {whole}. It usually makes the student better: "
        "--features probe --cost 25%.",
    )


def suits_a_probe(teacher: Teacher | RowTeacher) -> bool:
    """Tell whether a pass of the teacher's model over every row is cheap beside the full teacher.

    It is for teachers of pairs that label pairs or take gradients; on a real model a probe raised their students' skill at every
    budget (docs/results/fidelity.md).
    """
    if teacher.kind != "pairwise" or not isinstance(teacher, HasLanguageModel):
        return False
    return not (isinstance(teacher, RowTeacher) and pass_weight(teacher) <= FORWARD)


def affordable_probe(cost: CostCap | None, rows: int) -> ProbeShare | None:
    """Return the share of each row that a probe may read so that it takes at most a half of the cap on cost, labels the other.

    A whole percent; None where that is less than a probe is good for.
    """
    allowed = (DEFAULT_SHARE if cost is None else cost.share) * training_cost(rows)
    half = (max(allowed, LEAST_PASSES) if cost is None else allowed) / 2
    percent = min(100, floor(round(100 * half / rows, 6)))
    return ProbeShare.parse(f"{percent}%") if percent >= LEAST_PERCENT else None


def _objective(settings: RunSettings, teacher: Teacher | RowTeacher, target: Examples | None, *, existing: bool) -> str:
    """Return what a selection is to serve."""
    pointwise = teacher.kind == "pointwise"
    if target is not None and pointwise:
        raise UsageError(
            f"--target was given, and the teacher {teacher.name} rates rows without a target; leave it out"
        )
    check_aim(teacher, target=target is not None)
    sets = Sets(pointwise, target is not None, existing)
    objective = settings.objective or default_objective(sets, teacher.name)
    check_sets(objective, sets)
    column = subtask_column(teacher)
    check_graph(settings, objective, sets, subtasks=column is not None)
    subtasks.check_fits(column, target, objective)
    return objective
