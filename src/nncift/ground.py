"""From a trained student to what an objective chooses from: the utilities, and how well a second set serves each target.

Known labels are exact and the rest is predicted (method.md 1), also for rows of a second set that the pool has too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nncift.calculation import Calculate, here
from nncift.choosing import Ground, OnGraph
from nncift.config import SelectSettings
from nncift.errors import DataError, UsageError
from nncift.pairs import LabelledPairs, Predicted, UtilityMatrix
from nncift.seeds import generator
from nncift.select.budget import parse_tokens
from nncift.select.graphs import scored_graph, with_known
from nncift.select.neighbours import EXACT_ROWS, Neighbours, lifted, nearest
from nncift.select.objectives import Reference
from nncift.student.model import Student
from nncift.student.score import all_pairs, best_per_target, mean_per_source

Floats = npt.NDArray[np.float32]
SCORED_TARGETS = 2000


COVERING = ("fl", "flmi", "fl2mi", "flcg")
"""Objectives that live on each target's best source."""


@dataclass(frozen=True)
class Existing:
    """The rows that were trained on already. vectors: `(n, d)`, as the student reads them; contents: their content hashes."""

    vectors: Floats
    contents: tuple[str, ...]


def default_objective(*, pointwise: bool, target: bool, existing: bool) -> str:
    """Return the objective that fits the sets at hand (method.md 4)."""
    if pointwise:
        return "topk"
    return "flcg" if existing else "fl2mi" if target else "fl"


def refuse_unfit(objective: str, *, pointwise: bool, target: bool, existing: bool) -> None:
    """Raise UsageError where an objective lacks the set that it is about, or has one that it would not look at."""
    if pointwise and objective not in ("topk", "random"):
        raise UsageError(f"--objective {objective} needs utilities of pairs, and this teacher gives scores; use topk")
    if objective in ("flmi", "fl2mi") and not target:
        raise UsageError(f"--objective {objective} is about a target set; give --target FILE, or use fl")
    if objective == "flcg" and not existing:
        raise UsageError("--objective flcg is about rows that were trained on already; give --existing FILE, or use fl")
    if existing and objective != "flcg":
        raise UsageError(
            f"--existing was given, and --objective {objective} does not look at it; use flcg, or leave it out"
        )


def ground_of(
    objective: str, student: Student, matrix: Callable[[Student], Predicted], targets: Floats, sources: Floats,
    ids: tuple[str, ...], contents: Sequence[str], existing: Existing | None, *, shared: bool, calculate: Calculate = here,
) -> Ground:  # fmt: skip
    """Return what an objective chooses from.

    matrix: gives it, known labels exact and the rest predicted by a student, over the run's targets and sources; targets,
    sources: vectors of these, sources in the order of `ids`. Coverage objectives see the student's tail, scores do not.
    ids, contents: id and content hash of every source. `flmi` looks at the pool's rows as targets, whose utilities are all
    predicted where the run has a target set of its own.
    """
    _refuse_not_finite(student, targets, sources, ids)
    if objective == "flmi":
        return _aimed(student, ids, targets, sources, calculate)
    reference = None
    if objective in COVERING:
        student = student.for_coverage()
    found = matrix(student)
    known = found.matrix
    if objective == "flcg" and existing is not None:
        named = dict(zip(ids, contents, strict=True))
        reference = _already(student, known, targets, sources, named, existing, calculate)
    return Ground(known, reference, student.text_of(sources), shared, found.score)


def graph_of(
    student: Student, known: LabelledPairs, sources: Floats, settings: SelectSettings, seed: int,
    removed: Collection[str] = (), calculate: Calculate = here,
) -> OnGraph:  # fmt: skip
    """Return a graph of the pool's rows: the nearest of each and a few random ones, less the rows that are removed first.

    A network whose predictions are inner products (`towers`) finds each target's nearest by these, others by embedding. Known
    labels are exact, the rest is predicted. A row's score is its mean over at most SCORED_TARGETS rows, drawn by the seed.
    sources: vectors of all rows, in the order of `known`.
    """
    _refuse_not_finite(student, sources, sources, known.source_ids)
    drawn = np.sort(generator(seed, "select", "scored").permutation(len(sources))[:SCORED_TARGETS])
    as_targets = student.project_targets(sources[drawn])
    score = mean_per_source(student, as_targets, student.project_sources(sources), calculate=calculate)
    keep = np.array([place for place, item in enumerate(known.source_ids) if item not in removed], np.int64)
    ids, rows = tuple(known.source_ids[place] for place in keep), sources if not removed else sources[keep]
    covering, k = student.for_coverage(), min(settings.neighbours or 0, max(len(keep) - 1, 1))
    alike: Neighbours | None
    if covering.is_inner_product:
        queries, vectors = lifted(covering.project_targets(rows), covering.project_sources(rows))
        near = nearest(vectors, k, queries=queries, seed=seed, calculate=calculate)
        # For the control that selects by embeddings alone; on large pools it would double the search.
        alike = nearest(student.text_of(rows), k, seed=seed, calculate=calculate) if len(ids) <= EXACT_ROWS else None
    else:
        near = alike = nearest(student.text_of(rows), k, seed=seed, calculate=calculate)
    last = settings.optimiser != "partition"
    graph = with_known(scored_graph(covering, ids, rows, rows, near, seed=seed, calculate=calculate, last=last), known)
    return OnGraph(graph, near, score, alike, settings.optimiser or "lazy")


def refuse_graph(settings: SelectSettings, objective: str, *, shared: bool) -> None:
    """Raise UsageError where a selection on a graph of neighbours is asked for what only the whole matrix gives."""
    if settings.neighbours is None:
        if settings.optimiser not in (None, "lazy"):
            raise UsageError(
                f"--optimiser {settings.optimiser} works on a graph of neighbours; give --neighbours 64, or lazy"
            )
        return
    if objective != "fl" or not shared:
        raise UsageError(
            f"--neighbours selects by fl over the pool's own rows, and the objective is {objective}; leave it out"
        )
    rules = {"--quota": settings.quota, "--include": settings.include, "--exclude": settings.exclude}
    named = [flag for flag, value in rules.items() if value]
    if parse_tokens(settings.budget) is not None:
        named.append("a budget of tokens")
    if named and settings.optimiser not in (None, "lazy"):
        raise UsageError(f"--optimiser {settings.optimiser} does not go with {', '.join(named)}; use lazy")


def _refuse_not_finite(student: Student, targets: Floats, sources: Floats, ids: tuple[str, ...]) -> None:
    """Raise DataError, naming the rows, where a prediction would be NaN or infinite: it would pass for a missing value."""
    both = (("source", student.projected_sources(sources)), ("target", student.projected_targets(targets)))
    for axis, blocks in both:
        infinite = [at.start + np.flatnonzero(~np.isfinite(known).all(axis=1)) for at, known in blocks]
        bad = np.concatenate([*infinite, np.empty(0, np.intp)])
        if len(bad):
            whole = axis == "source" or len(targets) == len(ids)
            names = [ids[i] if whole else f"target {i + 1}" for i in bad[:5].tolist()]
            raise DataError(
                f"the student's predictions are not finite for {len(bad)} {axis} rows ({', '.join(names)}); its weights or their "
                "embeddings are damaged: use another --out"
            )


def _aimed(student: Student, ids: tuple[str, ...], wanted: Floats, pool: Floats, calculate: Calculate) -> Ground:
    """Return the pool against itself, and how well the target set's rows serve each of its rows."""
    score = mean_per_source(student, student.project_targets(pool), student.project_sources(pool), calculate=calculate)
    covering = student.for_coverage()
    as_targets = covering.project_targets(pool)
    best, low = best_per_target(covering, as_targets, covering.project_sources(wanted), calculate=calculate)
    values = all_pairs(covering, as_targets, covering.project_sources(pool), calculate)
    np.fill_diagonal(values, np.nan)
    reference = Reference(ids, best.astype(np.float64), low)
    return Ground(UtilityMatrix(ids, ids, values), reference, student.text_of(pool), True, score)


def _already(
    student: Student,
    matrix: UtilityMatrix,
    targets: Floats,
    sources: Floats,
    contents: Mapping[str, str],
    existing: Existing,
    calculate: Calculate,
) -> Reference:
    """Return how well the existing rows serve each target; one that the pool has too serves as the pool's row does."""
    place = {contents[item]: s for s, item in enumerate(matrix.source_ids)}
    twins = sorted({place[content] for content in existing.contents if content in place})
    # A copy of a target serves it, though the pool's row itself is masked there: that entry alone is predicted.
    others = [i for i, content in enumerate(existing.contents) if content not in place]
    as_targets = student.project_targets(targets)
    best, low = best_per_target(
        student, as_targets, student.project_sources(existing.vectors[others]), calculate=calculate
    )
    target_place = {item: t for t, item in enumerate(matrix.target_ids)}
    for s in twins:
        column = matrix.values[:, s].astype(np.float32)
        own = target_place.get(matrix.source_ids[s])
        if own is not None:
            column[own] = student.predict_block(as_targets[[own]], student.project_sources(sources[[s]]))[0, 0]
        best = np.fmax(best, column)
        low = min(low, float(np.nanmin(column, initial=np.inf)))
    return Reference(matrix.target_ids, best.astype(np.float64), low)
