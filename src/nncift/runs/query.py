"""Which rows of a run's pool push a model to an answer: it is a new target, and the run's student predicts who serves it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from nncift.core.progress import Progress, silent
from nncift.core.result_types import Record
from nncift.data import Examples
from nncift.errors import UsageError
from nncift.runs.finished import FinishedRun
from nncift.runs.full_teacher import taught
from nncift.runs.renew_verdict import verdict

TOP, SUGGESTED = 10, 50
PREFIX = "query:"
"""In front of a query's id while the teacher is asked, so that no row of the pool has the same."""


@dataclass(frozen=True)
class PushingRow(Record):
    """A row of the pool, and what training on it does for a query.

    utility: by the teacher where `known`, else predicted, with the run's interval around it where there is one. predicted: by the
    student. selected, rank: in the run.
    """

    id: str
    source: str
    prompt: str
    response: str
    selected: bool
    rank: int | None
    utility: float
    known: bool
    low: float | None
    high: float | None
    predicted: float


@dataclass(frozen=True)
class Answer(Record):
    """The rows that push to a query, the strongest first. mean, deviation: of predictions over the whole pool."""

    prompt: str
    response: str
    rows: tuple[PushingRow, ...]
    mean: float
    deviation: float


@dataclass(frozen=True)
class QueryResult(Record):
    """What `nncift query` reports. exact: rows of each query whose utility the teacher computed. level: of the intervals."""

    run: str
    teacher: str
    pool: int
    exact: int
    level: float | None
    answers: tuple[Answer, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Question:
    """How a query is answered. top: rows that are returned. exact: rows, the best by the student, that the teacher computes."""

    top: int = TOP
    exact: int = 0
    device: str = "auto"


def query(
    run: str | Path | FinishedRun, queries: Examples, question: Question | None = None, *, progress: Progress = silent
) -> QueryResult:
    """Return for each query which rows of the run's pool push a model to its response.

    The student predicts in seconds: beside the query's own embedding, and its own pass through the teacher's model where the
    student reads a probe, no model is asked. Raises UsageError where the run's teacher knows no targets.
    """
    found, asked = run if isinstance(run, FinishedRun) else FinishedRun(run), question or Question()
    found.check_same_rows()
    if found.pointwise:
        raise UsageError(
            f"the teacher of this run, {found.settings.teacher}, scores rows by themselves and knows no targets; a query needs a "
            "run of a teacher of pairs, such as --teacher delift, less or rds"
        )
    if asked.top < 1 or asked.exact < 0:
        raise UsageError(
            f"--top {asked.top} and --exact {asked.exact} were given; expected at least 1 row, and 0 or more"
        )
    found.check_models(model=asked.exact > 0 or found.student.probe is not None)
    values = _predicted(found, queries, asked, progress)
    exact = min(len(found.rows.ids), asked.exact)
    known = _taught(found, queries, values, exact, asked.device, progress) if exact else [{} for _ in queries]
    answers = tuple(
        _answer(found, row, line, labels, asked.top) for row, line, labels in zip(queries, values, known, strict=True)
    )
    level = None if found.fidelity.pair_interval.half_width is None else 0.9
    name = str(found.settings.teacher)
    return QueryResult(
        str(found.path), name, len(found.rows.ids), exact, level, answers, _warnings(found, queries, exact)
    )


def _predicted(run: FinishedRun, queries: Examples, asked: Question, progress: Progress) -> npt.NDArray[np.float64]:
    """Return predicted utilities, `(n_queries, n_sources)`."""
    with progress("reading the query", 1) as advance:
        targets = run.student.project_targets(
            run.student.vectors_of(queries, device=asked.device, fetch=run.allowed.fetch)
        )
        advance(1)
    return np.asarray(run.predicted_for(targets), np.float64)


def _taught(
    run: FinishedRun,
    queries: Examples,
    values: npt.NDArray[np.float64],
    exact: int,
    device: str,
    progress: Progress,
) -> list[dict[str, float]]:
    """Return by query the teacher's utilities of the rows that the student finds best."""
    ids = run.rows.ids
    best = [np.argsort(-line, kind="stable")[:exact] for line in values]
    wanted = [ids[at] for at in np.unique(np.concatenate(best))]
    sources = Examples(tuple(run.rows.example(item) for item in wanted))
    named = Examples(tuple(replace(row, id=f"{PREFIX}{row.id}") for row in queries))
    with TemporaryDirectory(prefix="nncift-query-") as folder:
        matrix = taught(run, sources, named, Path(folder), device=device, progress=progress)
    place = {item: at for at, item in enumerate(matrix.target_ids)}
    found = []
    for row, mine in zip(named, best, strict=True):
        line = dict(zip(matrix.source_ids, matrix.values[place[row.id]].tolist(), strict=True))
        found.append({ids[at]: line[ids[at]] for at in mine if np.isfinite(line[ids[at]])})
    return found


def _answer(run: FinishedRun, query: Any, line: npt.NDArray[np.float64], labels: dict[str, float], top: int) -> Answer:
    ids, width = run.rows.ids, run.fidelity.pair_interval.half_width
    # What the teacher computed stands among predictions of the others.
    utility = np.array([labels.get(item, value) for item, value in zip(ids, line, strict=True)])
    order = np.argsort(-utility, kind="stable")
    if labels:
        # A prediction may be anything where the exact value is asked for: what was computed comes first.
        order = np.array(sorted(order, key=lambda at: ids[at] not in labels), np.intp)
    rows = []
    for at in order[:top]:
        item, choice, example = ids[at], run.choices[ids[at]], run.rows.example(ids[at])
        known = item in labels
        around = None if known or width is None else (float(line[at] - width), float(line[at] + width))
        rows.append(
            PushingRow(
                item,
                choice.source,
                example.prompt,
                example.response,
                choice.selected,
                choice.rank,
                float(utility[at]),
                known,
                None if around is None else around[0],
                None if around is None else around[1],
                float(line[at]),
            )
        )
    return Answer(query.prompt, query.response, tuple(rows), float(line.mean()), float(line.std()))


def _warnings(run: FinishedRun, queries: Sequence[Any], exact: int) -> tuple[str, ...]:
    answer = verdict(run)
    found = [*getattr(queries, "notes", ())]
    if not exact and answer.agrees_with_teacher != "yes":
        found.append(
            f"{answer.headline} What its student predicts here is no surer: --exact {SUGGESTED} has the teacher itself compute "
            "the rows that the student finds best."
        )
    return tuple(found)
