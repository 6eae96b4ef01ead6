"""The paper's network: `v relu(W [e_t ; e_s] + b) + c`, with `W` kept as its two halves (method.md 2; NN-CIFT)."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np

from nncift.core.arrays import Codes, Floats
from nncift.errors import DataError
from nncift.models.views import Views
from nncift.student.network_kernels import relu_block, relu_pairs
from nncift.student.networks import FittedStudent, TrainingData, Weights
from nncift.student.networks.shapes import agree

SHAPES = {
    "target_weight": ("target_dim", "hidden"),
    "source_weight": ("source_dim", "hidden"),
    "hidden_bias": ("hidden",),
    "output_weight": ("hidden",),
    "output_bias": (),
}


class Paper:
    """One hidden layer of rectified units over both vectors; 100 units, trained by Adam."""

    recipes: ClassVar[tuple[str, ...]] = ("default", "paper")

    def __init__(self, weights: Weights, mean: float, scale: float, views: Views | None) -> None:
        sizes = agree(weights, SHAPES)
        self.width = sizes["hidden"]
        if views is not None and (sizes["source_dim"] != views.dim or sizes["target_dim"] not in (0, views.dim)):
            raise DataError(f"a student's weights do not fit its views {views.to_json()}: {sizes}")
        self._weights = weights
        # The output layer in label units.
        self._output = weights["output_weight"] * np.float32(scale), float(weights["output_bias"]) * scale + mean

    @classmethod
    def learn(
        cls, training_data: TrainingData, *, recipe: str, seed: int, advance: Callable[[int], None]
    ) -> FittedStudent:
        """Train by Adam on batches of pairs."""
        from nncift.student.paper_recipe import RECIPES, fit

        return fit(training_data, recipe=RECIPES[recipe], seed=seed, advance=advance)

    def project_targets(self, vectors: Floats) -> Floats:
        """Return `(n_targets, hidden)`: what a pair needs of its target, the hidden bias included."""
        return np.asarray(vectors @ self._weights["target_weight"] + self._weights["hidden_bias"], np.float32)

    def project_sources(self, vectors: Floats) -> Floats:
        """Return `(n_sources, hidden)`: what a pair needs of its source."""
        return np.asarray(vectors @ self._weights["source_weight"], np.float32)

    def block(self, targets: Floats, sources: Floats) -> Floats:
        """Return `(n_targets, n_sources)` predictions, in Fortran order."""
        return relu_block(targets, sources, *self._output).T

    def pairs(self, targets: Floats, sources: Floats, target: Codes, source: Codes) -> Floats:
        """Return `(n_pairs,)` predictions."""
        return relu_pairs(targets, sources, target, source, *self._output)
