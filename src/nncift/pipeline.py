"""The algorithm, stage by stage (method.md 1; NN-CIFT, arXiv 2502.09969).

Read the pool, let the teacher label a few percent of its pairs, let the student learn them from embeddings, measure how
well it does on pairs of unseen items, predict all other pairs, and select. Every stage leaves its files and its mark in
the run directory, so a run that was stopped goes on where it was, and a finished run can be extended.
"""

from __future__ import annotations

import gc
from collections.abc import Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from nncift import config
from nncift.config import RunSettings
from nncift.core.parallel import Executor, Incomplete, may_pay
from nncift.core.progress import Progress, silent
from nncift.data import Examples
from nncift.data.pool import PoolTable
from nncift.data.python_rows import are_paths
from nncift.distributed.local import LocalExecutor
from nncift.errors import UsageError
from nncift.evaluation.meaning import LabelSpread
from nncift.labels.store import Axes
from nncift.models.encoders import Encoder
from nncift.runs.report import write_report
from nncift.runs.student_card import write_card
from nncift.selection.problem import DenseProblem, GraphProblem, build
from nncift.selection.solve import choose
from nncift.selection.utilities import Utilities
from nncift.stages.allowance import keep, settle
from nncift.stages.check import NOTES, usable_rows
from nncift.stages.context import RunContext, encoder_of
from nncift.stages.embed import embed, token_counts
from nncift.stages.embed_existing import embed_existing
from nncift.stages.finish import Run, finish, record_of
from nncift.stages.inputs import held, workspace_of
from nncift.stages.label import finished_groups, label, plan_labels
from nncift.stages.label_rounds import label_budgets, label_in_rounds, remaining
from nncift.stages.request import Request
from nncift.stages.timing import Rates, rates_of
from nncift.teachers import RowTeacher, Teacher, registry, subtasks
from nncift.teachers.abilities import subtask_column, workspace_in


def run(
    pool: Any,
    *,
    out: str | Path,
    teacher: str | Teacher | RowTeacher | None = None,
    target: Any = None,
    existing: Any = None,
    encoder: str | Encoder | None = None,
    progress: Progress = silent,
    **settings: Any,
) -> Run:
    """Select from a pool by learned influence; the settings are those of `config.RunSettings`.

    pool, and the optional target and existing sets: files, or rows in whatever holds them (`data.rows_from`). teacher and
    encoder: names or objects; by default those of the preset (`config.PRESETS`).
    out: the run directory; one that exists is continued or extended.
    Raises the errors of `nncift.errors`.
    """
    given = dict(settings)
    if isinstance(teacher, str):
        given["teacher"] = teacher
    elif teacher is not None:
        given.update(registry.as_settings(teacher.options))
    if encoder is not None:
        given["encoder"] = encoder if isinstance(encoder, str) else str(encoder.describe()["encoder"])
    for name, rows in (("pool", pool), ("target", target), ("existing", existing), ("against", given.get("against"))):
        if rows is not None and are_paths(rows):
            paths = [rows] if isinstance(rows, str | Path) else list(rows)
            given[name] = tuple(str(path) for path in paths)
    resolved = config.resolve(given)
    pool, target, existing = (
        rows if rows is None or are_paths(rows) else held(resolved, rows, limit)
        for rows, limit in ((pool, resolved.limit), (target, None), (existing, None))
    )
    return execute(
        Request.resolve(
            resolved,
            teacher=None if isinstance(teacher, str) else teacher,
            pool=pool if isinstance(pool, Examples) else None,
            target=target if isinstance(target, Examples) else None,
            existing=existing if isinstance(existing, Examples) else None,
            encoder=None if isinstance(encoder, str) else encoder,
            out=out,
        ),
        out,
        progress=progress,
    )


def execute(request: Request, out: str | Path, *, progress: Progress = silent, executor: Executor | None = None) -> Run:
    """Run every stage that is not finished yet, and return the run.

    executor: has the tasks of stages done: in this process by default (`LocalExecutor`), by the workers of a cluster
    (`RayExecutor`), or a shard's alone (`ShardExecutor`). What shards left is taken first. Raises Incomplete in a shard, as
    soon as it lacks what others do, and before the selection; QualityError where a gate is not reached.
    """
    done = _selected(request, out, progress, executor or LocalExecutor())
    # The report reads the rows from the run: in memory they go before, unless the caller keeps the request. What held them refers
    # to itself here and there.
    del request
    gc.collect()
    with progress("writing the report", 1):
        write_card(done.path)
        write_report(done.path)
    return done


def _selected(request: Request, out: str | Path, progress: Progress, executor: Executor) -> Run:
    """Do all but the report."""
    settings, teacher, existing = request.settings, request.teacher, request.existing
    with workspace_in(teacher, workspace_of(out)), executor.open(Path(out), settings) as directory:
        context = RunContext(directory, settings, teacher, request.encoder, progress, executor=executor)
        axes, rejected = usable_rows(context, request.pool, request.target)
        request.constraints.check(PoolTable.of(axes.sources))
        rates = partial(_timed, context, axes, existing)
        allowance = settle(context, label_budgets(settings, axes), axes, existing, rates)
        rounds = remaining(allowance.rounds, axes, context.labels().training())
        context = replace(
            context,
            whole=allowance.whole,
            features=allowance.features,
            labels_last=not (len(rounds) > 1 or rounds[0].kind == "active" or _may_calculate(settings, axes)),
        )
        plan = plan_labels(context, axes, rounds[0])
        # Only now: what was refused so far has changed nothing that an earlier run left.
        directory.reopen()
        keep(context, allowance)
        directory.write_manifest(record_of(context, request.pool))
        vectors, before = embed(context, axes), embed_existing(context, existing)
        if vectors is None:
            # A shard that lacks those of others labels its share all the same.
            label(context, axes, plan, rounds[0], None)
            raise Incomplete("embed")
        tokens = token_counts(context, axes.sources)
        rows = PoolTable.of(axes.sources, axes.targets, tokens)
        settled = request.constraints.settle(rows, vectors.text)
        labels, student, fidelity = label_in_rounds(context, axes, vectors, plan, rounds)
        rows.write(directory)
        subtask_of = subtasks.keep(directory, axes.targets, subtask_column(teacher))
        in_memory = not executor.partial
        utilities = Utilities(student, vectors, labels, rows.content, before, subtask_of, context.calculate, in_memory)
        problem = partial(_problem, context, utilities, settled.removed)
        selection = choose(directory, context.keys, settings, rows, settled, problem)
        if executor.partial:
            raise Incomplete("select")
        executor.tidy(finished_groups(context), context.keys["fit"])
        subset = axes.sources.subset(selection.ids)
        about_rows: list[str] = directory.read_json(NOTES, [])
        spread = LabelSpread.of(labels)
        about_labels = () if spread is None else spread.warnings()
        notes = (*request.pool.notes, *about_rows, *allowance.notes, *executor.notes)
        notes += (*_truncation(vectors.truncated, len(axes.rows)), *about_labels)
        if selection.record.note:
            notes = (*notes, selection.record.note)
        directory.write_manifest(record_of(context, request.pool), keep_summary=True)
        return finish(context, axes, subset, selection.record, rejected, fidelity, notes)


def _timed(context: RunContext, axes: Axes, existing: Examples | None) -> Rates:
    """Time passes. Raises UsageError in a shard."""
    if context.executor.partial:
        raise UsageError(
            "--time was given with --shard; shards time passes each for itself, and must label one plan. Give --cost or "
            "--labels: nncift run --time ... --dry-run tells what the time allows"
        )
    return rates_of(context.settings, axes, context.teacher, encoder_of(context), len(existing or ()))


def _may_calculate(settings: RunSettings, axes: Axes) -> bool:
    """Tell whether there may be something to calculate from the labels that is worth sharing."""
    targets, sources = len(axes.target_ids), len(axes.sources)
    # The targets of flmi are the pool's own rows.
    return may_pay(max(targets, sources) if settings.objective == "flmi" else targets, sources)


def _problem(context: RunContext, utilities: Utilities, removed: Collection[str]) -> DenseProblem | GraphProblem:
    """Return what is chosen from. Raises Incomplete in a shard, where no part of choosing is shared out."""
    found = build(utilities, context.settings, removed)
    if context.executor.partial and not (isinstance(found, GraphProblem) and found.optimiser == "partition"):
        raise Incomplete("select")
    return found


def _truncation(truncated: int, rows: int) -> list[str]:
    if not truncated:
        return []
    return [f"The encoder reads only the beginning of {truncated} of {rows} rows ({100 * truncated / rows:.1f} %)."]
