"""The nearest rows of every row by cosine, for pools whose matrix of all pairs would not fit: exact, or by cells.

By cells: k-means on a sample splits the rows into cells, and a row is compared with the rows of the cells whose centres are
nearest to its own cell's. What that misses is measured against exact search on a sample of rows, never assumed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
from numba import njit

from nncift.errors import ResourceError
from nncift.seeds import generator
from nncift.threads import in_threads

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int32]
EXACT_ROWS = 50_000
CAP = 1 << 28
_SAMPLE_PER_CELL = 40
_ROUNDS = 4
_RECALL_ROWS = 200


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The `k` nearest other rows of every row: codes and products, `(n, k)` each, nearest first, -1 where there are fewer.

    The products are cosines for vectors of unit norm.
    recall: share of the true nearest rows that were found, on a sample; 1 for exact search.
    """

    codes: Codes
    cosine: Floats
    recall: float


def nearest(
    vectors: Floats, k: int, *, queries: Floats | None = None, seed: int = 0, exact: bool | None = None, probes: int = 12,
    cap: int = CAP,
) -> Neighbours:  # fmt: skip
    """Return the `k` nearest other rows of every row by inner product; vectors: `(n, d)`, of unit norm where that is a cosine.

    queries: `(n, d)` what a row is looked for with, where that is not its own vector. exact: compare all pairs; by default up to
    50,000 rows. probes: cells that a row is compared with. cap: bytes for one block of products. Ties go to the row that comes
    first. Raises ResourceError for a cap below the smallest block.
    """
    n = len(vectors)
    codes, cosine = np.full((n, k), -1, np.int32), np.full((n, k), -np.inf, np.float32)
    if exact is None:
        exact = n <= EXACT_ROWS
    if cap < 4 * n and exact:
        raise ResourceError(
            f"a memory cap of {cap} bytes was given, and one row of cosines takes {4 * n}; give at least that"
        )
    asked = vectors if queries is None else queries
    everything = np.arange(n, dtype=np.int32)
    if exact:
        _compare(asked, everything, vectors, everything, codes, cosine, cap)
        return Neighbours(codes, cosine, 1.0)
    centre, cell = cells(vectors, max(2, round(math.sqrt(n))), seed)
    # Rows of a cell side by side, so that comparing cells is one product of matrices.
    order = np.argsort(cell, kind="stable").astype(np.int32)
    lined, starts = vectors[order], np.searchsorted(cell[order], np.arange(len(centre) + 1))
    mine, first = order, starts
    if queries is not None:
        asking = _nearest_centre(queries, centre)
        mine = np.argsort(asking, kind="stable").astype(np.int32)
        first = np.searchsorted(asking[mine], np.arange(len(centre) + 1))
    near = np.argsort(-(centre @ centre.T), axis=1, kind="stable")[:, :probes]
    for c in range(len(centre)):
        here = mine[first[c] : first[c + 1]]
        if not len(here):
            continue
        rows = lined[first[c] : first[c + 1]] if queries is None else queries[here]
        # A query's products with the centres are its own: those of its cell stand for them only where they are one set.
        close = near[c] if queries is None else _closest(rows, centre, probes)
        places = np.concatenate([np.arange(starts[other], starts[other + 1]) for other in np.sort(close)])
        _compare(rows, here, lined[places], order[places], codes, cosine, cap)
    del lined
    return Neighbours(codes, cosine, _recall(vectors, asked, codes, seed))


def _closest(rows: Floats, centre: Floats, probes: int) -> Codes:
    """Return the centres with the highest mean product with some rows."""
    return np.argsort(-(centre @ rows.mean(axis=0)), kind="stable")[:probes].astype(np.int32)


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
    """Return unit centres `(count, d)` of spherical k-means on a sample, and the nearest centre of every row, `(n,)`."""
    random = generator(seed, "select", "cells")
    drawn = random.choice(len(vectors), size=min(len(vectors), count * _SAMPLE_PER_CELL), replace=False)
    sample = vectors[np.sort(drawn)]
    centre = sample[random.choice(len(sample), size=min(count, len(sample)), replace=False)].copy()
    for _ in range(_ROUNDS):
        of = _nearest_centre(sample, centre)
        total = np.zeros_like(centre)
        np.add.at(total, of, sample)
        length = np.linalg.norm(total, axis=1, keepdims=True)
        centre = np.where(length > 0, total / np.maximum(length, 1e-12), centre).astype(np.float32)
    return centre, _nearest_centre(vectors, centre)


def _nearest_centre(vectors: Floats, centre: Floats) -> Codes:
    step = max(1, CAP // (4 * len(centre)))
    found = [(vectors[at : at + step] @ centre.T).argmax(axis=1) for at in range(0, len(vectors), step)]
    return np.concatenate(found).astype(np.int32)


def _compare(
    rows: Floats, row_codes: Codes, others: Floats, other_codes: Codes, codes: Codes, cosine: Floats, cap: int
) -> None:
    """Compare rows with others, and keep the nearest of each row; `others` ascend by code where ties are to be kept in order."""
    step = max(1, cap // (4 * max(len(others), 1)))
    for at in range(0, len(rows), step):
        block, mine = rows[at : at + step] @ others.T, row_codes[at : at + step]
        in_threads(partial(_keep_nearest, block, mine, mine, other_codes, codes, cosine), len(block))


def _recall(vectors: Floats, queries: Floats, codes: Codes, seed: int) -> float:
    """Return the share of the true nearest rows that are among `codes`, on a sample of rows."""
    random = generator(seed, "select", "recall")
    drawn = random.choice(len(vectors), size=min(_RECALL_ROWS, len(vectors)), replace=False)
    rows, places = np.sort(drawn).astype(np.int32), np.arange(len(drawn), dtype=np.int32)
    true, cosine = np.full_like(codes[rows], -1), np.full(codes[rows].shape, -np.inf, np.float32)
    step = CAP // (4 * len(rows))
    for at in range(0, len(vectors), step):
        block = queries[rows] @ vectors[at : at + step].T
        other = np.arange(at, at + block.shape[1], dtype=np.int32)
        in_threads(partial(_keep_nearest, block, rows, places, other, true, cosine), len(block))
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
    block: Floats,
    row_codes: Codes,
    places: Codes,
    other_codes: Codes,
    codes: Codes,
    cosine: Floats,
    start: int,
    stop: int,
) -> None:
    """Keep the nearest of each row of a block of cosines; a row is no neighbour of itself.

    row_codes, other_codes: of the block's rows and columns; places: where in `codes` and `cosine` each row's nearest are kept.
    """
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
