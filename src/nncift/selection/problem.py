"""From a trained student to what an objective chooses from: the utilities, and how well a second set serves each target.

Known labels are exact and the rest is predicted (method.md 1), also for rows of a second set that the pool has too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from nncift.config import SelectSettings
from nncift.core.pairs import LabelledPairs, Predicted, UtilityMatrix
from nncift.core.parallel import ParallelMap, serial_map
from nncift.core.seeds import generator
from nncift.errors import DataError, UsageError
from nncift.models.views import TEXT, Views
from nncift.selection import COVERING
from nncift.selection.budget import parse_tokens
from nncift.selection.graphs import drop_repeats, scored_graph, with_known
from nncift.selection.neighbours import EXACT_ROWS, Neighbours, lifted, nearest, nearest_to
from nncift.selection.objectives import Reference
from nncift.selection.probe_controls import EMBEDDING, FreeSimilarities
from nncift.selection.solve import DenseProblem, GraphProblem
from nncift.selection.sparse import Graph
from nncift.student.model import Student
from nncift.student.score import all_pairs, best_per_target, mean_per_source, top_per_target

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
SCORED_TARGETS = 2000


KNOWS_EXISTING = ("flcg", "rr", "max")
"""Objectives that look at rows that were trained on already."""
ON_GRAPH = ("fl", "rr", "max")
"""Objectives that can select on a graph of neighbours."""
IN_TURN = ("rds", "less")
"""Teachers whose published selections for a target set take rows in turn for each target."""


@dataclass(frozen=True)
class Existing:
    """The rows that were trained on already. vectors: `(n, d)`, as the student reads them; contents: their content hashes."""

    vectors: Floats
    contents: tuple[str, ...]


def default_objective(*, pointwise: bool, target: bool, existing: bool, teacher: str = "") -> str:
    """Return the objective that fits the sets at hand, and the teacher (method.md 4)."""
    if pointwise:
        return "topk"
    if existing:
        return "flcg"
    if target:
        return "rr" if teacher in IN_TURN else "fl2mi"
    return "fl"


def refuse_unfit(objective: str, *, pointwise: bool, target: bool, existing: bool) -> None:
    """Raise UsageError where an objective lacks the set that it is about, or has one that it would not look at."""
    if pointwise and objective not in ("topk", "random"):
        raise UsageError(f"--objective {objective} needs utilities of pairs, and this teacher gives scores; use topk")
    if objective in ("flmi", "fl2mi") and not target:
        raise UsageError(f"--objective {objective} is about a target set; give --target FILE, or use fl")
    if objective == "flcg" and not existing:
        raise UsageError("--objective flcg is about rows that were trained on already; give --existing FILE, or use fl")
    if existing and objective not in KNOWS_EXISTING:
        raise UsageError(
            f"--existing was given, and --objective {objective} does not look at it; use flcg, rr or max, or leave it out"
        )


def dense_problem(
    objective: str,
    student: Student,
    matrix: Callable[[Student], Predicted],
    targets: Floats,
    sources: Floats,
    ids: tuple[str, ...],
    contents: Sequence[str],
    existing: Existing | None,
    *,
    shared: bool,
    subtask_of: Mapping[str, str] | None = None,
    calculate: ParallelMap = serial_map,
) -> DenseProblem:
    """Return what an objective chooses from.

    matrix: gives it, known labels exact and the rest predicted by a student, over the run's targets and sources; targets,
    sources: vectors of these, sources in the order of `ids`. Objectives of coverage see the student's tail, others do not.
    ids, contents: id and content hash of every source. `flmi` looks at the pool's rows as targets, whose utilities are all
    predicted where the run has a target set of its own. subtask_of: each target's subtask, where targets have any.
    """
    _check_all_finite(student, targets, sources, ids)
    similar = FreeSimilarities(views_of(student, sources), targets, sources, shared)
    if objective == "flmi":
        # Scores are means over the run's targets, whatever the objective looks at.
        plain = matrix(student)
        score = plain.matrix.mean_per_source() if plain.score is None else plain.score
        return _aimed(student, ids, similar, score, calculate)
    reference = None
    if objective in COVERING:
        student = student.for_coverage()
    found = matrix(student)
    known = found.matrix
    if objective in KNOWS_EXISTING and existing is not None:
        named = dict(zip(ids, contents, strict=True))
        reference = _already(student, known, targets, sources, named, existing, calculate)
        similar = replace(similar, second=existing.vectors)
    return DenseProblem(known, reference, similar, shared, found.score, subtask_of)


def views_of(student: Student, vectors: Floats) -> Views:
    """Return what a student's vectors consist of."""
    return student.views or Views.of({TEXT: vectors.shape[1]})


def graph_problem(
    student: Student,
    known: LabelledPairs,
    sources: Floats,
    settings: SelectSettings,
    seed: int,
    removed: Collection[str] = (),
    calculate: ParallelMap = serial_map,
    *,
    targets: Floats | None = None,
    subtask_of: Mapping[str, str] | None = None,
) -> GraphProblem:
    """Return a graph of the pool's rows: the nearest of each and a few random ones, less the rows that are removed first.

    A network whose predictions are inner products (`towers`) finds each target's nearest by these, others by embedding. Known
    labels are exact, the rest is predicted. A row's score is its mean over at most SCORED_TARGETS targets, drawn by the seed.
    sources: vectors of all rows, in the order of `known`. targets: those of a target set; None = the pool's rows themselves.
    With a target set, the sources of each target are those with the highest predictions, and the best known ones.
    """
    shared, objective = targets is None, str(settings.objective or "fl")
    across = sources if targets is None else targets
    _check_all_finite(student, across, sources, known.source_ids)
    score = _scores(student, known, across, sources, seed, calculate, shared=shared)
    keep = np.array([place for place, item in enumerate(known.source_ids) if item not in removed], np.int64)
    ids, rows = tuple(known.source_ids[place] for place in keep), sources if not removed else sources[keep]
    used = student.for_coverage() if objective in COVERING else student
    similar = FreeSimilarities(views_of(student, sources), rows if targets is None else targets, rows, shared)
    wanted = settings.neighbours or 0
    alike: dict[str, Graph | None]
    if targets is not None:
        k = min(wanted, len(ids))
        graph, recall = _best_known(used, known, ids, targets, rows, k), 1.0
        alike = {name: _similar_graph(similar, name, known.target_ids, ids, k) for name in similar.names}
    else:
        k = min(wanted, max(len(keep) - 1, 1))
        last = settings.optimiser != "partition"
        near, embedded = _neighbours(used, similar, k, seed, calculate)
        graph = with_known(scored_graph(used, ids, rows, rows, near, seed=seed, calculate=calculate, last=last), known)
        recall = near.recall
        alike = dict.fromkeys(similar.names)
        if embedded is not None:
            alike[EMBEDDING] = _of_neighbours(embedded, ids)
        for name in similar.names:
            if alike[name] is None and name != EMBEDDING and len(ids) <= EXACT_ROWS:
                side = similar.sides(name, rows, rows)[0]
                alike[name] = _of_neighbours(nearest(side, k, seed=seed, calculate=calculate), ids)
    return GraphProblem(graph, k, recall, score, alike, settings.optimiser or "lazy", objective, subtask_of)


def _neighbours(
    student: Student, similar: FreeSimilarities, k: int, seed: int, calculate: ParallelMap
) -> tuple[Neighbours, Neighbours | None]:
    """Return the neighbours of the pool's rows that a graph is made of, and by embedding for the control where they are found."""
    rows, text = similar.sources, similar.views.take(similar.sources, TEXT)
    if not student.is_inner_product:
        near = nearest(text, k, seed=seed, calculate=calculate)
        return near, near
    queries, vectors = lifted(student.project_targets(rows), student.project_sources(rows))
    near = nearest(vectors, k, queries=queries, seed=seed, calculate=calculate)
    # For the control that selects by embeddings alone; on large pools it would double the search.
    return near, nearest(text, k, seed=seed, calculate=calculate) if len(rows) <= EXACT_ROWS else None


def _of_neighbours(found: Neighbours, ids: tuple[str, ...]) -> Graph:
    return Graph(ids, ids, found.codes, np.where(found.codes >= 0, found.cosine, np.float32(np.nan)))


def _similar_graph(
    similar: FreeSimilarities, name: str, target_ids: tuple[str, ...], ids: tuple[str, ...], k: int
) -> Graph:
    """Return the most similar rows of every row of a target set."""
    codes, cosine = nearest_to(*similar.sides(name, similar.targets, similar.sources), k)
    return Graph(target_ids, ids, codes, np.where(codes >= 0, cosine, np.float32(np.nan)))


def _best_known(
    student: Student, known: LabelledPairs, ids: tuple[str, ...], targets: Floats, rows: Floats, k: int
) -> Graph:
    """Return for each row of a target set the sources with the highest predictions, and with the highest known utilities."""
    codes, utility = top_per_target(student, student.project_targets(targets), student.project_sources(rows), k)
    place = {item: at for at, item in enumerate(ids)}
    source = np.array([place.get(item, -1) for item in known.source_ids], np.int64)[known.source]
    fine = np.isfinite(known.value) & (source >= 0)
    target, source, value = known.target[fine], source[fine], known.value[fine]
    order = np.lexsort((source, -value, target))
    target, source, value = target[order], source[order], value[order]
    rank = np.arange(len(target)) - np.searchsorted(target, target)
    first = rank < k
    more, by = np.full(codes.shape, -1, np.int32), np.full(codes.shape, np.nan, np.float32)
    more[target[first], rank[first]], by[target[first], rank[first]] = source[first], value[first]
    joined = np.concatenate([codes, more], axis=1)
    drop_repeats(joined, codes.shape[1])
    both = np.concatenate([np.where(codes >= 0, utility, np.float32(np.nan)), by], axis=1)
    return with_known(Graph(known.target_ids, ids, joined, both), known)


def _scores(
    student: Student,
    known: LabelledPairs,
    targets: Floats,
    sources: Floats,
    seed: int,
    calculate: ParallelMap,
    *,
    shared: bool,
) -> Doubles:
    """Return the mean utility of each source over targets that are drawn, known ones exact, a row's own left out."""
    drawn = np.sort(generator(seed, "select", "scored").permutation(len(targets))[:SCORED_TARGETS])
    across, along = student.project_targets(targets[drawn]), student.project_sources(sources)
    total = mean_per_source(student, across, along, calculate=calculate) * len(drawn)
    count = np.full(len(sources), len(drawn))
    place = np.full(len(targets), -1, np.int32)
    place[drawn] = np.arange(len(drawn), dtype=np.int32)
    serial_map = place[known.target] >= 0
    if shared:
        serial_map &= known.target != known.source
        total[drawn] -= student.net.pairs(across, along, place[drawn], drawn.astype(np.int32))
        count[drawn] -= 1
    t, s, value = place[known.target[serial_map]], known.source[serial_map], known.value[serial_map]
    present = np.isfinite(value)
    total -= np.bincount(s, student.net.pairs(across, along, t, s), len(sources))
    total += np.bincount(s[present], value[present], len(sources))
    count -= np.bincount(s[~present], minlength=len(sources))
    return np.asarray(np.divide(total, count, out=np.full(len(sources), np.nan), where=count > 0), np.float64)


def check_graph(
    settings: SelectSettings, objective: str, *, pointwise: bool = False, existing: bool = False, subtasks: bool = False
) -> None:
    """Raise UsageError where a selection on a graph of neighbours is asked for what only the whole matrix gives."""
    if settings.neighbours is None:
        if settings.optimiser not in (None, "lazy"):
            raise UsageError(
                f"--optimiser {settings.optimiser} works on a graph of neighbours; give --neighbours 64, or lazy"
            )
        return
    if objective not in ON_GRAPH or pointwise:
        raise UsageError(
            f"--neighbours selects by {', '.join(ON_GRAPH)} from utilities of pairs, and the objective is {objective}; leave it "
            "out"
        )
    if existing:
        raise UsageError("--neighbours does not look at rows that were trained on already; leave it or --existing out")
    if subtasks and objective == "max":
        raise UsageError(
            "--neighbours knows the best rows of each target, and no means over subtasks; use --objective rr, or leave it out"
        )
    if objective != "fl" and settings.optimiser not in (None, "lazy"):
        raise UsageError(f"--optimiser {settings.optimiser} is one of --objective fl, not of {objective}; leave it out")
    rules = {"--quota": settings.quota, "--include": settings.include, "--exclude": settings.exclude}
    named = [flag for flag, value in rules.items() if value]
    if parse_tokens(settings.budget) is not None:
        named.append("a budget of tokens")
    if named and settings.optimiser not in (None, "lazy"):
        raise UsageError(f"--optimiser {settings.optimiser} does not go with {', '.join(named)}; use lazy")


def _check_all_finite(student: Student, targets: Floats, sources: Floats, ids: tuple[str, ...]) -> None:
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


def _aimed(
    student: Student, ids: tuple[str, ...], similar: FreeSimilarities, score: Doubles, calculate: ParallelMap
) -> DenseProblem:
    """Return the pool against itself, and how well the target set's rows serve each of its rows."""
    covering, pool, wanted = student.for_coverage(), similar.sources, similar.targets
    as_targets = covering.project_targets(pool)
    best, low = best_per_target(covering, as_targets, covering.project_sources(wanted), calculate=calculate)
    values = all_pairs(covering, as_targets, covering.project_sources(pool), calculate)
    np.fill_diagonal(values, np.nan)
    reference = Reference(ids, best.astype(np.float64), low)
    alike = FreeSimilarities(similar.views, pool, pool, shared=True, second=wanted)
    return DenseProblem(UtilityMatrix(ids, ids, values), reference, alike, True, score)


def _already(
    student: Student,
    matrix: UtilityMatrix,
    targets: Floats,
    sources: Floats,
    contents: Mapping[str, str],
    existing: Existing,
    calculate: ParallelMap,
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
