"""All-pairs scores reduced on the fly, so that the matrix of all pairs need never exist.

Every function goes over tiles of at most `cap` bytes and works for every student, whatever its network: a tile is one call of
`Student.predict_block` over projections.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from numba import njit

from nncift.errors import ResourceError, UsageError

if TYPE_CHECKING:
    from nncift.student.model import Student

Floats = npt.NDArray[np.float32]
CAP = 1 << 26
SMALLEST_TILE = 128
"""Rows on either side of the smallest tile: below this, starting a tile costs more than its pairs."""


def best_per_target(student: Student, targets: Floats, sources: Floats, cap: int = CAP) -> tuple[Floats, float]:
    """Return the highest prediction of each target over all sources, `(n_targets,)`, and the lowest of all pairs.

    targets, sources: projections. NaN and inf without any source. Raises ResourceError for a cap below the smallest tile.
    """
    best, low = np.full(len(targets), np.nan, np.float32), np.inf
    for rows, columns, block in tiles(student, targets, sources, cap):
        del columns
        np.fmax(best[rows], block.max(axis=1), out=best[rows])
        low = min(low, float(block.min()))
    return best, low


def mean_per_source(student: Student, targets: Floats, sources: Floats, cap: int = CAP) -> npt.NDArray[np.float64]:
    """Return the mean prediction of each source over all targets, `(n_sources,)`, summed in double precision.

    Raises UsageError without any target, ResourceError for a cap below the smallest tile.
    """
    if not len(targets):
        raise UsageError("a mean over targets was asked for, and there is no target")
    total = np.zeros(len(sources))
    for _, columns, block in tiles(student, targets, sources, cap):
        total[columns] += block.sum(axis=0, dtype=np.float64)
    return total / len(targets)


def top_per_target(
    student: Student, targets: Floats, sources: Floats, k: int, cap: int = CAP
) -> tuple[npt.NDArray[np.int32], Floats]:
    """Return the `k` sources with the highest predictions for each target, and these: `(n_targets, k)` each, best first.

    Ties go to the lower position; -1 and -inf stand where there are fewer than `k` sources. Raises ResourceError for a cap
    below the smallest tile.
    """
    codes = np.full((len(targets), k), -1, np.int32)
    values = np.full((len(targets), k), -np.inf, np.float32)
    for rows, columns, block in tiles(student, targets, sources, cap):
        _keep_highest(block.T, rows.start, columns.start, codes, values)
    return codes, values


def tiles(student: Student, targets: Floats, sources: Floats, cap: int = CAP) -> Iterator[tuple[slice, slice, Floats]]:
    """Yield the targets and sources of every tile with its predictions, `(rows, columns)` in Fortran order.

    Sources ascend within a range of targets. Raises ResourceError where a cap of so many bytes holds no tile.
    """
    smallest = 4 * min(SMALLEST_TILE, len(targets)) * min(SMALLEST_TILE, len(sources))
    if cap < smallest:
        raise ResourceError(
            f"a memory cap of {cap} bytes was given, and the smallest block of scores takes {smallest}; give at least that"
        )
    down = max(1, min(len(targets), max(SMALLEST_TILE, cap // (4 * SMALLEST_TILE))))
    across = max(1, cap // (4 * down))
    for top in range(0, len(targets), down):
        rows = slice(top, min(top + down, len(targets)))
        for left in range(0, len(sources), across):
            columns = slice(left, min(left + across, len(sources)))
            yield rows, columns, student.predict_block(targets[rows], sources[columns])


@njit(cache=True, nogil=True)
def _keep_highest(
    block: Floats, first_target: int, first_source: int, codes: npt.NDArray[np.int32], values: Floats
) -> None:
    """Put the scores of a tile, `(sources, targets)`, in their places among the highest of each target."""
    k = codes.shape[1]
    for j in range(block.shape[0]):
        row = block[j]
        for i in range(block.shape[1]):
            value = row[i]
            mine, those = values[first_target + i], codes[first_target + i]
            if k == 0 or not value > mine[k - 1]:
                continue
            at = k - 1
            while at > 0 and value > mine[at - 1]:
                mine[at], those[at] = mine[at - 1], those[at - 1]
                at -= 1
            mine[at], those[at] = value, first_source + j
