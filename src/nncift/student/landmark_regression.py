"""Kernel regression on landmark rows, as Influence Distillation does it (docs/method.md, section 8; arXiv 2505.19051).

Landmarks are rows whose utilities are known: `p = K_EL (K_LL + r I)^-1 p_L` with `K = exp(-d^2 / 2 s^2)`, `d` the distance of two
rows' features and `s` the median distance of landmarks. On a block of labels it runs along the sources, and along the targets
too where some of them have no labels. Other pairs are learned from under the product of both kernels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import linalg, sparse

from nncift.core.arrays import Doubles, Floats
from nncift.core.pairs import LabelledPairs
from nncift.core.seeds import generator
from nncift.storage.vector_store import rows_of
from nncift.student.block_ridge import Labels
from nncift.student.item_features import ItemFeatures
from nncift.student.networks import FittedStudent, TrainingData, scaling

RIDGE = 0.01
"""What is added to the kernel's diagonal, in units of its mean."""

EXACT = 1e-4
"""The same along targets that all have labels: their own columns are used, not their neighbours'."""

LANDMARKS, SCATTERED = 1024, 256
"""Landmarks of an axis at most: on a block, and among other pairs."""

RANK = 64
STEPS, TOLERANCE = 60, 1e-6
"""Steps of conjugate gradients at most, and the relative residual at which they stop."""


@dataclass(frozen=True)
class LandmarkAxis:
    """The labelled rows of an axis. landmarks: `(k, dim)` features of some; precision: `1 / 2 s^2`.

    basis: `(k, width)`, from kernels with the landmarks to coordinates in which the kernel is an inner product. rows: the
    coordinates `(n, width)` of all.
    """

    landmarks: Floats
    precision: float
    basis: Doubles
    rows: Doubles

    @classmethod
    def of(cls, features: Doubles, most: int, random: np.random.Generator) -> LandmarkAxis:
        """Take as landmarks all rows, or as many as that, drawn."""
        n = len(features)
        places = np.arange(n) if n <= most else np.sort(random.permutation(n)[:most])
        landmarks = features[places].astype(np.float32)
        apart = squared_distances(landmarks, landmarks)
        above = apart[np.triu_indices(len(landmarks), 1)]
        median = float(np.median(above)) if len(above) else 0.0
        precision = 0.5 / median if median > 0 else 1.0
        values, vectors = linalg.eigh(np.exp(-precision * apart).astype(np.float64), check_finite=False)
        kept = values > 1e-6 * float(values[-1])
        basis = vectors[:, kept] / np.sqrt(values[kept])
        rows = kernel(features.astype(np.float32), landmarks, precision) @ basis
        return cls(landmarks, precision, basis, rows)

    def smoothed(self, values: Doubles, ridge: float) -> Doubles:
        """Return the coefficients `(width, m)` of the kernel regression on values of the rows, `(n, m)`."""
        system = self.rows.T @ self.rows
        system[np.diag_indices_from(system)] += ridge
        return np.asarray(linalg.solve(system, self.rows.T @ values, assume_a="pos", check_finite=False))


def squared_distances(one: Floats, other: Floats) -> Floats:
    """Return the squared distances of two sets of features, `(n, m)`."""
    found = (one**2).sum(axis=1)[:, None] + (other**2).sum(axis=1)[None, :] - 2 * (one @ other.T)
    return np.asarray(np.maximum(found, 0), np.float32)


def kernel(one: Floats, other: Floats, precision: float) -> Floats:
    """Return the Gaussian kernel of two sets of features, `(n, m)`."""
    return np.asarray(np.exp(-np.float32(precision) * squared_distances(one, other)), np.float32)


def fit_landmarks(training_data: TrainingData, seed: int) -> FittedStudent:
    """Fit on training pairs that have a value; the validation pairs decide nothing.

    Raises DataError where no training pair has a label.
    """
    train = training_data.known
    mean, scale = scaling(train.value)
    features, pointwise = ItemFeatures.of(training_data), not training_data.targets.shape[1]
    block = _pointwise(train) if pointwise else Labels.of(train)
    codes = (block.target, block.source) if block else (np.unique(train.target), np.unique(train.source))
    random, most = generator(seed, "landmarks"), LANDMARKS if block else SCATTERED
    axes = tuple(
        LandmarkAxis.of(_described(features, vectors, rows), most, random)
        for vectors, rows in zip((training_data.targets, training_data.sources), codes, strict=True)
    )
    targets, sources = axes
    if block is None:
        t, s = np.searchsorted(codes[0], train.target), np.searchsorted(codes[1], train.source)
        core = _of_pairs(targets, sources, t, s, (train.value - mean) / scale)
    else:
        exact = len(block.target) == len(training_data.targets)
        value = _filled((block.value - mean) / scale, targets, sources)
        core = targets.smoothed(sources.smoothed(value.T, RIDGE).T, EXACT if exact else RIDGE)
    course = {"landmarks": {"target": len(targets.landmarks), "source": len(sources.landmarks)}}
    return FittedStudent(_weights(features, axes, core), mean, scale, course)


def _pointwise(train: LabelledPairs) -> Labels:
    """Return scores as a block with one target."""
    source, first = np.unique(train.source, return_index=True)
    return Labels(np.zeros(1, np.int32), source.astype(np.int32), train.value[first].astype(np.float64)[None])


def _described(features: ItemFeatures, vectors: Floats, rows: npt.NDArray[np.integer]) -> Doubles:
    # A pointwise teacher's target has no numbers.
    return features.rows(rows_of(vectors, rows)) if vectors.shape[1] else np.zeros((len(rows), 0))


def _filled(value: Doubles, targets: LandmarkAxis, sources: LandmarkAxis) -> Doubles:
    """Fill missing pairs with means over the other rows of each axis, those with a high kernel first."""
    there = np.isfinite(value)
    if there.all():
        return value
    known, found = np.where(there, value, 0.0), np.zeros(value.shape)
    near = [np.maximum(axis.rows @ axis.rows.T, 0) for axis in (targets, sources)]
    for total, weight in (
        (near[0] @ known, near[0] @ there.astype(np.float64)),
        (known @ near[1], there.astype(np.float64) @ near[1]),
    ):
        found += 0.5 * np.divide(total, weight, out=np.zeros(value.shape), where=weight > 1e-12)
    return np.where(there, value, found)


def _of_pairs(
    targets: LandmarkAxis,
    sources: LandmarkAxis,
    t: npt.NDArray[np.intp],
    s: npt.NDArray[np.intp],
    value: Doubles | Floats,
) -> Doubles:
    """Return the core `(width_t, width_s)` of a regression on any pairs, by conjugate gradients on its normal equations."""
    across, shape = sources.rows[s], (len(targets.rows), len(sources.rows))

    def back(residual: Doubles) -> Doubles:
        held = sparse.csr_matrix((residual, (t, s)), shape=shape)
        return np.asarray(targets.rows.T @ (held @ sources.rows))

    def system(core: Doubles) -> Doubles:
        predicted = np.einsum("nd,nd->n", (targets.rows @ core)[t], across)
        return back(predicted) + RIDGE * core

    core = np.zeros((targets.rows.shape[1], sources.rows.shape[1]))
    left = back(np.asarray(value, np.float64))
    direction, size = left, float((left**2).sum())
    first = size
    for _ in range(STEPS):
        if size <= TOLERANCE**2 * first:
            break
        along = system(direction)
        step = size / float((direction * along).sum())
        core, left = core + step * direction, left - step * along
        before, size = size, float((left**2).sum())
        direction = left + (size / before) * direction
    return core


def _weights(features: ItemFeatures, axes: tuple[LandmarkAxis, ...], core: Doubles) -> dict[str, Floats]:
    """Return the weights of the network `landmark`: the core as a product of low rank."""
    # In values on the labelled rows, so that what is cut off is what matters least there.
    targets, sources = (linalg.qr(axis.rows, mode="r", check_finite=False)[0][: axis.rows.shape[1]] for axis in axes)
    left, size, right = linalg.svd(targets @ core @ sources.T, full_matrices=False, check_finite=False)
    rank = max(1, min(RANK, int((size > 1e-9 * max(float(size[0]), 1e-30)).sum())))
    root = np.sqrt(size[:rank])
    parts = linalg.solve_triangular(targets, left[:, :rank]), linalg.solve_triangular(sources, right[:rank].T)
    found: dict[str, npt.NDArray[np.floating]] = {f"{name}_centre": centre for name, centre in features.centres.items()}
    if features.stats_scale.size:
        found |= {"stats_mean": features.stats_mean, "stats_factor": 1.0 / features.stats_scale}
    for name, axis, part in zip(("target", "source"), axes, parts, strict=True):
        found[f"{name}_landmarks"] = axis.landmarks
        found[f"{name}_precision"] = np.array(axis.precision)
        found[f"{name}_map"] = axis.basis @ (part * root)
    return {name: np.asarray(array, np.float32) for name, array in found.items()}
