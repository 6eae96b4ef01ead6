"""Sketching of gradients on the CPU, compiled: Adam's direction and both projections in one pass over the numbers.

As tensor operations each step goes through memory on its own, and the whole takes as long as the model's backward pass. Here a
gradient is read once, signs take a byte each, and nothing as large as a gradient is written. Additions and products are those
of `Projection` in the same order: signs are +-1, so that fusing them rounds no differently.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from nncift.core.arrays import Floats, Longs

Signs = npt.NDArray[np.int8]


@njit(cache=True, nogil=True, fastmath={"contract", "nsz"}, error_model="numpy")
def add_sketch(vectors: Floats, start: int, turns: Longs, signs: Signs, out: Floats) -> None:
    """Add the sketches of `vectors` `(n, size)`, a parameter's coordinates from `start` on, to `out` `(n, dimension)`."""
    rows, size = vectors.shape
    k = out.shape[1]
    for row in range(rows):
        at = 0
        while at < size:
            block = (start + at) // k
            within = (start + at) - block * k
            place = (within + turns[block]) % k
            length = min(size - at, k - within, k - place)
            values, own = vectors[row, at : at + length], signs[start + at : start + at + length]
            into = out[row, place : place + length]
            for i in range(length):
                into[i] += values[i] * np.float32(own[i])
            at += length


@njit(cache=True, nogil=True, fastmath={"contract", "nsz"}, error_model="numpy")
def add_sketches(
    vectors: Floats,
    start: int,
    turns: Longs,
    signs: Signs,
    into_both: tuple[Floats, Floats],
    moments: tuple[Floats, Floats],
    shares: tuple[np.float32, np.float32, np.float32, np.float32],
) -> None:
    """Add the sketches of gradients to the first of `into_both`, and those of Adam's directions to the second.

    Both are `(n, dimension)`. moments: what the optimiser's state adds to numerator and denominator, of the whole parameter laid
    flat; empty where there is none. shares: of the gradient in the numerator, of its square in the denominator, then epsilon
    under the root and behind it.
    """
    rows, size = vectors.shape
    out, updates = into_both
    k, known = out.shape[1], len(moments[0]) > 0
    share, squared, under, behind = shares
    for row in range(rows):
        at = 0
        while at < size:
            block = (start + at) // k
            within = (start + at) - block * k
            place = (within + turns[block]) % k
            length = min(size - at, k - within, k - place)
            first, last = start + at, start + at + length
            values, own = vectors[row, at : at + length], signs[first:last]
            into, updated = out[row, place : place + length], updates[row, place : place + length]
            if known:
                above, below = moments[0][first:last], moments[1][first:last]
                for i in range(length):
                    g, sign = values[i], np.float32(own[i])
                    into[i] += g * sign
                    root = np.sqrt(below[i] + g * g * squared + under)
                    updated[i] += sign * ((above[i] + g * share) / (root + behind))
            else:
                for i in range(length):
                    g, sign = values[i], np.float32(own[i])
                    into[i] += g * sign
                    updated[i] += sign * (g * share / (np.sqrt(g * g * squared + under) + behind))
            at += length
