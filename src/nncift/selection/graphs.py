"""Graphs of predicted utilities: the student scores every row's neighbours and a few rows from afar.

A network whose predictions are inner products (`towers`) finds each target's nearest by these, others by embedding. Known labels
are exact, the rest is predicted. Rows of a target set have the sources with the highest predictions, and the best known ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from nncift.core.arrays import Floats, Longs
from nncift.core.pairs import LabelledPairs
from nncift.core.parallel import MULTIPLY_ADDS, Arrays, Calculation, Keep, ParallelMap, ranges, serial_map
from nncift.core.seeds import generator
from nncift.models.views import TEXT
from nncift.selection.neighbours import EXACT_ROWS, Neighbours, lifted, nearest, nearest_to
from nncift.selection.probe_controls import EMBEDDING, FreeSimilarities
from nncift.selection.sparse import Graph
from nncift.selection.utilities import Utilities
from nncift.student.model import Student
from nncift.student.score import Sides, mean_per_source, top_per_target

SCORED_TARGETS = 2000
FAR = 8
"""Random rows that are scored for every target beside its neighbours."""
_PAIRS = 1 << 20
_EDGE_SECONDS = 5e-7
"""Of one core, for an edge beside its arithmetic: what it reads lies apart."""


@dataclass(frozen=True, eq=False)
class ScoredGraph:
    """Predicted utilities of neighbours.

    recall: share of the true nearest that were found. alike: graphs of free similarities over the same rows, for the controls;
    None for one that would cost too much.
    """

    graph: Graph
    recall: float
    alike: Mapping[str, Graph | None]


def graph_of(utilities: Utilities, keep: Longs, k: int, seed: int) -> ScoredGraph:
    """Return `k` sources of every target, of the rows at the places `keep`: the nearest and a few random ones of the pool."""
    ids, rows = _ids_at(utilities, keep), _rows_at(utilities, keep)
    if not utilities.shared:
        return ScoredGraph(_best_known(utilities, keep, k), 1.0, _similar_to_targets(utilities, ids, rows, k))
    student, calculate = utilities.student, utilities.calculate
    text = utilities.views.take(rows, TEXT)
    if student.is_inner_product:
        queries, vectors = lifted(student.project_targets(rows), student.project_sources(rows))
        near = nearest(vectors, k, queries=queries, seed=seed, calculate=calculate)
        # For the control that selects by embeddings alone; on large pools it would double the search.
        embedded = nearest(text, k, seed=seed, calculate=calculate) if len(rows) <= EXACT_ROWS else None
    else:
        near = embedded = nearest(text, k, seed=seed, calculate=calculate)
    # The similarities come first: behind the predictions, shards have nothing more to share out.
    alike = _similar_to_rows(utilities, ids, rows, k, seed, embedded)
    graph = scored_graph(student, ids, rows, near, seed=seed, calculate=calculate)
    return ScoredGraph(_with_known(graph, utilities.known), near.recall, alike)


def _similar_to_targets(utilities: Utilities, ids: tuple[str, ...], rows: Floats, k: int) -> dict[str, Graph | None]:
    similar = FreeSimilarities(utilities.views, utilities.vectors.targets, rows, shared=False)
    sides = {name: similar.sides(name, similar.targets, rows) for name in similar.names}
    return {name: _cosines(*nearest_to(*of, k), utilities.target_ids, ids) for name, of in sides.items()}


def _similar_to_rows(
    utilities: Utilities, ids: tuple[str, ...], rows: Floats, k: int, seed: int, embedded: Neighbours | None
) -> dict[str, Graph | None]:
    similar = FreeSimilarities(utilities.views, rows, rows, shared=True)

    def calculate(search: Calculation, keep: Keep) -> None:
        # Only controls read the outcome: no shard need wait for it.
        utilities.calculate(replace(search, feeds=False), keep)

    alike: dict[str, Graph | None] = dict.fromkeys(similar.names)
    if embedded is not None:
        alike[EMBEDDING] = _cosines(embedded.codes, embedded.cosine, ids, ids)
    for name in similar.names:
        if name != EMBEDDING and len(ids) <= EXACT_ROWS:
            near = nearest(similar.sides(name, rows, rows)[0], k, seed=seed, calculate=calculate)
            alike[name] = _cosines(near.codes, near.cosine, ids, ids)
    return alike


def _rows_at(utilities: Utilities, keep: Longs) -> Floats:
    sources = utilities.vectors.sources
    return sources if len(keep) == len(sources) else sources[keep]


def _ids_at(utilities: Utilities, keep: Longs) -> tuple[str, ...]:
    ids = utilities.source_ids
    return ids if len(keep) == len(ids) else tuple(ids[place] for place in keep)


def _cosines(
    codes: npt.NDArray[np.int32], cosine: Floats, target_ids: tuple[str, ...], source_ids: tuple[str, ...]
) -> Graph:
    return Graph(target_ids, source_ids, codes, np.where(codes >= 0, cosine, np.float32(np.nan)))


def scored_graph(
    student: Student,
    ids: tuple[str, ...],
    rows: Floats,
    near: Neighbours,
    *,
    seed: int = 0,
    calculate: ParallelMap = serial_map,
) -> Graph:
    """Return the student's predictions for the neighbours of every row and FAR random others of the same rows.

    rows: vectors `(n, d)`. The random ones show what neighbours by embedding cannot: rows that help although they are far, and
    how low utilities go.
    """
    n, count = near.codes.shape
    random = generator(seed, "select", "far")
    codes = np.empty((n, count + FAR), np.int32)
    codes[:, :count] = near.codes
    # Drawn among the others: places from the own one on are moved up by one.
    drawn = random.integers(max(n - 1, 1), size=(n, FAR), dtype=np.int32)
    codes[:, count:] = (drawn + (drawn >= np.arange(n, dtype=np.int32)[:, None])) if n > 1 else -1
    _drop_repeats(codes, count)
    sides = Sides(student.net, student.project_targets(rows), student.project_sources(rows))
    utility = np.empty(codes.shape, np.float32)
    blocks = ranges(n, max(1, _PAIRS // max(count + FAR, 1)))
    seconds = codes.size * (sides.targets.shape[1] / MULTIPLY_ADDS + _EDGE_SECONDS)

    def store(place: int, found: Arrays) -> None:
        utility[blocks[place]] = found["utility"]

    tasks = [(block.start, codes[block]) for block in blocks]
    edges = Calculation("predicting neighbours", _edges, sides, tasks, seconds, utility.nbytes, feeds=False, last=True)
    calculate(edges, store)
    return Graph(ids, ids, codes, utility)


def _edges(sides: Sides, task: tuple[int, npt.NDArray[np.int32]]) -> Arrays:
    """Return the predictions for some targets' edges, `(rows, k)`, NaN where there is none: first target, and sources of each."""
    at, codes = task
    there = codes >= 0
    target = np.repeat(np.arange(len(codes), dtype=np.int32), there.sum(axis=1))
    # The sources that occur, side by side: a network prepares all that it is given.
    occurs = np.zeros(len(sides.sources), bool)
    occurs[codes[there]] = True
    used = np.flatnonzero(occurs)
    place = np.empty(len(sides.sources), np.int32)
    place[used] = np.arange(len(used), dtype=np.int32)
    utility = np.full(codes.shape, np.nan, np.float32)
    utility[there] = sides.net.pairs(
        sides.targets[at : at + len(codes)], sides.sources[used], target, place[codes[there]]
    )
    return {"utility": utility}


def _best_known(utilities: Utilities, keep: Longs, k: int) -> Graph:
    """Return for each row of a target set the sources with the highest predictions, and with the highest known utilities."""
    student, known, ids = utilities.student, utilities.known, _ids_at(utilities, keep)
    targets, rows = (
        student.project_targets(utilities.vectors.targets),
        student.project_sources(_rows_at(utilities, keep)),
    )
    codes, utility = top_per_target(student, targets, rows, k)
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
    _drop_repeats(joined, codes.shape[1])
    both = np.concatenate([np.where(codes >= 0, utility, np.float32(np.nan)), by], axis=1)
    return _with_known(Graph(known.target_ids, ids, joined, both), known)


def mean_scores(utilities: Utilities, seed: int) -> npt.NDArray[np.float64]:
    """Return the mean utility of each source over at most SCORED_TARGETS targets, drawn by the seed.

    Known utilities are exact, and a row's own is left out.
    """
    student, known = utilities.student, utilities.known
    targets, sources = utilities.vectors.targets, utilities.vectors.sources
    drawn = np.sort(generator(seed, "select", "scored").permutation(len(targets))[:SCORED_TARGETS])
    across, along = student.project_targets(targets[drawn]), student.project_sources(sources)
    total = mean_per_source(student, across, along, calculate=utilities.calculate) * len(drawn)
    count = np.full(len(sources), len(drawn))
    place = np.full(len(targets), -1, np.int32)
    place[drawn] = np.arange(len(drawn), dtype=np.int32)
    here = place[known.target] >= 0
    if utilities.shared:
        here &= known.target != known.source
        total[drawn] -= student.net.pairs(across, along, place[drawn], drawn.astype(np.int32))
        count[drawn] -= 1
    t, s, value = place[known.target[here]], known.source[here], known.value[here]
    present = np.isfinite(value)
    total -= np.bincount(s, student.net.pairs(across, along, t, s), len(sources))
    total += np.bincount(s[present], value[present], len(sources))
    count -= np.bincount(s[~present], minlength=len(sources))
    return np.asarray(np.divide(total, count, out=np.full(len(sources), np.nan), where=count > 0), np.float64)


def _with_known(graph: Graph, known: LabelledPairs) -> Graph:
    """Return the graph with known utilities in the place of predicted ones; pairs that are no edge stay out."""
    n = len(graph.source_ids)
    target, source = _codes(known.target_ids, graph.target_ids), _codes(known.source_ids, graph.source_ids)
    there = (target[known.target] >= 0) & (source[known.source] >= 0)
    keys = target[known.target[there]] * n + source[known.source[there]]
    order = np.argsort(keys, kind="stable")
    keys, value = keys[order], known.value[there][order]
    utility = graph.utility.copy()
    edges = np.arange(len(graph.target_ids), dtype=np.int64)[:, None] * n + graph.sources
    place = np.minimum(np.searchsorted(keys, edges), max(len(keys) - 1, 0))
    if len(keys):
        found = (keys[place] == edges) & (graph.sources >= 0)
        utility[found] = value[place[found]]
    return Graph(graph.target_ids, graph.source_ids, graph.sources, utility)


def _codes(ids: tuple[str, ...], among: tuple[str, ...]) -> npt.NDArray[np.int64]:
    """Return the place of every id among others, -1 where it is not there."""
    if ids == among:
        return np.arange(len(ids), dtype=np.int64)
    place = {item: i for i, item in enumerate(among)}
    return np.array([place.get(item, -1) for item in ids], np.int64)


def _drop_repeats(codes: npt.NDArray[np.int32], near: int) -> None:
    """Strike out what was drawn from afar and is a neighbour, or was drawn twice."""
    for e in range(near, codes.shape[1]):
        again = (codes[:, :e] == codes[:, e : e + 1]).any(axis=1)
        codes[again, e] = -1
