"""One shard of a run: the stages whose pieces can be shared out, up to the labels (docs/scale.md)."""

from __future__ import annotations

from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nncift.config import RunSettings
from nncift.data import Examples
from nncift.encode import Encoder
from nncift.errors import QualityError
from nncift.fitting import refuse_unfit_student
from nncift.growing import climb, rungs
from nncift.labelling import Axes
from nncift.plan import LabelPlan
from nncift.progress import Progress, silent
from nncift.rows import RowPlan
from nncift.rundir import RunDir
from nncift.scale.pieces import Unfinished
from nncift.scale.shards import Part, Shard, shadow_of
from nncift.stages import (
    Work,
    embed,
    embed_rows,
    label,
    named_target,
    plan_labels,
    probe_rows,
    refuse_impossible,
    usable_rows,
)  # fmt: skip
from nncift.table import Rows
from nncift.teachers import RowTeacher, Teacher
from nncift.vectors import Vectors
from nncift.wishes import Wishes


def run_shard(
    settings: RunSettings,
    pool: Examples,
    out: str | Path,
    shard: Shard,
    *,
    teacher: Teacher | RowTeacher,
    target: Examples | None = None,
    existing: Examples | None = None,
    encoder: Encoder | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Do what is this shard's of embedding, probing and labelling, and tell what was done and what is left.

    Where labels come in rounds (plan `active`, `--labels auto`, gates), the shard goes as far as the labels of the others allow:
    every further round begins when all shards have finished the one before. Raises the errors of a run.
    """
    refuse_unfit_student(settings)
    settings = refuse_impossible(settings, pool, teacher, target, existing)
    wanted = None if target is None else named_target(target)
    run = Path(out)
    with shadow_of(run, shard) as scratch, RunDir(scratch, settings) as directory:
        work = Work(directory, settings, teacher, encoder, progress)
        axes, _ = usable_rows(work, pool, wanted)
        Wishes.read(settings).check(Rows.of(axes.sources))
        rounds = rungs(settings, axes, by_row=isinstance(teacher, RowTeacher), have=work.labels().training())
        in_rounds = len(rounds) > 1 or settings.plan == "active"
        work.settings = rounds[0]
        plan = plan_labels(work, axes)
        with closing(Part(run, shard, whole=in_rounds)) as part:
            work.engine = part
            vectors = _vectors(work, axes, whole=in_rounds)
            finished = _labels(work, axes, vectors, plan, rounds)
        return _told(run, shard, part, finished=finished, in_rounds=in_rounds)


def _vectors(work: Work, axes: Axes, *, whole: bool) -> Vectors | None:
    """Embed and probe what is this shard's; return all vectors where later rounds need them and they are there."""
    waits = False
    for stage in (embed_rows, probe_rows):
        try:
            stage(work, axes.rows)
        except Unfinished:
            waits = True
    return None if waits or not whole else embed(work, axes)


def _labels(
    work: Work,
    axes: Axes,
    vectors: Vectors | None,
    plan: LabelPlan | RowPlan | None,
    rounds: list[RunSettings],
) -> bool:
    """Label what is this shard's, and tell whether all labels of the run are there."""
    try:
        if vectors is not None and len(rounds) > 1:
            # A gate that is not reached with the last round is told of by the run that joins.
            with suppress(QualityError):
                climb(work, axes, vectors, plan, rounds)
        else:
            label(work, axes, plan, vectors)
    except Unfinished as unfinished:
        return unfinished.stage == "label" and not unfinished.left and plan is not None
    return len(rounds) == 1 or vectors is not None


def _told(run: Path, shard: Shard, part: Part, *, finished: bool, in_rounds: bool) -> dict[str, Any]:
    stages = {
        name: {**asdict(done), "seconds": round(done.seconds, 3)} for name, done in part.done.items()
    }  # fmt: skip
    left = {name: done.left for name, done in part.done.items() if done.left}
    if left:
        waiting = ", ".join(f"{count} of {name}" for name, count in left.items())
        then = f"{waiting} pieces are left for other shards; when these have run, "
        then += "run every shard again for the next round" if in_rounds else "run once more without --shard"
    elif not finished:
        then = "this round is labelled; run every shard again for the next"
    else:
        then = "nothing is left for shards; run once more without --shard, which joins them and selects"
    return {
        "run": str(run), "shard": str(shard), "stages": stages, "left": left, "finished": not left and finished, "next": then,
        "warnings": list(part.notes),
    }  # fmt: skip
