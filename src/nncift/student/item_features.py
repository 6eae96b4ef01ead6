"""Rows as kernels see them: every view at length 1, statistics standardised, each with its share of a total of 1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nncift.core.arrays import Doubles, Floats
from nncift.models.views import STATS, TEXT, Views, centre_of, unit
from nncift.student.networks import TrainingData

WEIGHT = {TEXT: 0.5}
"""Weight of a view beside the others', where there are several."""


@dataclass(frozen=True)
class ItemFeatures:
    """How vectors become features.

    centres: by view that has a cosine, what is taken off before it is scaled to length 1. size: by view, what it is multiplied
    with. stats_mean, stats_scale: of the statistics, empty where there are none; a scale is infinite where they do not vary.
    """

    views: Views
    centres: Mapping[str, Floats]
    size: Mapping[str, float]
    stats_mean: Doubles
    stats_scale: Doubles

    @classmethod
    def of(cls, training_data: TrainingData) -> ItemFeatures:
        """Centre views over the rows of both axes; over the sources for a pointwise teacher."""
        views, targets, sources = training_data.views, training_data.targets, training_data.sources
        axes = [sources] if targets is sources or not targets.shape[1] else [targets, sources]
        centres = {name: centre_of(name, [views.take(axis, name) for axis in axes]) for name in views.similar}
        mean = spread = np.zeros(0)
        if STATS in views.names:
            every = np.concatenate([views.take(axis, STATS) for axis in axes]).astype(np.float64)
            mean, spread = every.mean(axis=0), every.std(axis=0)
            spread = np.where(spread > 1e-6 * (1 + np.abs(mean)), spread, np.inf) * np.sqrt(every.shape[1])
        return cls(views, centres, sizes_of(views), mean, spread)

    def unit_views(self, vectors: Floats) -> dict[str, Floats]:
        """Return by view that has a cosine its vectors at length 1, for rows `(n, dim)`."""
        return {name: unit(self.views.take(vectors, name), centre) for name, centre in self.centres.items()}

    def rows(self, vectors: Floats, alike: Mapping[str, Floats] | None = None) -> Doubles:
        """Return the features `(n, dim)` of rows; alike: their `unit_views`, where these are known."""
        alike = self.unit_views(vectors) if alike is None else alike
        parts = []
        for name in self.views.names:
            if name in alike:
                part: Doubles = alike[name].astype(np.float64)
            else:
                part = (self.views.take(vectors, name).astype(np.float64) - self.stats_mean) / self.stats_scale
            parts.append(part * self.size[name])
        return np.concatenate(parts, axis=1)

    def affine(self, matrix: Doubles) -> tuple[Doubles, Doubles]:
        """Return the map `(dim, rank)` from unit views and raw statistics, and its bias, that a map from features is."""
        weight, bias = np.zeros((self.views.dim, matrix.shape[1])), np.zeros(matrix.shape[1])
        for name in self.views.names:
            place = self.views.place(name)
            part = matrix[place] * self.size[name]
            if name not in self.centres:
                part = part / self.stats_scale[:, None]
                bias = bias - self.stats_mean @ part
            weight[place] = part
        return weight, bias


def sizes_of(views: Views) -> dict[str, float]:
    """Return what every view is multiplied with, so that the squares add up to 1."""
    weight = {name: WEIGHT.get(name, 1.0) if len(views.names) > 1 else 1.0 for name in views.names}
    total = sum(weight.values())
    return {name: float(np.sqrt(of / total)) for name, of in weight.items()}
