"""Compiling with numba, and the compiled loops of lower layers; numba loads when one is first asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(function: _Function) -> _Function:
    """Compile a loop at its first call; it is kept on disk, and other threads run meanwhile."""
    return cast("_Function", numba.njit(cache=True, nogil=True)(function))


@compiled
def means_of(columns: npt.NDArray[np.float32], start: int, stop: int, mean: npt.NDArray[np.float64]) -> None:
    """Write the mean of each source's finite values, in double precision; what has none keeps what stands there."""
    for s in range(start, stop):
        row, total, count = columns[s], 0.0, 0
        for t in range(len(row)):
            x = np.float64(row[t])
            # Not so of NaN and infinity.
            if x - x == 0.0:
                total += x
                count += 1
        if count:
            mean[s] = total / count


@compiled
def write_centred_ranks(
    weights: npt.NDArray[np.float64],
    order: npt.NDArray[np.intp],
    last: npt.NDArray[np.intp],
    ranks: npt.NDArray[np.float64],
) -> None:
    """Write the average ranks less their mean under each column of weights, both `(n, n_resamples)`.

    order: `(n,)` positions that sort the values. last: where each run of ties ends in it.
    """
    n, columns = weights.shape
    total, below, here = np.zeros(columns), np.zeros(columns), np.zeros(columns)
    for row in range(n):
        for j in range(columns):
            total[j] += weights[row, j]
    start = 0
    for end in last:
        here[:] = 0.0
        for place in range(start, end + 1):
            row = order[place]
            for j in range(columns):
                here[j] += weights[row, j]
        for place in range(start, end + 1):
            row = order[place]
            for j in range(columns):
                ranks[row, j] = (2.0 * below[j] + here[j] - total[j]) / 2.0
        for j in range(columns):
            below[j] += here[j]
        start = end + 1
