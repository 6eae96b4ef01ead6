"""The algorithm, stage by stage (method.md 1; NN-CIFT, arXiv 2502.09969).

Read the pool, let the teacher label a few percent of its pairs, let the student learn them from embeddings, measure how
well it does on pairs of unseen items, predict all other pairs, and select. Every stage leaves its files and its mark in
the run directory, so a run that was stopped goes on where it was, and a finished run can be extended.
"""

from __future__ import annotations

import gc
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from nncift import config
from nncift.core.progress import Progress, silent
from nncift.core.tasks import SCORE, Executor
from nncift.data import Examples
from nncift.data.pool import PoolTable
from nncift.data.python_rows import are_paths
from nncift.distributed.shards import Joining
from nncift.distributed.start import ClusterSettings, executor_of
from nncift.evaluation.meaning import LabelSpread
from nncift.models.encoders import Encoder
from nncift.runs.report import write_report
from nncift.runs.student_card import write_card
from nncift.selection.problem import build
from nncift.selection.solve import choose
from nncift.selection.utilities import Utilities
from nncift.stages import (
    NOTES,
    RunContext,
    embed,
    encoder_of,
    finished_jobs,
    plan_labels,
    token_counts,
    usable_rows,
)
from nncift.stages.allowance import keep, settle
from nncift.stages.embed_existing import embed_existing
from nncift.stages.finish import Run, finish, record_of
from nncift.stages.inputs import held, workspace_of
from nncift.stages.label_rounds import label_budgets, label_in_rounds, remaining
from nncift.stages.request import Request
from nncift.stages.timing import rates_of
from nncift.storage.run_directory import RunDir
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
    cluster: ClusterSettings | None = None,
    **settings: Any,
) -> Run:
    """Select from a pool by learned influence; the settings are those of `config.RunSettings`.

    pool, and the optional target and existing sets: files, or rows in whatever holds them (`data.rows_from`). teacher and
    encoder: names or objects; by default those of the preset (`config.PRESETS`).
    out: the run directory; one that exists is continued or extended. cluster: whose workers embed, label and score.
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
        cluster=cluster,
    )


def execute(
    request: Request,
    out: str | Path,
    *,
    progress: Progress = silent,
    cluster: ClusterSettings | None = None,
    executor: Executor | None = None,
) -> Run:
    """Run every stage that is not finished yet, and return the run.

    cluster: whose workers do the tasks of stages, or executor: what does them; by default this process. What shards left is
    taken first.
    """
    by: AbstractContextManager[Executor] = (
        nullcontext(executor) if executor is not None else executor_of(cluster, request.settings, Path(out))
    )
    with by as used:
        done = _selected(request, out, progress, used)
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
    with workspace_in(teacher, workspace_of(out)), RunDir(out, settings) as directory:
        joining = Joining(directory.path, executor)
        context = RunContext(directory, settings, teacher, request.encoder, progress, executor=joining)
        axes, rejected = usable_rows(context, request.pool, request.target)
        request.constraints.check(PoolTable.of(axes.sources))
        allowance = settle(
            context,
            label_budgets(settings, axes),
            axes,
            existing,
            lambda: rates_of(settings, axes, teacher, encoder_of(context), len(existing or ())),
        )
        rounds = remaining(allowance.rounds, axes, context.labels().training())
        context = replace(context, whole=allowance.whole, features=allowance.features)
        plan = plan_labels(context, axes, rounds[0])
        # Only now: what was refused so far has changed nothing that an earlier run left.
        directory.reopen()
        keep(context, allowance)
        directory.write_manifest(record_of(context, request.pool))
        vectors, before = embed(context, axes), embed_existing(context, existing)
        tokens = token_counts(context, axes.sources)
        rows = PoolTable.of(axes.sources, axes.targets, tokens)
        settled = request.constraints.settle(rows, vectors.text)
        labels, student, fidelity = label_in_rounds(context, axes, vectors, plan, rounds)
        joining.tidy(finished_jobs(context))
        rows.write(directory)
        subtask_of = subtasks.keep(directory, axes.targets, subtask_column(teacher))
        utilities = Utilities(student, vectors, labels, rows.content, before, subtask_of, context.calculate)
        problem = partial(build, utilities, settings, settled.removed)
        selection = choose(context.directory, context.keys, settings, rows, settled, problem)
        directory.charge(SCORE, joining.seconds)
        joining.tidy_calculated(context.keys["fit"])
        subset = axes.sources.subset(selection.ids)
        about_rows: list[str] = directory.read_json(NOTES, [])
        spread = LabelSpread.of(labels)
        about_labels = () if spread is None else spread.warnings()
        notes = (*request.pool.notes, *about_rows, *allowance.notes, *joining.notes)
        notes += (*_truncation(vectors.truncated, len(axes.rows)), *about_labels)
        if selection.record.note:
            notes = (*notes, selection.record.note)
        directory.write_manifest(record_of(context, request.pool), keep_summary=True)
        return finish(context, axes, subset, selection.record, rejected, fidelity, notes)


def _truncation(truncated: int, rows: int) -> list[str]:
    if not truncated:
        return []
    return [f"The encoder reads only the beginning of {truncated} of {rows} rows ({100 * truncated / rows:.1f} %)."]
