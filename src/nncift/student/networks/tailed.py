"""A network plus what regression takes away from the highest values, for coverage objectives (docs/method.md, section 2).

A prediction is a conditional mean: it has less spread than the utilities, and what it leaves out is not noise to a selection that
lives on each target's best source. Near neighbours share it. So similarity is added, as much of it as the residuals spread.
"""

from __future__ import annotations

import numpy as np

from nncift.core.arrays import Codes, Floats
from nncift.models.views import Views
from nncift.student.networks import Predictor, Weights
from nncift.student.networks.bilinear import Bilinear, Towers

AT_ONCE = 1 << 24
"""Pairs whose tail is computed at once, so that no second matrix is held."""


def tail_network(weights: Weights, mean: float, views: Views | None) -> Towers:
    """Return the tail alone, which is 0 on average over the training pairs; mean: what its similarity is there."""
    return Towers(weights, -mean, 1.0, views)


def with_tail(base: Predictor, weights: Weights, mean: float, views: Views | None) -> Predictor:
    """Return a network plus its tail: as one network where it holds the same cosines, which halves the work, else as two."""
    joined = base.with_line(weights, -mean) if isinstance(base, Bilinear) else None
    return Tailed(base, tail_network(weights, mean, views)) if joined is None else joined


class Tailed:
    """The sum of two networks over the same vectors; not trained, and not a predictor of utilities."""

    def __init__(self, base: Predictor, tail: Predictor) -> None:
        self._base, self._tail = base, tail

    @property
    def width(self) -> int:
        """Numbers per projection: both networks' side by side."""
        return self._base.width + self._tail.width

    def project_targets(self, vectors: Floats) -> Floats:
        """Return `(n_targets, width)`."""
        return np.concatenate([self._base.project_targets(vectors), self._tail.project_targets(vectors)], axis=1)

    def project_sources(self, vectors: Floats) -> Floats:
        """Return `(n_sources, width)`."""
        return np.concatenate([self._base.project_sources(vectors), self._tail.project_sources(vectors)], axis=1)

    def block(self, targets: Floats, sources: Floats) -> Floats:
        """Return `(n_targets, n_sources)`, in Fortran order."""
        edge = self._base.width
        found = self._base.block(np.ascontiguousarray(targets[:, :edge]), np.ascontiguousarray(sources[:, :edge]))
        step = max(1, AT_ONCE // max(1, len(targets)))
        for start in range(0, len(sources), step):
            found[:, start : start + step] += self._tail.block(targets[:, edge:], sources[start : start + step, edge:])
        return found

    def pairs(self, targets: Floats, sources: Floats, target: Codes, source: Codes) -> Floats:
        """Return `(n_pairs,)`."""
        edge = self._base.width
        base = self._base.pairs(
            np.ascontiguousarray(targets[:, :edge]), np.ascontiguousarray(sources[:, :edge]), target, source
        )
        return base + self._tail.pairs(targets[:, edge:], sources[:, edge:], target, source)
