"""How far float32 results may lie apart that other kernels, batches or devices computed: from the arithmetic.

A kernel adds in an order of its own: that of its lanes, its blocks, its threads. What tests compare to is one such order among
many, and the machine that a test was written on is another. So tolerances follow from how many terms were added, never from
what was seen once.
U is the unit roundoff: a float32 operation is exact up to a factor of 1 + e with |e| <= U. HALF is that of half precision.

- A sum of n terms in any order is off by at most (n - 1) U times the sum of their absolute values (Higham, Accuracy and
  Stability of Numerical Algorithms, 4.2), and roundings that have nothing to do with each other add up to about sqrt(n) U times
  it. MARGIN of these, since two such sums are compared, and a test looks at many of them.
- A result behind several sums, one after the other (the layers of a network), has the errors of each: `sums` times as much.
  Softmax, normalisation and activations round once or twice per number and pass errors on: they count as one of the sums.
- These are relative to the size of what is added. Where terms cancel the result is smaller, and so the error is told relative
  to the largest number, or the norm, of an array and never to a single entry.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

U, HALF = 2.0**-24, 2.0**-11
MARGIN = 4.0


def of_sums(terms: int, sums: int = 1) -> float:
    """Return the relative error of results behind `sums` sums of so many terms each, one after the other."""
    return MARGIN * sums * math.sqrt(terms) * U


def of_models(layers: int, width: int) -> float:
    """Return the relative error of what a transformer gives: ten sums a layer, and two behind the last.

    Two norms, query, key and value, products with both, output, and three of the gated network; then a norm and the logits.
    """
    return of_sums(width, 10 * layers + 2)


def of_gradients(layers: int, width: int) -> float:
    """Return the relative error, by norm, of a gradient of such a model: the way forward, and twice as much back."""
    return 3 * of_models(layers, width)


def of_directions(relative: float) -> float:
    """Return the relative error, by norm, of Adam's directions of gradients with this relative error, by norm.

    A direction is about g / |g| in every coordinate, so that an error of e turns a coordinate whose gradient is below e all the
    way, and one of size s by e / s. Where gradients near 0 are as frequent as others up to their mean size, with d = e / that,
    the share of coordinates below d is d, and the squares of all errors are d (turned) + d (the integral of (d / t)^2 from d on)
    of those of the direction: sqrt(2 d) by norm. A single entry may be off by all that it is, whatever the arithmetic.
    """
    return math.sqrt(2 * relative)


def of_cosines(relative: float, dimension: int) -> float:
    """Return the error of a cosine of vectors of so many numbers with this relative error each, by norm, kept in half precision.

    Errors that know nothing of the other vector lie along it by a share of 1 / sqrt(dimension).
    """
    return MARGIN * math.sqrt(2) * (relative + HALF) / math.sqrt(dimension)


def distances(found: npt.ArrayLike, expected: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return how far rows lie apart, relative to the norm of the expected ones: `(n,)` of two arrays `(n, width)`."""
    one, other = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert one.shape == other.shape
    norms = np.linalg.norm(other, axis=1)
    return np.asarray(np.linalg.norm(one - other, axis=1) / np.where(norms == 0, 1.0, norms))


def features_agree(found: npt.NDArray[Any], expected: npt.NDArray[Any], dimension: int, relative: float) -> bool:
    """Tell whether features of LESS, rows as of `GradientFeatures`, are those of gradients with this relative error.

    Targets are gradients, sources are what Adam makes of them, both of norm 1 for each checkpoint; then come mantissas and
    exponents of the norms. Of half precision, numbers may round to neighbours.
    """
    checkpoints, rest = divmod(expected.shape[1], 2 * dimension + 2)
    assert checkpoints
    assert not rest
    kept = 2 * HALF if expected.dtype == np.float16 else 0.0
    places = [*range(dimension, 2 * checkpoints * dimension + 1, dimension), (2 * dimension + 1) * checkpoints]
    *one, mantissas, exponents = np.split(np.asarray(found, np.float64), places, axis=1)
    *other, expected_mantissas, expected_exponents = np.split(np.asarray(expected, np.float64), places, axis=1)
    apart = [float(distances(a, b).max()) for a, b in zip(one, other, strict=True)]
    ratios = mantissas / expected_mantissas * 2.0 ** (exponents - expected_exponents)
    directions = max(apart[checkpoints:]) <= of_directions(relative) + kept
    return directions and max(*apart[:checkpoints], float(np.abs(ratios - 1).max())) <= relative + kept


def close(found: npt.ArrayLike, expected: npt.ArrayLike, relative: float) -> bool:
    """Tell whether arrays differ nowhere by more than this share of the largest expected number, and lack the same ones."""
    one, other = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    if one.shape != other.shape or not np.array_equal(np.isnan(one), np.isnan(other)):
        return False
    largest = np.nanmax(np.abs(other), initial=0.0)
    return bool(np.nanmax(np.abs(one - other), initial=0.0) <= relative * largest)
