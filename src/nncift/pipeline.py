"""The algorithm, stage by stage (method.md 1; NN-CIFT, arXiv 2502.09969).

Read the pool, let the teacher label a few percent of its pairs, let the student learn them from embeddings, measure how
well it does on pairs of unseen items, predict all other pairs, and select. Every stage leaves its files and its mark in
the run directory, so a run that was stopped goes on where it was, and a finished run can be extended.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from nncift import config
from nncift.config import RunSettings
from nncift.core.progress import Progress, silent
from nncift.core.tasks import SCORE, Executor, LocalExecutor
from nncift.data import Examples
from nncift.data.pool import PoolTable
from nncift.data.python_rows import are_paths
from nncift.distributed.shards import Joining
from nncift.distributed.start import ClusterSettings, executor_of
from nncift.evaluation.meaning import LabelSpread
from nncift.models.encoders import Encoder
from nncift.runs.report import write_report
from nncift.runs.student_card import write_card
from nncift.selection.constraints import Constraints
from nncift.selection.problem import build
from nncift.selection.solve import by_score_note, choose
from nncift.selection.utilities import Utilities
from nncift.stages import (
    NOTES,
    RunContext,
    as_begun,
    check_request,
    embed,
    encoder_of,
    finished_jobs,
    named_target,
    plan_labels,
    token_counts,
    usable_rows,
)
from nncift.stages.allowance import keep, settle
from nncift.stages.embed_existing import embed_existing
from nncift.stages.finish import Run, finish, record_of
from nncift.stages.fit import check_student
from nncift.stages.inputs import held, read_existing, read_pool, read_target, workspace_of
from nncift.stages.label_rounds import label_budgets, label_in_rounds, remaining
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
    for name, rows in (("pool", pool), ("target", target), ("existing", existing)):
        if rows is not None and are_paths(rows):
            paths = [rows] if isinstance(rows, str | Path) else list(rows)
            given[name] = tuple(str(path) for path in paths)
    resolved = config.resolve(given)
    pool, target, existing = (
        rows if rows is None or are_paths(rows) else held(resolved, rows, limit)
        for rows, limit in ((pool, resolved.limit), (target, None), (existing, None))
    )
    if teacher is None or isinstance(teacher, str):
        teacher = registry.create(
            resolved, resolved.device, seed=resolved.seed, encoder=resolved.encoder, workspace=workspace_of(out)
        )
    with executor_of(cluster, resolved, Path(out)) as executor:
        return execute(
            resolved,
            pool if isinstance(pool, Examples) else partial(read_pool, resolved),
            out,
            teacher=teacher,
            target=target if isinstance(target, Examples) else read_target(resolved),
            existing=existing if isinstance(existing, Examples) else read_existing(resolved),
            encoder=None if encoder is None or isinstance(encoder, str) else encoder,
            progress=progress,
            executor=executor,
        )


def execute(
    settings: RunSettings,
    pool: Examples | Callable[[], Examples],
    out: str | Path,
    *,
    teacher: Teacher | RowTeacher,
    target: Examples | None = None,
    existing: Examples | None = None,
    encoder: Encoder | None = None,
    progress: Progress = silent,
    executor: Executor | None = None,
) -> Run:
    """Run every stage that is not finished yet, and return the run.

    pool: the rows, or what reads them: then nobody holds them any more when the report is written, which reads them from the run.
    executor: has the tasks of stages done, in this process by default; what shards left is taken first.
    """
    done = _selected(settings, pool, out, teacher, target, existing, encoder, progress, executor or LocalExecutor())
    # What held the rows refers to itself here and there.
    gc.collect()
    with progress("writing the report", 1):
        write_card(done.path)
        write_report(done.path)
    return done


def _selected(
    settings: RunSettings,
    pool: Examples | Callable[[], Examples],
    out: str | Path,
    teacher: Teacher | RowTeacher,
    target: Examples | None,
    existing: Examples | None,
    encoder: Encoder | None,
    progress: Progress,
    executor: Executor,
) -> Run:
    """Do all but the report."""
    check_student(settings)
    if not isinstance(pool, Examples):
        pool = pool()
    if target is None:
        target = read_target(settings)
    if existing is None:
        existing = read_existing(settings)
    settings = check_request(as_begun(settings, out), pool, teacher, target, existing)
    wanted = None if target is None else named_target(target)
    with workspace_in(teacher, workspace_of(out)), RunDir(out, settings) as directory:
        joining = Joining(directory.path, executor)
        context = RunContext(directory, settings, teacher, encoder, progress, executor=joining)
        axes, rejected = usable_rows(context, pool, wanted)
        constraints = Constraints.read(settings)
        constraints.check(PoolTable.of(axes.sources))
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
        directory.write_manifest(record_of(context, pool))
        vectors, before = embed(context, axes), embed_existing(context, existing)
        tokens = token_counts(context, axes.sources)
        rows = PoolTable.of(axes.sources, axes.targets, tokens)
        settled = constraints.settle(rows, vectors.text)
        labels, student, fidelity = label_in_rounds(context, axes, vectors, plan, rounds)
        joining.tidy(finished_jobs(context))
        rows.write(directory)
        subtask_of = subtasks.keep(directory, axes.targets, subtask_column(teacher))
        utilities = Utilities(student, vectors, labels, rows.content, before, subtask_of, context.calculate)
        problem = partial(build, utilities, settings, settled.removed)
        selection = choose(context.directory, context.keys, settings, rows, settled, problem)
        directory.charge(SCORE, joining.seconds)
        joining.tidy_calculated(context.keys["fit"])
        subset = axes.sources.subset(selection.pop("ids"))
        about_rows: list[str] = directory.read_json(NOTES, [])
        spread = LabelSpread.of(labels)
        about_labels = () if spread is None else spread.warnings()
        notes = (*pool.notes, *about_rows, *allowance.notes, *joining.notes)
        notes += (*_truncation(vectors.truncated, len(axes.rows)), *about_labels)
        if by_score := selection.get("by_score"):
            notes = (*notes, by_score_note(selection["budget"], by_score))
        directory.write_manifest(record_of(context, pool), keep_summary=True)
        return finish(context, axes, subset, selection, rejected, fidelity, notes)


def _truncation(truncated: int, rows: int) -> list[str]:
    if not truncated:
        return []
    return [f"The encoder reads only the beginning of {truncated} of {rows} rows ({100 * truncated / rows:.1f} %)."]
