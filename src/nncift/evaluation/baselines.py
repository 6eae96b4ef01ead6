"""The free and cheap predictors that a student has to beat, fitted on its own training labels (method.md 2).

mean: the training mean. additive: ridge on `[e_t ; e_s]`, all that needs no interaction. cosine: similarity of the
embeddings after an affine fit. hidden: the same on hidden states. ridge: ridge on the elementwise product.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy import linalg

from nncift.core.pairs import Floats, LabelledPairs, Pairs
from nncift.errors import DataError
from nncift.evaluation.gram import NO_VARIANCE, Moments, Space, additive_moments, affine_fit, product_moments

Array = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.floating]

STRENGTHS: tuple[float, ...] = tuple(float(strength) for strength in np.logspace(-5, 3, 17))
"""Ridge strengths that validation chooses from, in units of the mean variance of a feature over the training pairs."""

DEFAULT_STRENGTH = 1.0
"""Strength without validation pairs: a direction of average variance is shrunk by half."""


class Predictor(Protocol):
    """Predicts the utility of pairs whose items were on the axes it was fitted with."""

    def predict(self, pairs: Pairs) -> Floats:
        """Return `(n_pairs,)` predictions."""
        ...


@dataclass(frozen=True)
class Mean:
    """The mean of the training labels for every pair."""

    value: float

    def predict(self, pairs: Pairs) -> Floats:
        """Return `(n_pairs,)` predictions."""
        return np.full(len(pairs), self.value, dtype=np.float32)


@dataclass(frozen=True)
class Additive:
    """intercept + a . e_t + b . e_s, where `weights` is `[a ; b]`."""

    space: Space
    weights: Array
    intercept: float
    strength: float

    def predict(self, pairs: Pairs) -> Floats:
        """Return `(n_pairs,)` predictions."""
        return (self.intercept + self.space.additive(pairs, self.weights)).astype(np.float32)


@dataclass(frozen=True)
class Cosine:
    """intercept + slope * cos(e_t, e_s)."""

    space: Space
    slope: float
    intercept: float

    def predict(self, pairs: Pairs) -> Floats:
        """Return `(n_pairs,)` predictions."""
        return (self.intercept + self.slope * self.space.cosine(pairs)).astype(np.float32)


@dataclass(frozen=True)
class Product:
    """intercept + weights . (e_t * e_s)."""

    space: Space
    weights: Array
    intercept: float
    strength: float

    def predict(self, pairs: Pairs) -> Floats:
        """Return `(n_pairs,)` predictions."""
        return (self.intercept + self.space.product(pairs, self.weights)).astype(np.float32)


def fit_baselines(
    train: LabelledPairs,
    validation: LabelledPairs,
    target_embeddings: Matrix,
    source_embeddings: Matrix,
    hidden: tuple[Matrix, Matrix] | None = None,
) -> dict[str, Predictor]:
    """Fit every baseline on the training labels; validation pairs only choose ridge strengths.

    target_embeddings: `(n_targets, d)`, row i belongs to `train.target_ids[i]`; source_embeddings: `(n_sources, d)`
    likewise; hidden: the same two for hidden states, of any width. Missing labels are left out; without validation
    labels the strength is DEFAULT_STRENGTH. A pointwise teacher's one target has no embedding (width 0): then only mean and
    additive exist. Raises DataError without a single training label and UsageError where
    embeddings do not fit the axes.
    """
    train, validation = train.present(), validation.present()
    if not len(train):
        raise DataError("no training pair has a label; the baselines need at least one: label more pairs")
    pointwise = target_embeddings.shape[1] == 0
    if pointwise:
        target_embeddings = np.zeros((len(target_embeddings), source_embeddings.shape[1]), np.float32)
    space = Space.of(train, target_embeddings, source_embeddings)
    fitted: dict[str, Predictor] = {
        "mean": Mean(float(train.value.mean(dtype=np.float64))),
        "additive": Additive(space, *_ridge(additive_moments(space, train), validation, space.additive)),
    }
    if not pointwise:
        fitted["cosine"] = _cosine(space, train)
        fitted["ridge"] = Product(space, *_ridge(product_moments(space, train), validation, space.product))
    if hidden is not None:
        fitted["hidden"] = _cosine(Space.of(train, *hidden), train)
    return fitted


def predict_quadrants(
    fitted: Mapping[str, Predictor], quadrants: Mapping[str, Pairs]
) -> dict[str, dict[str, npt.NDArray[np.float32]]]:
    """Return predictor name to quadrant name to predictions, as `fidelity.measure` takes them."""
    return {
        name: {quadrant: predictor.predict(pairs) for quadrant, pairs in quadrants.items()}
        for name, predictor in fitted.items()
    }


def _cosine(space: Space, train: LabelledPairs) -> Cosine:
    return Cosine(space, *affine_fit(space.cosine(train), train.value.astype(np.float64)))


def _ridge(
    moments: Moments, validation: LabelledPairs, apply: Callable[[Pairs, Array], Array]
) -> tuple[Array, float, float]:
    """Return weights, intercept and the strength with the smallest squared error on the validation pairs.

    The intercept is not penalised: features and labels are centred, and it makes up for their means. `apply` gives
    features times weights, for one `(d,)` vector of weights or for the columns of `(d, k)`.
    """
    strengths = STRENGTHS if len(validation) else (DEFAULT_STRENGTH,)
    weights = np.stack([_solve(moments, strength) for strength in strengths], axis=1)
    intercepts = moments.label_mean - moments.mean @ weights
    best = 0
    if len(validation):
        error = validation.value[:, None].astype(np.float64) - (apply(validation, weights) + intercepts)
        # Where strengths do equally well the strongest, which claims least, is taken.
        mean_error = (error**2).mean(axis=0)
        best = len(strengths) - 1 - int(np.argmin(mean_error[::-1]))
    return weights[:, best], float(intercepts[best]), strengths[best]


def _solve(moments: Moments, strength: float) -> Array:
    """Solve (covariance + strength * mean variance * identity) w = covariance with the labels."""
    dimensions = len(moments.mean)
    scale = float(np.trace(moments.covariance)) / dimensions
    if not np.isfinite(scale):
        raise DataError("embeddings of labelled items hold values that are not finite; embed these items again")
    if scale <= NO_VARIANCE * float(np.mean(moments.mean**2)):
        return np.zeros(dimensions)
    # Column order lets the Cholesky routine work in place; the matrix is symmetric, so its layout means nothing else.
    system = np.array(moments.covariance, order="F")
    system[np.diag_indices(dimensions)] += strength * scale
    factor = linalg.cho_factor(system, lower=True, overwrite_a=True, check_finite=False)
    return np.asarray(linalg.cho_solve(factor, moments.with_label, check_finite=False))
