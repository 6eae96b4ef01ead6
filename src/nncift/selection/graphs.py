"""Graphs of predicted utilities: the student scores every row's neighbours and a few rows from afar."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from nncift.core.pairs import LabelledPairs
from nncift.core.parallel import MULTIPLY_ADDS, Arrays, Calculation, ParallelMap, ranges, serial_map
from nncift.core.seeds import generator
from nncift.selection.neighbours import Neighbours
from nncift.selection.sparse import Graph
from nncift.student.score import Sides

if TYPE_CHECKING:
    from nncift.student.model import Student

Floats = npt.NDArray[np.float32]
_PAIRS = 1 << 20
_EDGE_SECONDS = 5e-7
"""Of one core, for an edge beside its arithmetic: what it reads lies apart."""


def scored_graph(
    student: Student,
    ids: tuple[str, ...],
    targets: Floats,
    sources: Floats,
    known: Neighbours,
    *,
    far: int = 8,
    seed: int = 0,
    calculate: ParallelMap = serial_map,
    last: bool = False,
) -> Graph:
    """Return the student's predictions for the neighbours of every row and `far` random others of the same rows.

    targets, sources: embeddings `(n, d)` of the rows on each axis. The random ones show what neighbours by embedding cannot:
    rows that help although they are far, and how low utilities go. last: nothing is calculated in parts on the graph.
    """
    n, near = known.codes.shape
    random = generator(seed, "select", "far")
    codes = np.empty((n, near + far), np.int32)
    codes[:, :near] = known.codes
    # Drawn among the others: places from the own one on are moved up by one.
    drawn = random.integers(max(n - 1, 1), size=(n, far), dtype=np.int32)
    codes[:, near:] = (drawn + (drawn >= np.arange(n, dtype=np.int32)[:, None])) if n > 1 else -1
    drop_repeats(codes, near)
    sides = Sides(student.net, student.project_targets(targets), student.project_sources(sources))
    utility = np.empty(codes.shape, np.float32)
    blocks = ranges(n, max(1, _PAIRS // max(near + far, 1)))
    seconds = codes.size * (sides.targets.shape[1] / MULTIPLY_ADDS + _EDGE_SECONDS)

    def keep(place: int, found: Arrays) -> None:
        utility[blocks[place]] = found["utility"]

    tasks = [(rows.start, codes[rows]) for rows in blocks]
    edges = Calculation("predicting neighbours", _edges, sides, tasks, seconds, utility.nbytes, not last, last)
    calculate(edges, keep)
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


def with_known(graph: Graph, known: LabelledPairs) -> Graph:
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


def drop_repeats(codes: npt.NDArray[np.int32], near: int) -> None:
    """Strike out what was drawn from afar and is a neighbour, or was drawn twice."""
    for e in range(near, codes.shape[1]):
        again = (codes[:, :e] == codes[:, e : e + 1]).any(axis=1)
        codes[again, e] = -1
