"""The algorithm, stage by stage (method.md 1; NN-CIFT, arXiv 2502.09969).

Read the pool, let the teacher label a few percent of its pairs, let the student learn them from embeddings, measure how
well it does on pairs of unseen items, predict all other pairs, and select. Every stage leaves its files and its mark in
the run directory, so a run that was stopped goes on where it was, and a finished run can be extended.
"""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from nncift.core.pairs import LabelledPairs
from nncift.core.parallel import Executor, Incomplete
from nncift.core.progress import Progress, silent
from nncift.data.pool import PoolTable
from nncift.distributed.local import LocalExecutor
from nncift.evaluation.meaning import LabelSpread
from nncift.labels.vectors import Vectors
from nncift.models.encoders import Encoder
from nncift.runs.report import write_report
from nncift.runs.student_card import write_card
from nncift.selection.problem import DenseProblem, GraphProblem, build
from nncift.selection.solve import Posing, choose
from nncift.selection.stability import Refits
from nncift.selection.utilities import Utilities
from nncift.stages.allowance import Allowance, keep
from nncift.stages.check import NOTES, usable_rows
from nncift.stages.context import RunContext
from nncift.stages.embed import embed, token_counts
from nncift.stages.embed_existing import embed_existing
from nncift.stages.finish import Run, finish, record_of
from nncift.stages.holdout import write_holdout
from nncift.stages.inputs import workspace_of
from nncift.stages.label import finished_groups, label, plan_labels
from nncift.stages.label_rounds import allowed_rounds, label_in_rounds
from nncift.stages.request import Request
from nncift.teachers import RowTeacher, Teacher, subtasks
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

    pool, and the optional sets target, existing and against: files, or rows in whatever holds them (`data.rows_from`). teacher,
    encoder: names or objects; by default those of the preset (`config.PRESETS`).
    out: the run directory; one that exists is continued or extended.
    Raises the errors of `nncift.errors`.
    """
    sets = {"pool": pool, "target": target, "existing": existing, "against": settings.pop("against", None)}
    # Nothing here keeps the request: its rows go before the report is written.
    return execute(
        Request.of_call(sets, settings, teacher=teacher, encoder=encoder, out=out, progress=progress),
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
    """Do all but the report: check, plan, embed, label and fit in rounds, predict, select, finish."""
    settings, teacher = request.settings, request.teacher
    with workspace_in(teacher, workspace_of(out)), executor.open(Path(out), settings) as directory:
        context = RunContext(directory, settings, teacher, request.encoder, progress, executor=executor)
        # The rows that the teacher can label, and which labels are wanted of them.
        with progress("checking rows", 0):
            axes, rejected = usable_rows(context, request.pool, request.target)
        context, allowance, rounds = allowed_rounds(context, axes, request)
        plan = plan_labels(context, axes, rounds[0])
        _begin(context, request, allowance)
        # What the student reads.
        vectors, existing = embed(context, axes), embed_existing(context, request.existing)
        if vectors is None:
            # A shard that lacks those of others labels its share all the same.
            label(context, axes, plan, rounds[0], None)
            raise Incomplete("embed")
        rows = PoolTable.of(axes.sources, axes.targets, token_counts(context, axes.sources))
        constraints = request.constraints.settle(rows, vectors.text)
        # A few labels, and the student of them; more where that is not enough.
        labels, student, fidelity = label_in_rounds(context, axes, vectors, plan, rounds)
        rows.write(directory)
        subtask_of = subtasks.keep(directory, axes.targets, subtask_column(teacher))
        # All utilities: those that the teacher gave, and the others predicted, when they are asked for.
        in_memory, calculate = not executor.partial, context.calculate
        utilities = Utilities(student, vectors, labels, rows.content, existing, subtask_of, calculate, in_memory)
        posing = Posing(
            partial(_problem, context, utilities, constraints.removed),
            Refits(utilities, settings, fidelity.course, fidelity.gate.used, (directory.path, context.keys["fit"])),
        )
        with progress("selecting rows", 0):
            selection = choose(directory, context.keys, settings, rows, constraints, posing)
        if executor.partial:
            raise Incomplete("select")
        executor.tidy(finished_groups(context), context.keys["fit"])
        directory.write_manifest(record_of(context, request.pool), keep_summary=True)
        notes = (*request.pool.notes, *directory.read_json(NOTES, []), *allowance.notes, *executor.notes)
        notes += (*_about(vectors, len(axes.rows), labels), *([selection.record.note] if selection.record.note else []))
        subset = axes.sources.subset(selection.ids)
        return finish(context, axes, subset, selection.record, rejected, fidelity, notes)


def _begin(context: RunContext, request: Request, allowance: Allowance) -> None:
    """Change what an earlier run left, now that nothing of the request is refused any more."""
    context.directory.reopen()
    keep(context, allowance)
    if request.holdout is not None:
        write_holdout(context.directory, request.holdout)
    context.directory.write_manifest(record_of(context, request.pool))


def _problem(context: RunContext, utilities: Utilities, removed: Collection[str]) -> DenseProblem | GraphProblem:
    """Return what is chosen from. Raises Incomplete in a shard, where no part of choosing is shared out."""
    found = build(utilities, context.settings, removed)
    if context.executor.partial:
        raise Incomplete("select")
    return found


def _about(vectors: Vectors, rows: int, labels: Mapping[str, LabelledPairs]) -> Iterator[str]:
    """Yield sentences on what the encoder did not read, and on labels that say little. rows: of both axes."""
    if cut := vectors.truncated:
        yield f"The encoder reads only the beginning of {cut} of {rows} rows ({100 * cut / rows:.1f} %)."
    spread = LabelSpread.of(labels)
    yield from () if spread is None else spread.warnings()
