"""The algorithm, stage by stage (method.md 1; NN-CIFT, arXiv 2502.09969).

Read the pool, let the teacher label a few percent of its pairs, let the student learn them from embeddings, measure how
well it does on pairs of unseen items, predict all other pairs, and select. Every stage leaves its files and its mark in
the run directory, so a run that was stopped goes on where it was, and a finished run can be extended.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nncift import config
from nncift.config import RunSettings
from nncift.data import Examples, read
from nncift.encode import Encoder
from nncift.errors import UsageError
from nncift.progress import Progress, silent
from nncift.results import Run, choose, finish
from nncift.rundir import RunDir
from nncift.select import parse_budget
from nncift.stages import Work, embed, fit_student, label, plan_labels, predict, refuse_impossible, usable_rows
from nncift.teachers import Teacher
from nncift.teachers.registry import as_settings
from nncift.teachers.registry import create as create_teacher


def run(
    pool: Examples | str | Path | Sequence[str | Path],
    *,
    out: str | Path,
    teacher: str | Teacher = "delift",
    encoder: str | Encoder = "minilm",
    progress: Progress = silent,
    **settings: Any,
) -> Run:
    """Select from a pool by learned influence; the settings are those of `config.RunSettings`.

    pool: examples already read, or files. teacher and encoder: names or objects. out: the run directory; one that exists
    is continued or extended. Raises the errors of `nncift.errors`.
    """
    given = dict(settings)
    if isinstance(teacher, str):
        given["teacher"] = teacher
    else:
        given.update(as_settings(teacher.options))
    given["encoder"] = encoder if isinstance(encoder, str) else str(encoder.describe()["encoder"])
    if not isinstance(pool, Examples):
        paths = [pool] if isinstance(pool, str | Path) else list(pool)
        given["pool"] = tuple(str(path) for path in paths)
    resolved = config.resolve(given)
    return execute(
        resolved,
        pool if isinstance(pool, Examples) else read_pool(resolved),
        out,
        teacher=create_teacher(resolved, resolved.device) if isinstance(teacher, str) else teacher,
        encoder=None if isinstance(encoder, str) else encoder,
        progress=progress,
    )


def read_pool(settings: RunSettings) -> Examples:
    """Read the files that settings name. Raises UsageError where there are none."""
    if not settings.pool:
        raise UsageError("no pool was given; name at least one file of instruction examples")
    return read(
        *settings.pool, format=settings.format, map=settings.map, limit=settings.limit, seed=settings.seed,
        strict=settings.strict,
    )  # fmt: skip


def execute(
    settings: RunSettings,
    pool: Examples,
    out: str | Path,
    *,
    teacher: Teacher,
    encoder: Encoder | None = None,
    progress: Progress = silent,
) -> Run:
    """Run every stage that is not finished yet, and return the run."""
    refuse_impossible(settings, pool)
    with RunDir(out, settings) as directory:
        work = Work(directory, settings, teacher, encoder, progress)
        usable, rejected = usable_rows(work, pool)
        budget = parse_budget(settings.budget, len(usable))
        plan = plan_labels(work, usable)
        # Only now: what was refused so far has changed nothing that an earlier run left.
        directory.write_manifest({"rows_read": len(pool), "rejected": len(pool.rejected)})
        vectors, truncated = embed(work, usable)
        labels = label(work, usable, plan)
        student, fidelity = fit_student(work, vectors, labels)
        matrix = partial(predict, student, vectors, labels, shared=plan.shared)
        subset, selection = choose(work, usable, matrix, vectors, budget)
        notes = (*pool.notes, *_truncation(truncated, len(usable)))
        return finish(work, subset, selection, rejected, plan, fidelity, notes)


def _truncation(truncated: int, rows: int) -> list[str]:
    if not truncated:
        return []
    return [f"The encoder reads only the beginning of {truncated} of {rows} rows ({100 * truncated / rows:.1f} %)."]
