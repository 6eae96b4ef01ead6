"""The rival `landmark`: a row is described by its kernels with rows whose utilities are known (docs/method.md, section 8)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from nncift.core.arrays import Codes, Floats
from nncift.core.parallel import ranges
from nncift.core.seeds import derive
from nncift.errors import DataError
from nncift.models.views import STATS, Views
from nncift.student.item_features import ItemFeatures, sizes_of
from nncift.student.networks import FittedStudent, TrainingData, Weights
from nncift.student.networks.shapes import agree

SHAPES = {
    "target_landmarks": ("targets", "target_dim"),
    "target_map": ("targets", "rank"),
    "target_precision": (),
    "source_landmarks": ("sources", "source_dim"),
    "source_map": ("sources", "rank"),
    "source_precision": (),
}
GATHERED = 1 << 15
"""Pairs whose projections are gathered at once."""

PROJECTED = 1 << 12
"""Rows whose kernels are held at once."""


class Landmark:
    """The inner product of two projections, each linear in a row's kernels with the landmarks of its axis."""

    recipes: ClassVar[tuple[str, ...]] = ("default",)

    def __init__(self, weights: Weights, mean: float, scale: float, views: Views | None) -> None:
        if views is None:
            raise DataError("a landmark student lacks the account of what its vectors consist of (views)")
        shapes: dict[str, tuple[str, ...]] = dict(SHAPES)
        shapes |= {f"{name}_centre": (name,) for name in views.similar}
        if STATS in views.names:
            shapes |= {"stats_mean": (STATS,), "stats_factor": (STATS,)}
        sizes = agree(weights, shapes)
        wrong = [name for name, width in views.widths if name in sizes and sizes[name] != width]
        wrong += ["target_dim"] if sizes["target_dim"] not in (0, views.dim) else []
        if wrong or sizes["source_dim"] != views.dim:
            raise DataError(f"a student's weights do not fit its views {views.to_json()}: {sizes}")
        self._weights, self._scale, self._mean = weights, np.float32(scale), np.float32(mean)
        self.width = sizes["rank"]
        mean_of = weights.get("stats_mean", np.zeros(0, np.float32)).astype(np.float64)
        # A factor of 0 is a statistic that does not vary.
        with np.errstate(divide="ignore"):
            spread = 1.0 / weights.get("stats_factor", np.zeros(0, np.float32)).astype(np.float64)
        centres = {name: weights[f"{name}_centre"] for name in views.similar}
        self._features = ItemFeatures(views, centres, sizes_of(views), mean_of, spread)

    @classmethod
    def learn(
        cls, training_data: TrainingData, *, recipe: str, seed: int, advance: Callable[[int], None]
    ) -> FittedStudent:
        """Solve the kernel regression of `student.landmark_regression`; the seed draws landmarks where rows are many."""
        from nncift.student.landmark_regression import fit_landmarks

        advance(1)
        return fit_landmarks(training_data, seed)

    @classmethod
    def refit(
        cls, training_data: TrainingData, *, courses: Sequence[Mapping[str, Any]], advance: Callable[[int], None]
    ) -> FittedStudent:
        """Solve it again on more labels: there is nothing to choose."""
        return cls.learn(training_data, recipe="default", seed=derive(0, "landmarks"), advance=advance)

    def project_targets(self, vectors: Floats) -> Floats:
        """Return `(n_targets, rank)`; a pointwise teacher's target has vectors of width 0."""
        return self._projected("target", vectors)

    def project_sources(self, vectors: Floats) -> Floats:
        """Return `(n_sources, rank)`."""
        return self._projected("source", vectors)

    def _projected(self, axis: str, vectors: Floats) -> Floats:
        from nncift.student.landmark_regression import kernel

        landmarks, onto = self._weights[f"{axis}_landmarks"], self._weights[f"{axis}_map"]
        precision, found = float(self._weights[f"{axis}_precision"]), np.empty((len(vectors), self.width), np.float32)
        for at in ranges(len(vectors), PROJECTED):
            here = self._features.rows(vectors[at]) if landmarks.shape[1] else np.zeros((len(vectors[at]), 0))
            found[at] = kernel(here.astype(np.float32), landmarks, precision) @ onto
        return found

    def block(self, targets: Floats, sources: Floats) -> Floats:
        """Return `(n_targets, n_sources)` predictions, in Fortran order."""
        found = np.matmul(sources, (targets * self._scale).T)
        found += self._mean
        return np.asarray(found.T, np.float32)

    def pairs(self, targets: Floats, sources: Floats, target: Codes, source: Codes) -> Floats:
        """Return `(n_pairs,)` predictions."""
        found = np.empty(len(target), np.float32)
        for at in ranges(len(target), GATHERED):
            found[at] = np.einsum("nd,nd->n", targets[target[at]], sources[source[at]])
        return found * self._scale + self._mean
