"""Training of bilinear networks: one ridge regression, solved in closed form (docs/method.md, section 2).

A block of labels, every target with every source, has a regression of its own (`block_ridge`); this one takes any pairs. Items
are described by principal components of their views, found over all items at hand, labelled or not. The features of a pair are
its target's components, its source's, all products of the two, and powers of the cosines. The penalty is chosen on pairs of
validation items. What it leaves of a target's own labels is learned for that target alone (`own_rows`). Cost: linear in
pairs, and no epoch, learning rate or seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg

from nncift.core.arrays import Doubles, Floats
from nncift.core.pairs import LabelledPairs
from nncift.models.views import Views
from nncift.student.block_ridge import Labels, solve_block
from nncift.student.free_similarity import ViewCosines, free_lines
from nncift.student.item_components import Items
from nncift.student.item_components import describe as describe
from nncift.student.networks import FittedStudent, TrainingData, scaling
from nncift.student.own_rows import own_weights
from nncift.student.view_cosines import powers_of

CURVES = 3.0
"""Size of a cosine's powers beside a product of components, whose squares add up to about 1: they are penalised less."""

PENALTIES = tuple(float(x) for x in np.logspace(-3, 3, 13))
"""Penalties that validation chooses from, for 10,000 pairs; they grow with the pairs."""

UNVALIDATED = 10.0
CHUNK = 1 << 13


@dataclass(frozen=True)
class Choices:
    """What cross-validation decides: the penalty, for 10,000 pairs, and the free similarity that the regression starts from."""

    penalty: float
    start: str

    @classmethod
    def agreed(cls, courses: Sequence[Mapping[str, Any]]) -> Choices | None:
        """Return the penalty with the smallest sum of validation errors over several fits, and their most frequent start.

        None where the fits chose among other penalties, as a regression on a block does.
        """
        if any(tuple(course["penalties"]) != PENALTIES or not course["validation_mse"] for course in courses):
            return None
        errors = np.sum([course["validation_mse"] for course in courses], axis=0)
        starts = [str(course["start"]) for course in courses]
        # The strongest of equals, which claims least; among starts that are as frequent, the first by name.
        best = len(PENALTIES) - 1 - int(np.argmin(errors[::-1]))
        return cls(PENALTIES[best], max(sorted(set(starts)), key=starts.count))


def solve(
    training_data: TrainingData,
    *,
    powers: int,
    choices: Choices | None = None,
    advance: Callable[[int], None] = lambda step: None,
) -> FittedStudent:
    """Fit a bilinear network on a block of labels, or on any pairs. choices: see `solve_pairs`; a block needs none.

    Raises DataError where no training pair has a label.
    """
    block = (
        Labels.of(training_data.train.present())
        if training_data.targets.shape[1] and len(training_data.train)
        else None
    )
    if block is None:
        return solve_pairs(training_data, powers=powers, choices=choices, advance=advance)
    advance(1)
    return solve_block(training_data, block, powers)


def solve_pairs(
    training_data: TrainingData,
    *,
    powers: int,
    choices: Choices | None = None,
    advance: Callable[[int], None] = lambda step: None,
) -> FittedStudent:
    """Fit a bilinear network on pairs. choices: penalty and start; None = those that do best on the validation pairs.

    Raises DataError where no training pair has a label.
    """
    train, validation = training_data.known, training_data.validation.present()
    items = describe(training_data, training_data.used)
    features = _Features(items, training_data.views, powers, pointwise=not training_data.targets.shape[1])
    mean, scale = scaling(train.value)
    start = _Start.of(training_data, train, validation, mean, None if choices is None else choices.start)
    solved = _Ridge.of(features, train, (train.value - start.predict(train)) / scale, advance)
    held = (validation.value - start.predict(validation)) / scale
    fixed = None if choices is None else choices.penalty
    weights, offset, penalty, errors = solved.best(features, validation, held, fixed)
    own = _own(features, train, (train.value - start.predict(train)) / scale, weights, offset)
    made = own | features.unfolded(weights, offset + (start.intercept - mean) / scale)
    for name, slope in start.slopes.items():
        made[f"{name}_powers"][0] += slope / scale
    course = {
        "start": start.name,
        "penalty": penalty,
        "penalties": list(PENALTIES),
        "validation_mse": [round(error * scale**2, 8) for error in errors],
    }
    return FittedStudent(made, mean, scale, course)


def _own(
    features: _Features, train: LabelledPairs, label: Doubles, weights: Doubles, offset: float
) -> dict[str, Floats]:
    """Return what is kept of labelled targets: see `own_rows`. A pointwise teacher has none."""
    if features.pointwise:
        return {}
    rest = np.array(label, np.float64) - offset
    for part, chunk in features.chunks(train):
        rest[part] -= chunk @ weights
    return own_weights(features.items, train, rest, features.views)


@dataclass(frozen=True)
class _Start:
    """What the regression starts from, and stays at under the strongest penalty: the free similarity that predicts best.

    slopes: by view, of the cosine. cosine: of pairs in a view.
    """

    name: str
    intercept: float
    slopes: Mapping[str, float]
    cosine: Callable[[str, LabelledPairs], Doubles]

    @classmethod
    def of(
        cls,
        training_data: TrainingData,
        train: LabelledPairs,
        validation: LabelledPairs,
        mean: float,
        named: str | None = None,
    ) -> _Start:
        """Take the free student with the smallest error on validation pairs, the training mean where none beats it.

        named: the one to take instead of the best; the training mean where it does not rise with the labels.
        """
        judged = validation if len(validation) else train
        alike = ViewCosines.of(training_data)
        best = cls("mean", mean, {}, alike.cosine)
        error = float(np.mean((judged.value - best.predict(judged)) ** 2))
        for name, (intercept, slopes) in free_lines(training_data, alike).items():
            other = cls(name, intercept, slopes, alike.cosine)
            missed = float(np.mean((judged.value - other.predict(judged)) ** 2))
            if (missed < error) if named is None else (name == named):
                best, error = other, missed
        return best

    def predict(self, pairs: LabelledPairs) -> Doubles:
        """Return `(n_pairs,)` values in label units."""
        found = np.full(len(pairs), self.intercept)
        for name, slope in self.slopes.items():
            found += slope * self.cosine(name, pairs)
        return found


class _Features:
    """Features of pairs, and the way back from their weights to a network's."""

    def __init__(self, items: Items, views: Views, powers: int, *, pointwise: bool) -> None:
        self.items, self.views, self.powers, self.pointwise = items, views, powers, pointwise
        self._alike = tuple(items.source_alike)
        t, s = items.target.shape[1], items.source.shape[1]
        self._sizes = (t, s, t * s, powers * len(self._alike))
        self.count = sum(self._sizes)

    def chunks(self, pairs: LabelledPairs) -> Iterator[tuple[slice, Floats]]:
        """Yield chunks of pairs and their features, `(n, count)`."""
        for start in range(0, len(pairs), CHUNK):
            part = slice(start, min(start + CHUNK, len(pairs)))
            yield part, self._of(pairs.target[part], pairs.source[part])

    def _of(self, target: npt.NDArray[np.int32], source: npt.NDArray[np.int32]) -> Floats:
        target_at, source_at = self.items.places(target, source)
        t, s = self.items.target[target_at], self.items.source[source_at]
        parts = [t, s, (t[:, :, None] * s[:, None, :]).reshape(len(t), -1)]
        for name in self._alike:
            mine, theirs = self.items.target_alike[name][target_at], self.items.source_alike[name][source_at]
            cosine = np.einsum("nd,nd->n", mine, theirs)
            parts.append(np.float32(CURVES) * powers_of(cosine, self.powers))
        return np.concatenate(parts, axis=1, dtype=np.float32)

    def unfolded(self, weights: Doubles, offset: float) -> dict[str, Floats]:
        """Return a bilinear network's weights: products become the inner product of two projections, biases two more numbers."""
        items, edges = self.items, np.cumsum(self._sizes)[:-1]
        own_t, own_s, product, curves = np.split(weights, edges)
        rank = items.target.shape[1]
        matrix = product.reshape(rank, items.source.shape[1])
        dim = len(items.weight)
        target_dim = 0 if self.pointwise else dim
        into_t = np.zeros((target_dim, rank + 2))
        bias_t, bias_s = np.zeros(rank + 2), np.zeros(rank + 2)
        into_s = np.zeros((dim, rank + 2))
        if not self.pointwise:
            into_t[:, :rank] = items.weight
            bias_t[:rank] = items.bias
            into_t[:, rank] = items.weight @ own_t
            bias_t[rank] = items.bias @ own_t
        into_s[:, :rank] = items.weight @ matrix.T
        bias_s[:rank] = matrix @ items.bias
        # The target's own part meets a 1, and a 1 meets the source's own part with the constant.
        bias_s[rank] = bias_t[rank + 1] = 1.0
        into_s[:, rank + 1] = items.weight @ own_s
        bias_s[rank + 1] = items.bias @ own_s + offset
        found = {"target_weight": into_t, "target_bias": bias_t, "source_weight": into_s, "source_bias": bias_s}
        for at, name in enumerate(self._alike):
            found[f"{name}_powers"] = CURVES * curves[at * self.powers : (at + 1) * self.powers]
            found[f"{name}_centre"] = items.centres[name]
        return {name: np.asarray(array, np.float32) for name, array in found.items()}


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues `(n,)` and axes `(n, n)` of a symmetric system, found once for all penalties."""

    values: Doubles
    axes: Doubles

    @classmethod
    def of(cls, system: Doubles) -> Spectrum:
        """Decompose a system."""
        return cls(*linalg.eigh(system, check_finite=False, driver="evd"))

    def solve(self, right: Doubles, penalty: float) -> Doubles:
        """Return the solution of (system + penalty * identity) x = right."""
        # Sums in float32 leave some eigenvalues a little below 0, where Cholesky ends.
        return np.asarray(self.axes @ ((self.axes.T @ right) / (np.maximum(self.values, 0.0) + penalty)))


@dataclass(frozen=True)
class _Ridge:
    """The regression's system, small side: features times features, or pairs times pairs where those are fewer."""

    system: Doubles
    right: Doubles
    mean: Doubles
    features: Floats | None
    pairs: int

    @classmethod
    def of(cls, features: _Features, train: LabelledPairs, label: Doubles, advance: Callable[[int], None]) -> _Ridge:
        """Accumulate the system chunk by chunk."""
        if features.count > len(train):
            every = np.concatenate([chunk for _, chunk in features.chunks(train)])
            mean = every.mean(axis=0, dtype=np.float64)
            every -= mean.astype(np.float32)
            advance(1)
            return cls((every @ every.T).astype(np.float64), label, mean, every, len(train))
        gram, total = np.zeros((features.count, features.count)), np.zeros(features.count)
        right = np.zeros(features.count)
        for part, chunk in features.chunks(train):
            gram += chunk.T @ chunk
            total += chunk.sum(axis=0, dtype=np.float64)
            right += chunk.T.astype(np.float64) @ label[part]
        advance(1)
        mean = total / len(train)
        right -= mean * label.sum()
        return cls(gram - len(train) * np.outer(mean, mean), right, mean, None, len(train))

    def best(
        self, features: _Features, validation: LabelledPairs, held: Doubles, fixed: float | None = None
    ) -> tuple[Doubles, float, float, list[float]]:
        """Return weights and offset under the penalty with the smallest validation error, that penalty, and all errors.

        fixed: the penalty to take whatever the validation pairs say.
        """
        if fixed is not None:
            weights = self._weights(fixed)
            return weights, float(-self.mean @ weights), fixed, []
        seen = [chunk for _, chunk in features.chunks(validation)]
        every = np.concatenate(seen).astype(np.float64) - self.mean if seen else None
        best, errors = (np.inf, UNVALIDATED, np.zeros(features.count)), []
        # The strongest first: where several do equally well, the one that claims least is kept.
        for penalty in reversed(PENALTIES if every is not None else (UNVALIDATED,)):
            weights = self._weights(penalty)
            error = float(np.mean((every @ weights - held) ** 2)) if every is not None else 0.0
            errors.append(error)
            if error < best[0]:
                best = error, penalty, weights
        return best[2], float(-self.mean @ best[2]), best[1], errors[::-1] if every is not None else []

    def _weights(self, penalty: float) -> Doubles:
        found = self._spectrum.solve(self.right, penalty * self.pairs / 1e4)
        return np.asarray(found if self.features is None else self.features.T @ found)

    @cached_property
    def _spectrum(self) -> Spectrum:
        return Spectrum.of(self.system)
