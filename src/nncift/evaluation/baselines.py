"""The cheap predictors that a student has to beat, fitted on its own training labels (method.md 2).

mean: the training mean. additive: ridge on `[e_t ; e_s]`, all that needs no interaction. ridge: ridge on the elementwise product.
What is free, cosines of the embeddings after a straight line, are students of their own (`student.free_similarity`).

No matrix of all pairs times all features is made. Chunks of pairs are gathered under MEMORY bytes, and the additive features need
not even that: the sum over pairs of `e_t e_t'` is a sum over targets weighted by their number of pairs, and the mixed block is
`E_T' C E_S` with the sparse matrix C that counts the pairs. This is the factorisation of method.md 2 once more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy import sparse

from nncift.core.arrays import Doubles, Floats
from nncift.core.pairs import LabelledPairs, Pairs
from nncift.core.parallel import ranges
from nncift.errors import DataError, UsageError
from nncift.storage.vector_store import rows_of
from nncift.student.ridge import Spectrum

Matrix = npt.NDArray[np.floating]

MEMORY = 64 * 2**20
"""Bytes that a chunk of gathered rows may take."""

STRENGTHS: tuple[float, ...] = tuple(float(strength) for strength in np.logspace(-5, 3, 17))
"""Ridge strengths that validation chooses from, in units of the mean variance of a feature over the training pairs."""

DEFAULT_STRENGTH = 1.0
"""Strength without validation pairs: a direction of average variance is shrunk by half."""

NO_VARIANCE = 1e-12
"""A variance below this share of the squared mean is rounding, and a slope fitted to it would be noise at full size."""


class Predictor(Protocol):
    """Predicts the utility of pairs on the axes that it was fitted with."""

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


class Features(Protocol):
    """Features of pairs of embeddings."""

    def moments(self, train: LabelledPairs) -> Moments:
        """Return what ridge regression needs to know of the training pairs."""
        ...

    def times(self, pairs: Pairs, weights: Doubles) -> Doubles:
        """Return features times weights, for one `(p,)` vector of weights or for the columns of `(p, k)`."""
        ...


@dataclass(frozen=True)
class Linear:
    """intercept + features . weights. strength: of the ridge, see STRENGTHS."""

    features: Features
    weights: Doubles
    intercept: float
    strength: float

    def predict(self, pairs: Pairs) -> Floats:
        """Return `(n_pairs,)` predictions."""
        return (self.intercept + self.features.times(pairs, self.weights)).astype(np.float32)

    @classmethod
    def fit(cls, features: Features, train: LabelledPairs, validation: LabelledPairs) -> Linear:
        """Fit with the strength that has the smallest squared error on the validation pairs.

        The intercept is not penalised: features and labels are centred, and it makes up for their means. Raises DataError for
        features that are not finite.
        """
        moments = features.moments(train)
        strengths = STRENGTHS if len(validation) else (DEFAULT_STRENGTH,)
        weights = moments.solve(strengths)
        intercepts = moments.label_mean - moments.mean @ weights
        best = 0
        if len(validation):
            error = validation.value[:, None].astype(np.float64) - (features.times(validation, weights) + intercepts)
            # Where strengths do equally well the strongest, which claims least, is taken.
            best = len(strengths) - 1 - int(np.argmin((error**2).mean(axis=0)[::-1]))
        return cls(features, weights[:, best], float(intercepts[best]), strengths[best])


@dataclass(frozen=True)
class Moments:
    """Means over the training pairs: `(p,)` of the features, `(p, p)` covariance, `(p,)` covariance with the labels."""

    mean: Doubles
    covariance: Doubles
    with_label: Doubles
    label_mean: float

    @classmethod
    def of_sums(cls, train: LabelledPairs, features: Doubles, gram: Doubles, with_label: Doubles) -> Moments:
        """Centre raw sums over pairs; `with_label` was summed with labels less their mean."""
        mean = features / len(train)
        label_mean = float(train.value.mean(dtype=np.float64))
        return cls(mean, gram / len(train) - np.outer(mean, mean), with_label / len(train), label_mean)

    def solve(self, strengths: tuple[float, ...]) -> Doubles:
        """Return the weights `(p, k)` of (covariance + strength * mean variance * identity) w = covariance with the labels."""
        scale = float(np.trace(self.covariance)) / len(self.mean)
        if not np.isfinite(scale):
            raise DataError("embeddings of labelled items hold values that are not finite; embed these items again")
        if scale <= NO_VARIANCE * float(np.mean(self.mean**2)):
            return np.zeros((len(self.mean), len(strengths)))
        spectrum = Spectrum.of(self.covariance)
        return np.stack([spectrum.solve(self.with_label, strength * scale) for strength in strengths], axis=1)


@dataclass(frozen=True)
class Additive:
    """`[e_t ; e_s]`, p = 2d. target, source: `(n, d)` on the axes of the pairs, maybe memory maps of any float type."""

    target: Matrix
    source: Matrix

    def times(self, pairs: Pairs, weights: Doubles) -> Doubles:
        """Return features times weights; every item is projected once."""
        width = self.target.shape[1]
        return _project(self.target, pairs.target, weights[:width]) + _project(
            self.source, pairs.source, weights[width:]
        )

    def moments(self, train: LabelledPairs) -> Moments:
        """Return the moments from sums over items instead of pairs."""
        targets, target = np.unique(train.target, return_inverse=True)
        sources, source = np.unique(train.source, return_inverse=True)
        label, width = _centred(train), self.target.shape[1]
        counts = sparse.csr_array((np.ones(len(train)), (target, source)), shape=(len(targets), len(sources)))
        features, with_label, gram = np.zeros(2 * width), np.zeros(2 * width), np.zeros((2 * width, 2 * width))
        axes = ((self.target, targets, target, slice(width)), (self.source, sources, source, slice(width, None)))
        for matrix, codes, place, part in axes:
            count, label_of = np.bincount(place), np.bincount(place, label)
            for at in _chunks(len(codes), 3 * width):
                rows = rows_of(matrix, codes[at]).astype(np.float64)
                features[part] += count[at] @ rows
                with_label[part] += label_of[at] @ rows
                if part.start is None:
                    mixed: Doubles = rows.T @ self._sum_of_sources(counts[at], sources)
                    gram[:width, width:] += mixed
                rows *= np.sqrt(count[at, None])
                gram[part, part] += rows.T @ rows
        gram[width:, :width] = gram[:width, width:].T
        return Moments.of_sums(train, features, gram, with_label)

    def _sum_of_sources(self, counts: sparse.csr_array, sources: npt.NDArray[np.int32]) -> Doubles:
        """Return for each target of a chunk the sum of the embeddings of the sources it was paired with."""
        met = np.unique(counts.indices)
        counts, width = counts[:, met], self.source.shape[1]
        total = np.zeros((counts.shape[0], width))
        for at in _chunks(len(met), 3 * width):
            total += counts[:, at] @ rows_of(self.source, sources[met[at]]).astype(np.float64)
        return total


@dataclass(frozen=True)
class Product:
    """`e_t * e_s`, p = d, chunk by chunk. target, source: see `Additive`."""

    target: Matrix
    source: Matrix

    def times(self, pairs: Pairs, weights: Doubles) -> Doubles:
        """Return features times weights."""
        parts = [product @ weights for _, product in self._chunks(pairs)]
        return np.concatenate(parts) if parts else np.empty((0, *weights.shape[1:]))

    def moments(self, train: LabelledPairs) -> Moments:
        """Return the moments."""
        label, width = _centred(train), self.target.shape[1]
        features, with_label, gram = np.zeros(width), np.zeros(width), np.zeros((width, width))
        for at, product in self._chunks(train):
            features += product.sum(axis=0)
            with_label += label[at] @ product
            gram += product.T @ product
        return Moments.of_sums(train, features, gram, with_label)

    def _chunks(self, pairs: Pairs) -> Iterator[tuple[slice, Doubles]]:
        for at in _chunks(len(pairs), 3 * self.target.shape[1]):
            target = rows_of(self.target, pairs.target[at]).astype(np.float64)
            yield at, target * rows_of(self.source, pairs.source[at]).astype(np.float64)


def fit_baselines(
    train: LabelledPairs, validation: LabelledPairs, target_embeddings: Matrix, source_embeddings: Matrix
) -> dict[str, Predictor]:
    """Fit every baseline on the training labels; validation pairs only choose ridge strengths.

    target_embeddings: `(n_targets, d)`, row i belongs to `train.target_ids[i]`; source_embeddings: `(n_sources, d)` likewise.
    Missing labels are left out; without validation labels the strength is DEFAULT_STRENGTH. A pointwise teacher's one target
    has no embedding (width 0): then only mean and additive exist. Raises DataError without a single training label and UsageError
    where embeddings do not fit the axes.
    """
    train, validation = train.present(), validation.present()
    if not len(train):
        raise DataError("no training pair has a label; the baselines need at least one: label more pairs")
    pointwise = target_embeddings.shape[1] == 0
    if pointwise:
        target_embeddings = np.zeros((len(target_embeddings), source_embeddings.shape[1]), np.float32)
    _check_shapes(train, target_embeddings, source_embeddings)
    fitted: dict[str, Predictor] = {
        "mean": Mean(float(train.value.mean(dtype=np.float64))),
        "additive": Linear.fit(Additive(target_embeddings, source_embeddings), train, validation),
    }
    if not pointwise:
        fitted["ridge"] = Linear.fit(Product(target_embeddings, source_embeddings), train, validation)
    return fitted


def predict_quadrants(
    fitted: Mapping[str, Predictor], quadrants: Mapping[str, Pairs]
) -> dict[str, dict[str, npt.NDArray[np.float32]]]:
    """Return predictor name to quadrant name to predictions, as `fidelity.measure` takes them."""
    return {
        name: {quadrant: predictor.predict(pairs) for quadrant, pairs in quadrants.items()}
        for name, predictor in fitted.items()
    }


def _check_shapes(pairs: Pairs, target: Matrix, source: Matrix) -> None:
    expected = (len(pairs.target_ids), len(pairs.source_ids))
    fits = target.ndim == source.ndim == 2 and (len(target), len(source)) == expected
    if not fits or target.shape[1] != source.shape[1]:
        raise UsageError(
            f"embeddings of shape {target.shape} for targets and {source.shape} for sources given; "
            f"expected ({expected[0]}, d) and ({expected[1]}, d) with the same d"
        )


def _centred(train: LabelledPairs) -> Doubles:
    label = train.value.astype(np.float64)
    return np.asarray(label - label.mean())


def _chunks(rows: int, width: int) -> list[slice]:
    """Return slices of at most as many rows of `width` float64 as MEMORY holds."""
    return ranges(rows, max(1, MEMORY // (8 * width)))


def _project(matrix: Matrix, codes: npt.NDArray[np.int32], weights: Doubles) -> Doubles:
    """Return `matrix[codes] @ weights`, computing every row that occurs once."""
    rows, place = np.unique(codes, return_inverse=True)
    projected = np.empty((len(rows), *weights.shape[1:]))
    for at in _chunks(len(rows), matrix.shape[1]):
        projected[at] = rows_of(matrix, rows[at]).astype(np.float64) @ weights
    return np.asarray(projected[place])
