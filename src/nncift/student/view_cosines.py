"""Polynomials of cosines, compiled: how much a pair gains from being alike, in one pass over a block."""

from __future__ import annotations

import numpy as np
from numba import njit

from nncift.core.arrays import Floats
from nncift.core.threads import in_threads

POWERS = (1, 2, 4, 8, 16, 32)
"""Exponents of a cosine: from a straight line to a bump that only near-duplicates reach; each is the last one squared."""


@njit(cache=True, nogil=True, fastmath={"contract", "nsz"})
def _add(out: Floats, cosine: Floats, weights: Floats, start: int, stop: int) -> None:
    width = cosine.shape[1]
    # A row at a time, so that the innermost loop is one of vector instructions.
    power, total = np.empty(width, np.float32), np.empty(width, np.float32)
    for i in range(start, stop):
        row, into = cosine[i], out[i]
        for j in range(width):
            total[j] = weights[0] * row[j]
            # Opposites are not alike: only the straight line sees below 0.
            power[j] = max(row[j], np.float32(0))
        for k in range(1, weights.shape[0]):
            weight = weights[k]
            for j in range(width):
                power[j] = power[j] * power[j]
                total[j] += weight * power[j]
        for j in range(width):
            into[j] += total[j]


def add_polynomial(out: Floats, cosine: Floats, weights: Floats) -> None:
    """Add `sum_k weights[k] f_k(cosine)` to `out` in place, both `(rows, columns)`; f_k as in `powers_of`."""
    in_threads(lambda a, b: _add(out, cosine, weights, a, b), len(out))


def powers_of(cosine: Floats, count: int = len(POWERS)) -> Floats:
    """Return `(n, count)`: the cosine, then the powers 2, 4, 8, ... of what of it is above 0."""
    found = np.empty((len(cosine), count), np.float32)
    found[:, 0] = cosine
    power = np.maximum(cosine, np.float32(0))
    for k in range(1, count):
        power = power * power
        found[:, k] = power
    return found
