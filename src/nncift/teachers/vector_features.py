"""Features of teachers that make one vector of a row, and the utilities that follow: inner products, or cosines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from nncift.core.arrays import Doubles, Floats


@dataclass(frozen=True)
class VectorFeatures:
    """What a row's numbers mean: a vector of k numbers at length 1, then its length as mantissa and exponent of two.

    So half precision holds it, whatever its size. cosine: utilities are cosines and not inner products. A vector of nothing but
    zeros stays, and its utilities are 0.
    """

    dimension: int
    cosine: bool

    @property
    def width(self) -> int:
        """Numbers per row."""
        return self.dimension + 2

    def pack(self, vectors: Floats) -> Floats:
        """Return the features `(n, width)` of vectors `(n, k)`."""
        values = np.empty((len(vectors), self.width), np.float32)
        norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
        values[:, : self.dimension] = vectors / np.where(norms == 0, 1.0, norms)[:, None]
        values[:, self.dimension], values[:, self.dimension + 1] = np.frexp(norms)
        return values

    def utility(self, targets: Floats, sources: Floats) -> Floats:
        """Return `(n_targets, n_sources)` from features of both."""
        return self._of(self._vectors(targets), sources)

    def subtask_utility(self, targets: Floats, sources: Floats, subtasks: Sequence[str]) -> Floats:
        """Return `(n_targets, n_sources)`, where every target has the utility of the mean vector of its subtask's targets.

        Means are of vectors at their own lengths.
        """
        names = sorted(set(subtasks))
        members = np.array([[own == name for own in subtasks] for name in names], np.float64)
        vectors = targets[:, : self.dimension] * self._lengths(targets)[:, None]
        means = (members / members.sum(axis=1, keepdims=True)) @ vectors
        if self.cosine:
            norms = np.linalg.norm(means, axis=1, keepdims=True)
            means = means / np.where(norms == 0, 1.0, norms)
        return self._of(means, sources)[[names.index(own) for own in subtasks]]

    def _vectors(self, targets: Floats) -> Doubles:
        unit = targets[:, : self.dimension].astype(np.float64)
        return unit if self.cosine else unit * self._lengths(targets)[:, None]

    def _of(self, vectors: Doubles, sources: Floats) -> Floats:
        found = vectors @ sources[:, : self.dimension].astype(np.float64).T
        return np.asarray(found if self.cosine else found * self._lengths(sources)[None], np.float32)

    def _lengths(self, values: Floats) -> Doubles:
        mantissa, exponent = values[:, self.dimension], values[:, self.dimension + 1]
        return cast(Doubles, np.ldexp(mantissa.astype(np.float64), exponent.astype(np.int32)))
