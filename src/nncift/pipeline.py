"""The algorithm, stage by stage (method.md 1; NN-CIFT, arXiv 2502.09969).

Read the pool, let the teacher label a few percent of its pairs, let the student learn them from embeddings, measure how
well it does on pairs of unseen items, predict all other pairs, and select. Every stage leaves its files and its mark in
the run directory, so a run that was stopped goes on where it was, and a finished run can be extended.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from nncift import config
from nncift.config import RunSettings
from nncift.data import Examples, read
from nncift.encode import Encoder
from nncift.errors import UsageError
from nncift.progress import Progress, silent
from nncift.report import write_report
from nncift.results import Run, choose, finish
from nncift.rows_file import write_rows_file
from nncift.rundir import RunDir
from nncift.select import parse_budget
from nncift.stages import (
    Work,
    embed,
    fit_student,
    label,
    named_target,
    plan_labels,
    predict,
    refuse_impossible,
    usable_rows,
)  # fmt: skip
from nncift.teachers import RowTeacher, Teacher, registry


def run(
    pool: Examples | str | Path | Sequence[str | Path],
    *,
    out: str | Path,
    teacher: str | Teacher | RowTeacher = "delift",
    target: Examples | str | Path | Sequence[str | Path] | None = None,
    encoder: str | Encoder = "minilm",
    progress: Progress = silent,
    **settings: Any,
) -> Run:
    """Select from a pool by learned influence; the settings are those of `config.RunSettings`.

    pool, and the optional target set: examples already read, or files. teacher and encoder: names or objects. out: the run
    directory; one that exists is continued or extended. Raises the errors of `nncift.errors`.
    """
    given = dict(settings)
    if isinstance(teacher, str):
        given["teacher"] = teacher
    else:
        given.update(registry.as_settings(teacher.options))
    given["encoder"] = encoder if isinstance(encoder, str) else str(encoder.describe()["encoder"])
    for name, rows in (("pool", pool), ("target", target)):
        if rows is not None and not isinstance(rows, Examples):
            paths = [rows] if isinstance(rows, str | Path) else list(rows)
            given[name] = tuple(str(path) for path in paths)
    resolved = config.resolve(given)
    if isinstance(teacher, str):
        teacher = registry.create(
            resolved, resolved.device, seed=resolved.seed, encoder=resolved.encoder, workspace=workspace_of(out)
        )
    return execute(
        resolved,
        pool if isinstance(pool, Examples) else read_pool(resolved),
        out,
        teacher=teacher,
        target=target if isinstance(target, Examples) else read_target(resolved),
        encoder=None if isinstance(encoder, str) else encoder,
        progress=progress,
    )


def read_pool(settings: RunSettings) -> Examples:
    """Read the files that settings name. Raises UsageError where there are none."""
    if not settings.pool:
        raise UsageError("no pool was given; name at least one file of instruction examples")
    return _read(settings, settings.pool, settings.limit)


def read_target(settings: RunSettings) -> Examples | None:
    """Read the target set, None where there is none."""
    return _read(settings, settings.target, None) if settings.target else None


def workspace_of(out: str | Path | None) -> Path | None:
    """Return the folder of a run for what its teacher keeps."""
    return None if out is None else Path(out) / "labels" / "teacher"


def execute(
    settings: RunSettings,
    pool: Examples,
    out: str | Path,
    *,
    teacher: Teacher | RowTeacher,
    target: Examples | None = None,
    encoder: Encoder | None = None,
    progress: Progress = silent,
) -> Run:
    """Run every stage that is not finished yet, and return the run."""
    if target is None:
        target = read_target(settings)
    settings = refuse_impossible(settings, pool, teacher, target)
    wanted = None if target is None else named_target(target)
    with _lent_workspace(teacher, out), RunDir(out, settings) as directory:
        work = Work(directory, settings, teacher, encoder, progress)
        axes, rejected = usable_rows(work, pool, wanted)
        budget = parse_budget(settings.budget, len(axes.sources))
        plan = plan_labels(work, axes)
        # Only now: what was refused so far has changed nothing that an earlier run left.
        directory.write_manifest({"rows_read": len(pool), "rejected": len(pool.rejected)})
        vectors = embed(work, axes)
        labels = label(work, axes, plan)
        student, fidelity = fit_student(work, vectors, labels)
        write_rows_file(directory.path, axes.sources, axes.targets)
        matrix = partial(predict, student, vectors, labels, shared=axes.shared)
        subset, selection = choose(work, axes.sources, matrix, vectors.sources, budget)
        notes = (*pool.notes, *_truncation(vectors.truncated, len(axes.rows)))
        done = finish(work, axes, subset, selection, rejected, fidelity, notes)
        with progress("writing the report", 1):
            write_report(done.path)
        return done


@contextmanager
def _lent_workspace(teacher: Teacher | RowTeacher, out: str | Path) -> Iterator[None]:
    """Let a teacher that was made by hand keep in the run what it must not lose in a kill, as one made by name does."""
    lacks: Any = teacher if getattr(teacher, "workspace", out) is None else None
    if lacks is not None:
        lacks.workspace = workspace_of(out)
    try:
        yield
    finally:
        if lacks is not None:
            lacks.workspace = None


def _read(settings: RunSettings, paths: Sequence[str], limit: int | None) -> Examples:
    return read(
        *paths, format=settings.format, map=settings.map, limit=limit, seed=settings.seed, strict=settings.strict
    )


def _truncation(truncated: int, rows: int) -> list[str]:
    if not truncated:
        return []
    return [f"The encoder reads only the beginning of {truncated} of {rows} rows ({100 * truncated / rows:.1f} %)."]
