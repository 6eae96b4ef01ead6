"""Arms that cost passes of a model: the full teacher, a teacher of a smaller model, and RDS; computed once and resumable."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from nncift import pipeline
from nncift.config import SelectSettings
from nncift.core.amounts import Budget
from nncift.core.fingerprints import fingerprint
from nncift.errors import UsageError
from nncift.finetune.run_rows import Pool
from nncift.models.loading import fingerprint as fingerprint_of
from nncift.models.loading import locate
from nncift.runs.finished import FinishedRun
from nncift.runs.full_teacher import judged_objective, true_problem
from nncift.runs.select_again import reselect
from nncift.runs.true_matrix import true_matrix
from nncift.selection import select
from nncift.selection.constraints import Constraints
from nncift.selection.solve import solve
from nncift.stages.request import Request
from nncift.teachers.rds import Rds


def selected_ids(run: FinishedRun, asked: str | None, folder: Path) -> tuple[str, ...]:
    """Return the run's selection at a budget, in rank order: its own where none is given, else it is selected again.

    folder: for what is selected again; what stands there of the same run is taken as it is.
    """
    if asked is None:
        return run.chosen
    place = folder / fingerprint(_state(run), asked)
    if not (place / "selection.json").exists():
        # Files of a selection that was killed; its account comes last.
        shutil.rmtree(place, ignore_errors=True)
        reselect(run.path, {"budget": asked}, place)
    return tuple(json.loads((place / "selection.json").read_text(encoding="utf-8"))["ids"])


def teacher_ids(pool: Pool, asked: str | None) -> tuple[str, ...]:
    """Return what the run's objective and rules select on the true matrix, which is kept in the run (`truth/`).

    Raises UsageError where rows that were trained on already are not at hand, and the errors of the teacher.
    """
    run, objective = pool.run, judged_objective(pool.run)
    settings = run.settings if asked is None else run.settings.model_copy(update={"budget": Budget.parse(asked)})
    settled = Constraints.read(settings).settle(pool.rows, run.vectors(pool.ids))
    problem = true_problem(run, objective, pool.truth, device=pool.device, progress=pool.progress)
    pool.costs.setdefault("teacher", {})["teacher_passes"] = run.summary["ledger"]["full_teacher_passes"]
    chosen = solve(pool.rows, settled, problem, objective=objective, seed=settings.seed, embedding_control=False)
    return chosen.subset.ids


def small_teacher_ids(pool: Pool, k: int) -> tuple[str, ...]:
    """Return what a run with the same settings and a smaller model selects; it is made under `small-teacher`, and kept.

    Raises UsageError where the run's teacher uses no model, or the smaller one is the one that is trained.
    """
    settings, small = pool.run.settings, str(pool.small_model)
    if settings.model is None:
        raise UsageError(
            f"the arm small-teacher needs a teacher with a model, and this run's {settings.teacher} has none"
        )
    if fingerprint_of(locate(small)) == pool.lm().fingerprint:
        raise UsageError(
            f"--small-model {small!r} is the model that is trained; the arm small-teacher needs a smaller one"
        )
    settings = settings.model_copy(update={"model": small, "device": pool.device})
    folder = pool.folder / "small-teacher"
    request = Request.resolve(settings, pool=pool.examples, target=pool.run.rows.target_examples, out=folder)
    made = pipeline.execute(request, folder, progress=pool.progress)
    record = {name: made.ledger[name] for name in ("teacher_passes", "full_teacher_passes", "seconds")}
    pool.costs.setdefault("small-teacher", {}).update(record)
    return selected_ids(FinishedRun(made.path), str(k), pool.folder / "selections")


def rds_ids(pool: Pool, k: int) -> tuple[str, ...]:
    """Return what RDS+ selects: rows of the target set, or of the pool, take in turn the nearest in the trained model's states.

    The test rows are never looked at. Takes one pass of the model per row, and memory for a matrix of all pairs.
    """
    teacher = Rds(pool.lm(), template=pool.template)
    wanted = pool.run.rows.target_examples
    folder = pool.folder / "rds" / fingerprint(dict(teacher.describe()), pool.ids)
    matrix = true_matrix(teacher, pool.examples, folder, pool.progress, targets=wanted)
    pool.costs.setdefault("rds", {})["teacher_passes"] = len(pool.ids) + len(wanted or ())
    return select(matrix, k, "rr", pool.run.settings.seed).ids


def _state(run: FinishedRun) -> list[Any]:
    """Return what the run's selections depend on: what is finished there, and how it would select."""
    marks = {}
    for stage in ("fit", "existing"):
        path = run.path / "stages" / f"{stage}.json"
        marks[stage] = json.loads(path.read_text(encoding="utf-8"))["fingerprint"] if path.exists() else None
    return [
        marks,
        run.settings.part(SelectSettings),
        run.settings.seed,
        run.rows.ids,
        list(run.rows.raw),
    ]
