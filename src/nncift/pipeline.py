"""The algorithm, stage by stage (method.md 1; NN-CIFT, arXiv 2502.09969).

Read the pool, let the teacher label a few percent of its pairs, let the student learn them from embeddings, measure how
well it does on pairs of unseen items, predict all other pairs, and select. Every stage leaves its files and its mark in
the run directory, so a run that was stopped goes on where it was, and a finished run can be extended.
"""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from nncift.core.pairs import LabelledPairs
from nncift.core.parallel import Executor, Incomplete, may_pay
from nncift.core.progress import Progress, silent
from nncift.data import Examples
from nncift.data.pool import PoolTable
from nncift.data.python_rows import are_paths
from nncift.distributed.local import LocalExecutor
from nncift.errors import UsageError
from nncift.evaluation.meaning import LabelSpread
from nncift.labels import LabelBudget
from nncift.labels.store import Axes
from nncift.labels.vectors import Vectors
from nncift.models.encoders import Encoder
from nncift.runs.report import write_report
from nncift.runs.student_card import write_card
from nncift.selection.problem import DenseProblem, GraphProblem, build
from nncift.selection.solve import Posing, choose
from nncift.selection.stability import Refits
from nncift.selection.utilities import Utilities
from nncift.stages.allowance import Allowance, keep, settle
from nncift.stages.check import NOTES, usable_rows
from nncift.stages.context import RunContext, encoder_of
from nncift.stages.embed import embed, token_counts
from nncift.stages.embed_existing import embed_existing
from nncift.stages.finish import Run, finish, record_of
from nncift.stages.holdout import write_holdout
from nncift.stages.inputs import GivenRows, check_named_locally, held, workspace_of
from nncift.stages.label import finished_groups, label, plan_labels
from nncift.stages.label_rounds import label_budgets, label_in_rounds, remaining
from nncift.stages.request import Request
from nncift.stages.timing import Rates, rates_of
from nncift.storage.run_directory import with_settings_of
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

    pool, and the optional sets target, existing and against: files, or rows in whatever holds them (`data.rows_from`). teacher,
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
    sets = {"pool": pool, "target": target, "existing": existing, "against": given.pop("against", None)}
    for name, rows in sets.items():
        if rows is not None:
            paths = [rows] if isinstance(rows, str | Path) else rows
            given[name] = tuple(str(path) for path in paths) if are_paths(rows) else ()
    resolved = with_settings_of(out, given)
    check_named_locally(resolved, given, out)
    found = {
        name: held(resolved, rows, resolved.limit if name == "pool" else None)
        for name, rows in sets.items()
        if rows is not None and not are_paths(rows)
    }
    return execute(
        Request.of_rows(
            resolved,
            GivenRows(**found),
            teacher=None if isinstance(teacher, str) else teacher,
            encoder=None if isinstance(encoder, str) else encoder,
            out=out,
            progress=progress,
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
    settings, teacher = request.settings, request.teacher
    with workspace_in(teacher, workspace_of(out)), executor.open(Path(out), settings) as directory:
        context = RunContext(directory, settings, teacher, request.encoder, progress, executor=executor)
        with progress("checking rows", 0):
            axes, rejected = usable_rows(context, request.pool, request.target)
        allowance = _allowed(context, axes, request)
        rounds = remaining(allowance.rounds, axes, context.labels().training())
        context = _with_allowance(context, axes, allowance, rounds)
        plan = plan_labels(context, axes, rounds[0])
        # Only now: what was refused so far has changed nothing that an earlier run left.
        directory.reopen()
        keep(context, allowance)
        if request.holdout is not None:
            write_holdout(directory, request.holdout)
        directory.write_manifest(record_of(context, request.pool))
        vectors, existing = embed(context, axes), embed_existing(context, request.existing)
        if vectors is None:
            # A shard that lacks those of others labels its share all the same.
            label(context, axes, plan, rounds[0], None)
            raise Incomplete("embed")
        rows = PoolTable.of(axes.sources, axes.targets, token_counts(context, axes.sources))
        constraints = request.constraints.settle(rows, vectors.text)
        labels, student, fidelity = label_in_rounds(context, axes, vectors, plan, rounds)
        rows.write(directory)
        subtask_of = subtasks.keep(directory, axes.targets, subtask_column(teacher))
        in_memory = not executor.partial
        utilities = Utilities(
            student, vectors, labels, rows.content, existing, subtask_of, context.calculate, in_memory
        )
        problem = partial(_problem, context, utilities, constraints.removed)
        posing = Posing(problem, Refits(utilities, settings, fidelity.course, fidelity.gate.used))
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


def _allowed(context: RunContext, axes: Axes, request: Request) -> Allowance:
    """Return what may be labelled, once the rules fit the rows that are left."""
    request.constraints.check(PoolTable.of(axes.sources))
    rates = partial(_timed, context, axes, request.existing)
    return settle(context, label_budgets(context.settings, axes), axes, request.existing, rates)


def _with_allowance(context: RunContext, axes: Axes, allowance: Allowance, rounds: Sequence[LabelBudget]) -> RunContext:
    """Return the context with what the allowance decided, and whether shards share anything behind the labels."""
    grows = len(rounds) > 1 or rounds[0].kind == "active"
    targets, sources, settings = len(axes.target_ids), len(axes.sources), context.settings
    # The targets of flmi are the pool's own rows.
    calculates = may_pay(max(targets, sources) if settings.objective == "flmi" else targets, sources)
    return replace(context, whole=allowance.whole, features=allowance.features, labels_last=not (grows or calculates))


def _timed(context: RunContext, axes: Axes, existing: Examples | None) -> Rates:
    """Time passes. Raises UsageError in a shard."""
    if context.executor.partial:
        raise UsageError(
            "--time was given with --shard; shards time passes each for itself, and must label one plan. Give --cost or "
            "--labels: nncift run --time ... --dry-run tells what the time allows"
        )
    return rates_of(context.settings, axes, context.teacher, encoder_of(context), len(existing or ()))


def _problem(context: RunContext, utilities: Utilities, removed: Collection[str]) -> DenseProblem | GraphProblem:
    """Return what is chosen from. Raises Incomplete in a shard, where no part of choosing is shared out."""
    found = build(utilities, context.settings, removed)
    if context.executor.partial and not (isinstance(found, GraphProblem) and found.optimiser == "partition"):
        raise Incomplete("select")
    return found


def _about(vectors: Vectors, rows: int, labels: Mapping[str, LabelledPairs]) -> Iterator[str]:
    """Yield sentences on what the encoder did not read, and on labels that say little. rows: of both axes."""
    if cut := vectors.truncated:
        yield f"The encoder reads only the beginning of {cut} of {rows} rows ({100 * cut / rows:.1f} %)."
    spread = LabelSpread.of(labels)
    yield from () if spread is None else spread.warnings()
