"""The nearest rows of every row by cosine, for pools whose matrix of all pairs would not fit: exact, or by cells.

Rows are compared in blocks that numbers of rows alone decide, so that other processes, too, can do them (`calculation`).
By cells: k-means on a sample splits the rows into groups, and these into cells, and a row is compared with the rows of the cells
whose centres are nearest to its own cell's. What that misses is measured against exact search on a sample of rows, never assumed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from nncift.core.arrays import Codes, Floats
from nncift.core.memory import rows_at_once, rows_within
from nncift.core.parallel import MULTIPLY_ADDS, Arrays, Calculation, Keep, ParallelMap, ranges, serial_map
from nncift.core.seeds import generator
from nncift.core.threads import in_threads
from nncift.errors import ResourceError

EXACT_ROWS = 50_000
PROBES = 16
CAP = 1 << 28
_SAMPLE_PER_CELL = 40
_ROUNDS = 4
_RECALL_ROWS = 200
_CELLS_PER_ROOT = 4
"""Cells for each of the root of the rows: small cells whose centres are near bring fewer rows to compare than large ones."""
_CELLS_AT_ONCE = 32
_GROUPS = 8
"""Groups of cells among whose cells a row's own is looked for."""
_SORTED_ROWS = 1 << 13
"""Rows that are sorted into cells at once."""
_LOOK_SECONDS = 1e-8
"""Of one core, for a product that is looked at."""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The `k` nearest other rows of every row: codes and products, `(n, k)` each, nearest first, -1 where there are fewer.

    The products are cosines for vectors of unit norm.
    recall: share of the true nearest rows that were found, on a sample; 1 for exact search.
    """

    codes: Codes
    cosine: Floats
    recall: float


class _Near(NamedTuple):
    """Codes and products of the nearest so far, `(n, k)` each."""

    codes: Codes
    cosine: Floats


def nearest(
    vectors: Floats,
    k: int,
    *,
    queries: Floats | None = None,
    seed: int = 0,
    probes: int | None = None,
    cap: int | None = None,
    calculate: ParallelMap = serial_map,
) -> Neighbours:
    """Return the `k` nearest other rows of every row by inner product; vectors: `(n, d)`, of unit norm where that is a cosine.

    queries: `(n, d)` what a row is looked for with, where that is not its own vector. probes: cells that a row is compared with,
    0 for all pairs; by default all pairs up to EXACT_ROWS rows, else PROBES, and twice as many for queries. cap: bytes for one
    block of products, by default what a cap on memory leaves; it changes no result. Ties go to the row that comes first. Raises
    ResourceError for a cap below the smallest block.
    """
    n = len(vectors)
    codes, cosine = np.full((n, k), -1, np.int32), np.full((n, k), -np.inf, np.float32)
    if probes is None:
        # The centre of a cell tells less of what queries begin there than of what lies there.
        probes = 0 if n <= EXACT_ROWS else PROBES if queries is None else 2 * PROBES
    if not probes and cap is not None and cap < 4 * n:
        raise ResourceError(
            f"a memory cap of {cap} bytes was given, and one row of cosines takes {4 * n}; give at least that"
        )
    asked = vectors if queries is None else queries
    if not probes:
        blocks = ranges(n, rows_within(CAP if cap is None else cap, 4 * n))
        seconds, back = n * n * (vectors.shape[1] / MULTIPLY_ADDS + _LOOK_SECONDS), 8.0 * n * k
        search = Calculation("comparing all rows", _among_all, (asked, vectors, k, cap), blocks, seconds, back)
        calculate(search, _into(codes, cosine, lambda place: blocks[place]))
        return Neighbours(codes, cosine, 1.0)
    _by_cells(_Cells.of(vectors, queries, k, probes, seed, cap, calculate), codes, cosine, calculate)
    return Neighbours(codes, cosine, _recall(vectors, asked, codes, seed))


def nearest_to(queries: Floats, vectors: Floats, k: int) -> tuple[Codes, Floats]:
    """Return for every query the `k` rows of `vectors` with the highest products: codes and products, `(n_queries, k)`, exact.

    Nearest first, ties to the row that comes first; -1 and -inf where there are fewer rows.
    """
    codes, product = _nobody(len(queries), k)
    no_row = np.full(len(queries), -1, np.int32)
    _compare(queries, no_row, vectors, np.arange(len(vectors), dtype=np.int32), codes, product, CAP)
    return codes, product


def _by_cells(lot: _Cells, codes: Codes, cosine: Floats, calculate: ParallelMap) -> None:
    n, groups = len(lot.lined), ranges(len(lot.centre), _CELLS_AT_ONCE)
    seconds = n * (lot.probes * n / len(lot.centre)) * (lot.lined.shape[1] / MULTIPLY_ADDS + _LOOK_SECONDS)
    search = Calculation("comparing rows of near cells", _among_cells, lot, groups, seconds, 8.0 * n * lot.k)
    calculate(
        search,
        _into(codes, cosine, lambda place: lot.mine[lot.first[groups[place].start] : lot.first[groups[place].stop]]),
    )


def _into(codes: Codes, cosine: Floats, rows: Callable[[int], slice | Codes]) -> Keep:
    """Return what keeps the nearest of the rows that a part is about."""

    def keep(place: int, found: Arrays) -> None:
        at = rows(place)
        codes[at], cosine[at] = found["codes"], found["cosine"]

    return keep


@dataclass(frozen=True, eq=False)
class _Cells:
    """Rows by cells, as those who look for others and as those who are found.

    centre: of each cell. lined: vectors of the rows `order`, cell by cell, from `starts` on. mine: rows by the cell where their
    search begins, from `first` on. queries: `(n, d)` what every row is looked for with; None = its own vector.
    """

    centre: Floats
    lined: Floats
    order: Codes
    starts: npt.NDArray[np.intp]
    mine: Codes
    first: npt.NDArray[np.intp]
    queries: Floats | None
    k: int
    probes: int
    cap: int | None

    @classmethod
    def of(
        cls,
        vectors: Floats,
        queries: Floats | None,
        k: int,
        probes: int,
        seed: int,
        cap: int | None,
        calculate: ParallelMap,
    ) -> _Cells:
        random = generator(seed, "select", "cells")
        division = _Division.of(vectors, max(2, round(_CELLS_PER_ROOT * math.sqrt(len(vectors)))), random)
        centre, cell = division.centre, division.cells_of(vectors, calculate)
        # Rows of a cell side by side, so that comparing cells is one product of matrices.
        order = np.argsort(cell, kind="stable").astype(np.int32)
        starts = np.searchsorted(cell[order], np.arange(len(centre) + 1))
        mine, first = order, starts
        if queries is not None:
            asking = division.cells_of(queries, calculate)
            mine = np.argsort(asking, kind="stable").astype(np.int32)
            first = np.searchsorted(asking[mine], np.arange(len(centre) + 1))
        return cls(centre, vectors[order], order, starts, mine, first, queries, k, probes, cap)

    def rows(self, cell: int) -> tuple[Floats, Codes, Codes]:
        """Return the rows that begin in a cell: what they look with, their codes, and the cells that they look in."""
        at = slice(self.first[cell], self.first[cell + 1])
        here = self.mine[at]
        rows = self.lined[at] if self.queries is None else self.queries[here]
        # A query's products with the centres are its own: those of its cell stand for them only where they are one set.
        toward = self.centre @ (self.centre[cell] if self.queries is None else rows.mean(axis=0))
        close = np.argsort(-toward, kind="stable")[: self.probes].astype(np.int32)
        return rows, here, np.sort(close)


def _among_all(shared: tuple[Floats, Floats, int, int | None], rows: slice) -> Arrays:
    asked, vectors, k, cap = shared
    here, everything = np.arange(rows.start, rows.stop, dtype=np.int32), np.arange(len(vectors), dtype=np.int32)
    codes, cosine = _nobody(len(here), k)
    _compare(asked[rows], here, vectors, everything, codes, cosine, cap)
    return {"codes": codes, "cosine": cosine}


def _among_cells(lot: _Cells, group: slice) -> Arrays:
    """Return the nearest of the rows that begin in some cells, in the order of `mine`."""
    begin = lot.first[group.start]
    codes, cosine = _nobody(int(lot.first[group.stop] - begin), lot.k)
    for cell in range(group.start, group.stop):
        at = slice(lot.first[cell] - begin, lot.first[cell + 1] - begin)
        if at.start == at.stop:
            continue
        rows, here, close = lot.rows(cell)
        places = np.concatenate([np.arange(lot.starts[other], lot.starts[other + 1]) for other in close])
        _compare(rows, here, lot.lined[places], lot.order[places], codes[at], cosine[at], lot.cap)
    return {"codes": codes, "cosine": cosine}


def _nobody(rows: int, k: int) -> tuple[Codes, Floats]:
    return np.full((rows, k), -1, np.int32), np.full((rows, k), -np.inf, np.float32)


def lifted(targets: Floats, sources: Floats) -> tuple[Floats, Floats]:
    """Return `(n, d + 1)` queries and vectors of unit norm whose products rank sources as those of `(n, d)` projections do.

    What has the highest product with a query is then also what is nearest to it (Bachrach et al. 2014).
    """
    squared = np.einsum("nd,nd->n", sources, sources, dtype=np.float64)
    longest = max(float(squared.max(initial=0.0)), 1e-30)
    rest = np.sqrt(np.maximum(longest - squared, 0)).astype(np.float32)
    vectors = np.asarray(np.concatenate([sources, rest[:, None]], axis=1) / np.float32(math.sqrt(longest)), np.float32)
    return np.concatenate([targets, np.zeros((len(targets), 1), np.float32)], axis=1), vectors


def cells(vectors: Floats, count: int, seed: int) -> tuple[Floats, Codes]:
    """Return about `count` unit centres `(count, d)` of spherical k-means on a sample, and the cell of every row, `(n,)`."""
    division = _Division.of(vectors, count, generator(seed, "select", "cells"))
    return division.centre, division.cells_of(vectors)


class _Division(NamedTuple):
    """Groups of cells: centres of groups, `(groups, d)`; those of cells, `(cells, d)`, group by group from `first` on."""

    group: Floats
    centre: Floats
    first: npt.NDArray[np.intp]

    @classmethod
    def of(cls, vectors: Floats, count: int, random: np.random.Generator) -> _Division:
        """Split a sample of the rows into about the root of `count` groups, and each of these into its share of `count` cells.

        Splitting twice compares a row with about nine roots of `count` centres, and not with all.
        """
        drawn = random.choice(len(vectors), size=min(len(vectors), count * _SAMPLE_PER_CELL), replace=False)
        sample = vectors[np.sort(drawn)]
        group = _means(sample, max(1, round(math.sqrt(count))), random)
        of, parts, kept = _own_centre(sample, group), list[Floats](), list[int]()
        for at in range(len(group)):
            mine = sample[of == at]
            if len(mine):
                kept.append(at)
                parts.append(_means(mine, max(1, round(count * len(mine) / len(sample))), random))
        return cls(group[kept], np.concatenate(parts), np.cumsum([0, *map(len, parts)]))

    def cells_of(self, vectors: Floats, calculate: ParallelMap = serial_map) -> Codes:
        """Return the nearest cell of every row among those of the `_GROUPS` groups that are nearest to it, `(n,)`."""
        blocks, codes = ranges(len(vectors), rows_within(CAP, 16 * vectors.shape[1])), np.empty(len(vectors), np.int32)

        def keep(place: int, found: Arrays) -> None:
            codes[blocks[place]] = found["codes"]

        compared = len(self.group) + _GROUPS * len(self.centre) / len(self.group)
        seconds = len(vectors) * compared * vectors.shape[1] / MULTIPLY_ADDS
        shared = (vectors, self)
        calculate(Calculation("sorting rows into cells", _own_cells, shared, blocks, seconds, codes.nbytes), keep)
        return codes


def _own_cells(shared: tuple[Floats, _Division], rows: slice) -> Arrays:
    vectors, (group, centre, first) = shared
    near = min(_GROUPS, len(group))
    found = []
    for at in ranges(rows.stop - rows.start, _SORTED_ROWS):
        some = vectors[rows][at]
        close = np.argpartition(-(some @ group.T), near - 1, axis=1)[:, :near]
        best, codes = np.full(len(some), -np.inf, np.float32), np.zeros(len(some), np.int32)
        # Groups in turn, so that what a row has in common with two cells goes to the first.
        for place in np.unique(close):
            here = np.flatnonzero((close == place).any(axis=1))
            product = some[here] @ centre[first[place] : first[place + 1]].T
            own = product.argmax(axis=1)
            value = product[np.arange(len(here)), own]
            better = value > best[here]
            best[here[better]], codes[here[better]] = value[better], first[place] + own[better]
        found.append(codes)
    return {"codes": np.concatenate(found)}


def _means(sample: Floats, count: int, random: np.random.Generator) -> Floats:
    """Return at most `count` unit centres of a sample by spherical k-means."""
    centre = sample[random.choice(len(sample), size=min(count, len(sample)), replace=False)].copy()
    for _ in range(_ROUNDS):
        own = _own_centre(sample, centre)
        filled, total = np.unique(own), np.zeros_like(centre)
        # Rows of a centre side by side: adding them one by one takes longer than comparing them.
        order = np.argsort(own, kind="stable")
        total[filled] = np.add.reduceat(sample[order], np.searchsorted(own[order], filled), axis=0)
        length = np.linalg.norm(total, axis=1, keepdims=True)
        centre = np.where(length > 0, total / np.maximum(length, 1e-12), centre).astype(np.float32)
    return centre


def _own_centre(vectors: Floats, centre: Floats) -> Codes:
    blocks = ranges(len(vectors), rows_at_once(CAP, 4 * len(centre)))
    return np.concatenate([(vectors[at] @ centre.T).argmax(axis=1) for at in blocks]).astype(np.int32)


def _compare(
    rows: Floats, row_codes: Codes, others: Floats, other_codes: Codes, codes: Codes, cosine: Floats, cap: int | None
) -> None:
    """Compare rows with others, and keep the nearest of each row in its place; ties go to the lower code."""
    size = 4 * max(len(others), 1)
    step = rows_at_once(CAP, size) if cap is None else rows_within(cap, size)
    for at in ranges(len(rows), step):
        block, places = rows[at] @ others.T, np.arange(at.start, at.stop, dtype=np.int32)
        near = _Near(codes, cosine)
        in_threads(partial(_keep_nearest, block, row_codes[at], places, other_codes, near), len(block))


def _recall(vectors: Floats, queries: Floats, codes: Codes, seed: int) -> float:
    """Return the share of the true nearest rows that are among `codes`, on a sample of rows."""
    random = generator(seed, "select", "recall")
    drawn = random.choice(len(vectors), size=min(_RECALL_ROWS, len(vectors)), replace=False)
    rows, places = np.sort(drawn).astype(np.int32), np.arange(len(drawn), dtype=np.int32)
    true, cosine = np.full_like(codes[rows], -1), np.full(codes[rows].shape, -np.inf, np.float32)
    step = rows_at_once(CAP, 4 * len(rows))
    for at in range(0, len(vectors), step):
        block = queries[rows] @ vectors[at : at + step].T
        other = np.arange(at, at + block.shape[1], dtype=np.int32)
        in_threads(partial(_keep_nearest, block, rows, places, other, _Near(true, cosine)), len(block))
    found = sum(len(np.intersect1d(a, b)) for a, b in zip(true, codes[rows], strict=True))
    return found / max(int((true >= 0).sum()), 1)


@njit(cache=True, nogil=True)
def _insert(value: float, code: int, codes: Codes, cosine: Floats) -> None:
    at = len(codes) - 1
    while at > 0 and (value > cosine[at - 1] or (value == cosine[at - 1] and code < codes[at - 1])):
        cosine[at], codes[at] = cosine[at - 1], codes[at - 1]
        at -= 1
    cosine[at], codes[at] = value, code


@njit(cache=True, nogil=True)
def _keep_nearest(
    block: Floats, row_codes: Codes, places: Codes, other_codes: Codes, nearest: _Near, start: int, stop: int
) -> None:
    """Keep the nearest of each row of a block of cosines; a row is no neighbour of itself.

    row_codes, other_codes: of the block's rows and columns; places: where each row's nearest are kept.
    """
    codes, cosine = nearest
    k = codes.shape[1]
    for i in range(start, stop):
        row, own = block[i], row_codes[i]
        near, by = codes[places[i]], cosine[places[i]]
        lowest = by[k - 1]
        for j in range(len(row)):
            value = row[j]
            closer = value > lowest or (value == lowest and other_codes[j] < near[k - 1])
            if closer and other_codes[j] != own:
                _insert(value, other_codes[j], near, by)
                lowest = by[k - 1]
