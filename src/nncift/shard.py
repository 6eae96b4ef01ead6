"""One shard of a run: the stages whose tasks can be shared out, and what is calculated from the labels (docs/scale.md)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from nncift.config import RunSettings
from nncift.core.pairs import LabelledPairs
from nncift.core.parallel import may_pay
from nncift.core.progress import Progress, silent
from nncift.core.tasks import SCORE, Enough, Incomplete
from nncift.data.pool import PoolTable
from nncift.distributed.shadow import Leaves, made_once, shadow_of
from nncift.distributed.shard_executor import Part
from nncift.distributed.shards import Shard
from nncift.errors import QualityError, UsageError
from nncift.labels import LabelBudget
from nncift.labels.store import Axes
from nncift.labels.vectors import Vectors
from nncift.selection.constraints import Constraints
from nncift.selection.problem import GraphProblem, build
from nncift.selection.solve import FILES as CHOSEN
from nncift.selection.solve import key_of
from nncift.selection.sparse import SparseCoverage
from nncift.selection.utilities import Utilities
from nncift.stages import (
    RunContext,
    embed,
    embed_rows,
    label,
    plan_labels,
    probe_rows,
    token_counts,
    usable_rows,
)
from nncift.stages.allowance import keep, settle
from nncift.stages.fit import FILES as FITTED
from nncift.stages.fit import fit_key
from nncift.stages.label_rounds import label_budgets, label_in_rounds, remaining
from nncift.stages.request import Request
from nncift.stages.timing import Rates
from nncift.storage.run_directory import RunDir
from nncift.student.model import Student
from nncift.teachers import subtasks
from nncift.teachers.abilities import subtask_column


def run_shard(
    request: Request,
    out: str | Path,
    shard: Shard,
    *,
    progress: Progress = silent,
    wait: bool | None = None,
) -> dict[str, Any]:
    """Do what is this shard's of a run, and tell what was done and what is left.

    First its tasks of embedding, probing and labelling. Where labels come in rounds (plan `active`, `--labels auto`, gates), the
    shard goes on with the labels of all as long as it has them. Once all labels are there, it fits the student and does its parts
    of every calculation that is worth sharing, also in rounds. wait: for other shards that are at work; None = in rounds, and in
    calculations, and not for the first labels. Raises the errors of a run.
    """
    settings, run = request.settings, Path(out)
    with shadow_of(run, shard) as (scratch, presence), RunDir(scratch, settings) as directory:
        context = RunContext(directory, settings, request.teacher, request.encoder, progress)
        axes, _ = usable_rows(context, request.pool, request.target)
        request.constraints.check(PoolTable.of(axes.sources))
        allowance = settle(context, label_budgets(settings, axes), axes, request.existing, _check_time)
        rounds = remaining(allowance.rounds, axes, context.labels().training())
        keep(context, allowance)
        context = replace(context, whole=allowance.whole, features=allowance.features)
        with closing(Part(run, presence)) as part:
            context.executor, part.patient = part, wait is True
            course = _Course(run, context, axes, request.constraints, rounds, part, wait)
            try:
                finished, then = course.go()
            except Incomplete:
                finished, then = False, ""
        return _record(run, shard, part, course, finished, then)


def _check_time() -> Rates:
    raise UsageError(
        "--time was given with --shard; shards time passes each for itself, and must label one plan. Give --cost or --labels: "
        "nncift run --time ... --dry-run tells what the time allows"
    )


class _Course:
    """How far a shard comes."""

    def __init__(
        self,
        run: Path,
        context: RunContext,
        axes: Axes,
        constraints: Constraints,
        rounds: Sequence[LabelBudget],
        part: Part,
        wait: bool | None,
    ) -> None:
        self._run, self._work, self._axes, self._constraints = run, context, axes, constraints
        self._rounds, self._part, self._wait = rounds, part, wait
        self.in_rounds = len(rounds) > 1 or context.settings.plan == "active"
        self.calculates = _may_calculate(context.settings, axes)

    def go(self) -> tuple[bool, str]:
        """Go as far as it goes; tell whether nothing is left for shards, and what comes next where it is not plain.

        Raises Incomplete where something is left to others.
        """
        part = self._part
        left, shared = self._own_pieces()
        if not self.in_rounds and self._wait is not True:
            if left:
                return False, ""
            if self.calculates and part.made:
                # Whoever came with a model for labels is not kept for what needs none.
                return False, LABELLED
        if left and (self._wait is False or not part.await_others()):
            return False, ""
        if not (self.in_rounds or self.calculates):
            return True, ""
        part.whole, part.waits = True, self._wait is not False
        vectors = self._vectors(shared=shared)
        # What a round was planned with is on disk; the next is planned from the labels of all.
        plan = plan_labels(self._work, self._axes, self._rounds[0])
        try:
            if len(self._rounds) > 1:
                labels, student, _ = label_in_rounds(self._work, self._axes, vectors, plan, self._rounds)
            else:
                labels = label(self._work, self._axes, plan, self._rounds[0], vectors)
            if not self.calculates:
                return True, ""
            if len(self._rounds) == 1:
                with made_once(self._run, self._work.directory.path, [Leaves("fit", fit_key(self._work), FITTED)]):
                    labels, student, _ = label_in_rounds(self._work, self._axes, vectors, None, self._rounds)
        except QualityError:
            # A gate that is not reached with the last round is told of by the run that joins.
            return True, ""
        self._calculate(vectors, labels, student)
        return True, ""

    def _own_pieces(self) -> tuple[int, bool]:
        """Do what is this shard's of vectors and first labels.

        Return how many tasks are left for others, and whether vectors are in tasks.
        """
        context, axes, left, shared = self._work, self._axes, 0, False
        for stage in (embed_rows, probe_rows):
            try:
                stage(context, axes.rows)
            except Incomplete as unfinished:
                left, shared = left + unfinished.left, True
        try:
            label(context, axes, plan_labels(context, axes, self._rounds[0]), self._rounds[0], None)
        except Incomplete as unfinished:
            left += unfinished.left
        return left, shared

    def _vectors(self, *, shared: bool) -> Vectors:
        """Return the vectors of all rows. shared: shards have them in tasks, which one puts together for all."""
        context = self._work
        if not shared:
            return embed(context, self._axes)
        stages = [
            Leaves(name, context.keys[name], (f"{file}.npy", f"{file}.json"))
            for name, file in (("embed", "embeddings"), ("probe", "probe"))
            if name in context.keys
        ]
        waits, self._part.waits = self._part.waits, False
        with made_once(self._run, context.directory.path, stages):
            vectors = embed(context, self._axes)
        self._part.waits = waits
        return vectors

    def _calculate(self, vectors: Vectors, labels: dict[str, LabelledPairs], student: Student) -> None:
        """Do this shard's parts of what precedes a selection. Raises Incomplete where the next calculation waits for others."""
        context, axes = self._work, self._axes
        settings, directory = context.settings, context.directory
        self._part.forget_others(context.keys["fit"])
        rows = PoolTable.of(axes.sources, tokens=token_counts(context, axes.sources))
        settled = self._constraints.settle(rows, vectors.text)
        if directory.is_done("select", key_of(context.keys, settings, rows, settled), CHOSEN):
            return
        subtask_of = subtasks.keep(directory, axes.targets, subtask_column(context.teacher))
        # Rows that were trained on already are left to the run: the matrix is the same.
        utilities = Utilities(
            student, vectors, labels, rows.content, None, subtask_of, context.calculate, in_memory=False
        )
        with suppress(Enough), directory.measured(SCORE):
            found = build(utilities, settings, settled.removed)
            if isinstance(found, GraphProblem) and found.objective == "fl":
                SparseCoverage(found.graph).choose(
                    settled.k,
                    rules=settled.rules,
                    optimiser=found.optimiser,
                    seed=settings.seed,
                    calculate=context.calculate,
                )


LABELLED = "all labels are there"


def _may_calculate(settings: RunSettings, axes: Axes) -> bool:
    """Tell whether there may be something to calculate that is worth sharing."""
    targets, sources = len(axes.target_ids), len(axes.sources)
    # Its targets are the pool's own rows.
    return may_pay(max(targets, sources) if settings.objective == "flmi" else targets, sources)


def _record(run: Path, shard: Shard, part: Part, course: _Course, finished: bool, then: str) -> dict[str, Any]:
    """Return what is told of a shard. finished: it came to the end of what shards do; then: what comes next, if known."""
    stages = {name: {**asdict(done), "seconds": round(done.seconds, 3)} for name, done in part.done.items()}
    left = {name: done.left for name, done in part.done.items() if done.left}
    if left:
        waiting = ", ".join(f"{count} of {name}" for name, count in left.items())
        then = f"{waiting} tasks are left for other shards; when these have run, "
        if finished:
            then += "run once more without --shard"
        elif SCORE in left:
            then += "run every shard again for the next calculation, or run without --shard, which does the rest"
        elif course.in_rounds:
            then += "run every shard again for the next round"
        else:
            again = "run every shard again to share out what is calculated, or "
            then += f"{again if course.calculates else ''}run once more without --shard"
    elif then:
        then += "; run every shard again, to share out what is calculated from them, or run without --shard, which does it all"
    elif not finished:
        then = "this round is labelled; run every shard again for the next"
    else:
        then = "nothing is left for shards; run once more without --shard, which joins them and selects"
    return {
        "run": str(run),
        "shard": str(shard),
        "stages": stages,
        "left": left,
        "finished": not left and finished,
        "next": then,
        "warnings": list(part.notes),
    }
