"""Ridge regression from both sides on a block of labels: every measured target with every measured source.

Each axis has a kernel: a constant, and the inner products of the rows' views. What is left of the labels after straight lines of
the cosines is regressed on the kernel of the targets and on that of the sources, `P = K_t (K_t + p I)^-1 R (K_s + p I)^-1 K_s`
(two-step kernel ridge regression; Stock et al., Neural Computation 30, 2018), and polynomials of the cosines learn what that
leaves. What the regression along an axis leaves of a row's own labels is regressed along the other axis alone: a pair with one
labelled row is predicted from the labels of that row, and not only from those of rows that are like it.

Predictions of rows that were left out are known in closed form, so that no labels are set aside for the penalties. The result is
a bilinear network (`networks.bilinear`) of low rank. Cost: cubic in measured rows, and no epoch, learning rate or seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy import linalg

from nncift.core.arrays import Doubles, Floats
from nncift.core.pairs import LabelledPairs
from nncift.storage.vector_store import rows_of
from nncift.student.item_features import ItemFeatures
from nncift.student.networks import FittedStudent, TrainingData
from nncift.student.row_keys import keys_of
from nncift.student.view_cosines import powers_of

PENALTIES = (0.05, 0.15, 0.4, 1.2, 4.0, 12.0, 40.0, 120.0)
"""Penalties that are tried, in units of a row's own kernel without the constant."""

CONSTANT = 1.0
"""The constant in the kernel: it lets a row have an effect of its own, whatever stands on the other axis."""

LINES, CURVES = 1e-2, 1e-2
"""Penalties of the straight lines, for standardised cosines, and of the polynomials, in units of a power's largest variance."""

RANK = 32
"""Rank of the product, and of what is kept of rows with labels of their own."""

AXES = ("target", "source")
FULL = 0.9
"""Share of a block's pairs that must be labelled for this regression; the others are filled with what is predicted for them."""

LEAST = 4
FILLED, FILLING = 3, 0.4
"""Rounds in which missing pairs are filled, and the penalty then."""

KEPT = 512
"""Rows of an axis up to which the matrices of all penalties are kept once they are made, 17 MB at most."""

LEFT_OUT = 800
"""Rows of an axis at most on which predictions without them are made, to choose the penalty and to learn the polynomials."""


@dataclass(frozen=True)
class _Axis:
    """The measured rows of an axis. features: `(n, width)`; basis, size, left: its singular vectors and values.

    alike: by view, vectors of length 1.
    """

    features: Doubles
    left: Doubles
    size: Doubles
    right: Doubles
    alike: dict[str, Floats]

    def kept(self, penalty: float) -> Doubles:
        """Return the share of every singular direction that the penalty keeps."""
        return np.asarray(self.size**2 / (self.size**2 + penalty))

    @cached_property
    def _without_own(self) -> dict[float, Doubles]:
        return {}

    def without_own(self, penalty: float) -> Doubles:
        """Return the matrix `(n, n)` that predicts each row from all others; every penalty is tried up to three times."""
        if (kept := self._without_own.get(penalty)) is not None:
            return kept
        hat = (self.left * self.kept(penalty)) @ self.left.T
        own = np.minimum(np.diag(hat), 1 - 1e-9)
        hat /= (1 - own)[:, None]
        np.fill_diagonal(hat, 0.0)
        if len(hat) <= KEPT:
            self._without_own[penalty] = hat
        return np.asarray(hat)


@dataclass(frozen=True)
class Labels:
    """A block of labels. target, source: codes of its rows; value: `(n_targets, n_sources)`, NaN where there is none."""

    target: npt.NDArray[np.int32]
    source: npt.NDArray[np.int32]
    value: Doubles

    @classmethod
    def of(cls, pairs: LabelledPairs) -> Labels | None:
        """Return labelled pairs as a block; None where too many of its pairs have no label."""
        target, t = np.unique(pairs.target, return_inverse=True)
        source, s = np.unique(pairs.source, return_inverse=True)
        if min(len(target), len(source)) < LEAST or len(pairs) < FULL * (len(target) * len(source) - len(target)):
            return None
        value = np.full((len(target), len(source)), np.nan)
        value[t, s] = pairs.value
        return cls(target.astype(np.int32), source.astype(np.int32), value)

    def some(self, most: int) -> Labels:
        """Return at most so many rows of each axis, spread evenly."""
        rows, columns = (
            np.unique(np.linspace(0, size - 1, min(size, most)).round().astype(np.intp)) for size in self.value.shape
        )
        return Labels(self.target[rows], self.source[columns], self.value[np.ix_(rows, columns)])


def solve_block(training_data: TrainingData, labels: Labels, powers: int) -> FittedStudent:
    """Fit a bilinear network on a block of labels, with so many powers of each cosine."""
    present = np.isfinite(labels.value)
    mean = float(labels.value[present].mean())
    scale = float(labels.value[present].std()) or 1.0
    features = ItemFeatures.of(training_data)
    # Choices are made on some rows where there are many; the regression itself is on all of them.
    part = labels.some(LEFT_OUT)
    chooser = _Fit.of(features, training_data, part, mean, scale)
    errors = [chooser.error(penalty) for penalty in PENALTIES]
    # The strongest of equals claims least.
    penalty = PENALTIES[len(errors) - 1 - int(np.argmin(errors[::-1]))]
    curves, shift = chooser.curves(penalty, powers)
    own = {axis: chooser.own_penalty(axis, penalty) for axis in AXES}
    fit = chooser if part.value.shape == labels.value.shape else _Fit.of(features, training_data, labels, mean, scale)
    weights = fit.weights(features, penalty, curves, shift)
    for axis, strength in own.items():
        weights |= {} if strength is None else fit.own_weights(features, axis, penalty, strength)
    course = {
        "start": "lines",
        "penalty": penalty,
        "penalties": list(PENALTIES),
        "validation_mse": [round(error * scale**2, 8) for error in errors],
    }
    return FittedStudent(weights, mean, scale, course)


def _axis(features: ItemFeatures, vectors: Floats) -> _Axis:
    """Describe rows by their vectors `(n, dim)`; a constant stands behind their features."""
    alike = features.unit_views(vectors)
    constant = np.full((len(vectors), 1), np.sqrt(CONSTANT))
    every = np.concatenate([features.rows(vectors, alike), constant], axis=1)
    return _Axis(every, *_singular(every), alike)


@dataclass(frozen=True)
class _Fit:
    """A regression on a block, in units of the labels' spread.

    cosine: by view, `(n_targets, n_sources)`. slopes, offset: of the straight lines, with the mean of what they leave in the
    offset. rest: what they leave, less its mean, missing pairs filled; core: that in the singular vectors of both axes.
    """

    targets: _Axis
    sources: _Axis
    present: npt.NDArray[np.bool_]
    cosine: dict[str, Doubles]
    slopes: dict[str, float]
    offset: float
    rest: Doubles
    core: Doubles

    @classmethod
    def of(cls, features: ItemFeatures, training_data: TrainingData, labels: Labels, mean: float, scale: float) -> _Fit:
        """Take straight lines of the cosines off the labels, and fill what is missing."""
        targets = _axis(features, rows_of(training_data.targets, labels.target))
        sources = _axis(features, rows_of(training_data.sources, labels.source))
        value, present = (labels.value - mean) / scale, np.isfinite(labels.value)
        cosine = {
            name: targets.alike[name].astype(np.float64) @ sources.alike[name].astype(np.float64).T
            for name in features.centres
        }
        slopes, offset = _lines(cosine, value, present)
        rest = value - offset - sum((slope * cosine[name] for name, slope in slopes.items()), np.zeros(1))
        rest = _filled(rest, present, targets, sources)
        left_over = float(rest[present].mean())
        rest = rest - left_over
        core = targets.left.T @ rest @ sources.left
        return cls(targets, sources, present, cosine, slopes, offset + left_over, rest, core)

    def left_out(self, penalty: float) -> Doubles:
        """Return what is predicted of the rest from other targets and other sources alone."""
        return np.asarray(self.targets.without_own(penalty) @ self.rest @ self.sources.without_own(penalty).T)

    def error(self, penalty: float) -> float:
        """Return the mean squared error of predictions from other rows alone."""
        return float(np.mean((self.rest - self.left_out(penalty))[self.present] ** 2))

    def curves(self, penalty: float, powers: int) -> tuple[dict[str, Doubles], float]:
        """Return weights of every cosine's powers, and the constant beside them, fitted to what predictions leave."""
        missed = (self.rest - self.left_out(penalty))[self.present]
        features = [powers_of(of[self.present].astype(np.float32), powers) for of in self.cosine.values()]
        x = np.concatenate(features, axis=1).astype(np.float64)
        centre = x.mean(axis=0)
        x -= centre
        system = x.T @ x
        system[np.diag_indices_from(system)] += CURVES * max(float(np.diag(system).max()), 1e-30)
        found = linalg.solve(system, x.T @ (missed - missed.mean()), assume_a="pos", check_finite=False)
        by_view = dict(zip(self.cosine, np.split(found, len(self.cosine)), strict=True))
        return by_view, float(missed.mean() - centre @ found)

    def _own(self, axis: str, penalty: float) -> tuple[Doubles, _Axis]:
        """Return what the regression along an axis leaves of its rows' own labels, one row each, and the other axis."""
        if axis == "target":
            return self.rest - (self.targets.left * self.targets.kept(penalty)) @ (
                self.targets.left.T @ self.rest
            ), self.sources
        rest = self.rest.T
        return rest - (self.sources.left * self.sources.kept(penalty)) @ (self.sources.left.T @ rest), self.targets

    def own_penalty(self, axis: str, penalty: float) -> float | None:
        """Return the penalty under which that is best predicted from the other rows of the other axis; None where it is not."""
        own, across = self._own(axis, penalty)
        present = self.present if axis == "target" else self.present.T
        errors = [float(np.mean((own - own @ across.without_own(of).T)[present] ** 2)) for of in PENALTIES]
        best = len(errors) - 1 - int(np.argmin(errors[::-1]))
        return PENALTIES[best] if errors[best] < float(np.mean(own[present] ** 2)) else None

    def own_weights(self, features: ItemFeatures, axis: str, penalty: float, own_penalty: float) -> dict[str, Floats]:
        """Return what is kept of an axis's labelled rows, and the map of the other's rows that it meets, at low rank."""
        own, across = self._own(axis, penalty)
        left, size, right = linalg.svd((own @ across.left) * across.kept(own_penalty), full_matrices=False)
        rank = max(1, min(RANK, int((size > 1e-9 * max(size[0], 1e-30)).sum())))
        root = np.sqrt(size[:rank])
        weight, bias = _mapped(features, across, right[:rank].T * root)
        rows = self.targets if axis == "target" else self.sources
        units = np.zeros((len(own), features.views.dim), np.float32)
        for name, vectors in rows.alike.items():
            units[:, features.views.place(name)] = vectors
        found = {"keys": keys_of(units, features.views), "rest": left[:, :rank] * root}
        found |= {"rest_weight": weight, "rest_bias": bias}
        return {f"{axis}_{name}": np.asarray(array, np.float32) for name, array in found.items()}

    def weights(
        self, features: ItemFeatures, penalty: float, curves: Mapping[str, Doubles], shift: float
    ) -> dict[str, Floats]:
        """Return the weights of a bilinear network: the regression's as a product of low rank, and the polynomials."""
        # In values on the measured rows, so that what is cut off is what matters least there.
        core = self.targets.kept(penalty)[:, None] * self.core * self.sources.kept(penalty)[None, :]
        left, size, right = linalg.svd(core, full_matrices=False, check_finite=False)
        rank = max(1, min(RANK, int((size > 1e-9 * max(size[0], 1e-30)).sum())))
        root = np.sqrt(size[:rank])
        found: dict[str, npt.NDArray[np.floating]] = {}
        for axis, own, part in (("target", self.targets, left[:, :rank]), ("source", self.sources, right[:rank].T)):
            weight, bias = _mapped(features, own, part * root)
            # One number more: the constant part, which meets a 1.
            weight = np.concatenate([weight, np.zeros((len(weight), 1))], axis=1)
            bias = np.append(bias, 1.0 if axis == "target" else self.offset + shift)
            found[f"{axis}_weight"], found[f"{axis}_bias"] = weight, bias
        for name in features.centres:
            powers = curves[name].copy()
            powers[0] += self.slopes[name]
            found[f"{name}_powers"], found[f"{name}_centre"] = powers, features.centres[name]
        return {name: np.asarray(array, np.float32) for name, array in found.items()}


def _mapped(features: ItemFeatures, axis: _Axis, part: Doubles) -> tuple[Doubles, Doubles]:
    """Return the map from views, and its bias, whose values on an axis's labelled rows are its singular vectors times a part."""
    matrix = (axis.right / axis.size) @ part
    weight, bias = features.affine(matrix[:-1])
    return weight, matrix[-1] * np.sqrt(CONSTANT) + bias


def _lines(
    cosine: Mapping[str, Doubles], value: Doubles, present: npt.NDArray[np.bool_]
) -> tuple[dict[str, float], float]:
    """Return the slope of every cosine and the intercept, by ridge regression on the labels that are there."""
    x = np.stack([of[present] for of in cosine.values()], axis=1)
    y = value[present]
    centre, spread = x.mean(axis=0), x.std(axis=0)
    spread = np.where(spread > 1e-9, spread, np.inf)
    z = (x - centre) / spread
    system = z.T @ z
    system[np.diag_indices_from(system)] += LINES * len(y)
    found = linalg.solve(system, z.T @ (y - y.mean()), assume_a="pos") / spread
    return dict(zip(cosine, found.tolist(), strict=True)), float(y.mean() - centre @ found)


def _filled(rest: Doubles, present: npt.NDArray[np.bool_], targets: _Axis, sources: _Axis) -> Doubles:
    """Fill missing pairs: first with what both rows have on average, then with what is predicted for them."""
    rest = np.where(present, rest, 0.0)
    if present.all():
        return rest
    mean = rest.sum() / present.sum()
    rows = rest.sum(axis=1) / np.maximum(present.sum(axis=1), 1)
    columns = rest.sum(axis=0) / np.maximum(present.sum(axis=0), 1)
    filled = np.where(present, rest, rows[:, None] + columns[None, :] - mean)
    for _ in range(FILLED):
        guess = filled
        for axis, side in ((targets, 0), (sources, 1)):
            hat = (axis.left * axis.kept(FILLING)) @ axis.left.T
            guess = hat @ guess if side == 0 else guess @ hat
        filled = np.where(present, rest, guess)
    return filled


def _singular(features: Doubles) -> tuple[Doubles, Doubles, Doubles]:
    """Return left singular vectors `(n, k)`, singular values `(k,)` and right ones `(width, k)` of features `(n, width)`."""
    n, width = features.shape
    gram = features @ features.T if n <= width else features.T @ features
    values, vectors = linalg.eigh(gram, check_finite=False)
    kept = values > max(float(values[-1]), 0.0) * 1e-10
    size, vectors = np.sqrt(values[kept]), vectors[:, kept]
    if n <= width:
        return vectors, size, (features.T @ vectors) / size
    return (features @ vectors) / size, size, vectors
