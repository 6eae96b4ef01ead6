"""Bilinear networks: a low-rank product of both items, an additive part for each, and a path from their similarity.

`f(t, s) = u_t . v_s + sum_v p_v(cos_v(t, s))`. u and v are linear in the items' views, and hold the biases of both items too
(docs/method.md, section 2). For `towers` every p_v is a straight line, so that a prediction is one inner product of two
projections, and nearest-neighbour search works on them. For `product` it is a polynomial of the cosine, which can single out
near neighbours. Without labels that say otherwise, what is left is similarity, the free baseline.

Of a row with labels of its own more is known than its vector says: what a regression leaves of its labels is kept as `rest`, and
meets a linear map of the rows on the other axis (`student.block_ridge`). Its vector tells which row it is (`student.row_keys`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from nncift.core.arrays import Codes, Floats
from nncift.core.memory import rows_within
from nncift.errors import DataError
from nncift.models.views import Views, unit
from nncift.student.networks import FittedStudent, TrainingData, Weights
from nncift.student.networks.shapes import agree
from nncift.student.row_keys import KEY, rest_of
from nncift.student.view_cosines import POWERS, add_polynomial, powers_of

SHAPES = {
    "target_weight": ("target_dim", "rank"),
    "target_bias": ("rank",),
    "source_weight": ("source_dim", "rank"),
    "source_bias": ("rank",),
}
REST = {
    "keys": ("rows", "key"),
    "rest": ("rows", "rest_rank"),
    "rest_weight": ("other_dim", "rest_rank"),
    "rest_bias": ("rest_rank",),
}
"""What is kept of labelled rows of an axis, `target_` or `source_`; the map is of the rows on the other one."""

AT_ONCE = 1 << 21
"""Pairs of a block that are computed at once."""

GATHERED = 1 << 15
"""Pairs whose projections are gathered at once."""


class Bilinear:
    """What both share. powers: how many powers of a cosine there are."""

    powers: ClassVar[int]
    recipes: ClassVar[tuple[str, ...]] = ("default",)

    def __init__(self, weights: Weights, mean: float, scale: float, views: Views | None) -> None:
        if views is None:
            raise DataError("a bilinear student lacks the account of what its vectors consist of (views)")
        self._views, self._weights = views, weights
        self._scale, self._mean = np.float32(scale), np.float32(mean)
        self._alike = tuple(name for name in views.similar if f"{name}_powers" in weights)
        shapes = dict(SHAPES)
        shapes |= {f"{name}_powers": ("powers",) for name in self._alike}
        centred = [name for name in views.similar if name in self._alike or f"{name}_centre" in weights]
        shapes |= {f"{name}_centre": (name,) for name in centred}
        sizes = agree(weights, shapes)
        wrong = [name for name in centred if sizes[name] != _width(views, name)]
        wrong += ["target_dim"] if sizes["target_dim"] not in (0, views.dim) else []
        if wrong or sizes["source_dim"] != views.dim or sizes.get("powers", self.powers) != self.powers:
            raise DataError(f"a student's weights do not fit its views {views.to_json()}: {sizes}")
        self.rank = sizes["rank"] + sum(self._rest_rank(axis) for axis in ("target", "source"))

    def _rest_rank(self, axis: str) -> int:
        """Return how many numbers are kept of labelled rows of an axis. Raises DataError where its weights do not fit."""
        names = {name: f"{axis}_{name}" for name in REST}
        if not any(name in self._weights for name in names.values()):
            return 0
        sizes = agree(self._weights, {names[name]: axes for name, axes in REST.items()})
        if sizes["other_dim"] != self._views.dim or sizes["key"] != KEY:
            raise DataError(f"a student's rows of its own do not fit its views {self._views.to_json()}: {sizes}")
        return sizes["rest_rank"]

    @classmethod
    def learn(
        cls, training_data: TrainingData, *, recipe: str, seed: int, advance: Callable[[int], None]
    ) -> FittedStudent:
        """Solve the ridge regression of `student.ridge`; the seed changes nothing."""
        from nncift.student.ridge import solve

        return solve(training_data, powers=cls.powers, advance=advance)

    @classmethod
    def refit(
        cls, training_data: TrainingData, *, courses: Sequence[Mapping[str, Any]], advance: Callable[[int], None]
    ) -> FittedStudent | None:
        """Solve the ridge regression with the penalty and the start that earlier fits agree on.

        A block of labels needs none of them; other pairs after fits on a block cannot be fitted without validation pairs.
        """
        from nncift.student.block_ridge import Labels
        from nncift.student.ridge import Choices, solve

        choices = Choices.agreed(courses)
        if choices is None and (not training_data.targets.shape[1] or Labels.of(training_data.train.present()) is None):
            return None
        return solve(training_data, powers=cls.powers, choices=choices, advance=advance)

    def with_line(self, slopes: Weights, shift: float) -> Self | None:
        """Return the sum of this network and a similarity, straight lines of the cosines plus a shift, as one network.

        slopes: weights of towers that hold nothing else. None where this network does not have those cosines.
        """
        weights = dict(self._weights)
        for name in (name.removesuffix("_powers") for name in slopes if name.endswith("_powers")):
            centre = f"{name}_centre"
            same = name in self._alike and centre in slopes and np.array_equal(weights[centre], slopes[centre])
            if not same:
                return None
            powers = weights[f"{name}_powers"].copy()
            powers[0] += slopes[f"{name}_powers"][0] / self._scale
            weights[f"{name}_powers"] = powers
        return type(self)(weights, float(self._mean) + shift, float(self._scale), self._views)

    @property
    def width(self) -> int:
        """Numbers per projection: the rank, then the views whose cosines count."""
        return self.rank + sum(_width(self._views, name) for name in self._alike)

    def project_targets(self, vectors: Floats) -> Floats:
        """Return `(n_targets, width)`; a pointwise teacher's target has vectors of width 0."""
        if not vectors.shape[1]:
            return np.repeat(self._weights["target_bias"][None, :], len(vectors), axis=0)
        return self._projected("target", vectors)

    def project_sources(self, vectors: Floats) -> Floats:
        """Return `(n_sources, width)`."""
        return self._projected("source", vectors)

    def _projected(self, axis: str, vectors: Floats) -> Floats:
        parts, weights = self._units(vectors), self._weights
        towers = [parts @ weights[f"{axis}_weight"] + weights[f"{axis}_bias"]]
        for own in ("target", "source"):
            if f"{own}_rest" not in weights:
                continue
            if own == axis:
                towers.append(rest_of(weights[f"{own}_keys"], weights[f"{own}_rest"], parts, self._views))
            else:
                towers.append(parts @ weights[f"{own}_rest_weight"] + weights[f"{own}_rest_bias"])
        return self._joined(towers, parts, fold=axis == "target")

    def block(self, targets: Floats, sources: Floats) -> Floats:
        """Return `(n_targets, n_sources)` predictions, in Fortran order."""
        out = np.empty((len(sources), len(targets)), np.float32)
        # A few rows at a time: what is added to them is then still in the cache, and no second matrix is held.
        step = rows_within(AT_ONCE, len(targets))
        inner, curves = targets[:, : self._inner] * self._scale, self._curves()
        room = np.empty((min(step, len(sources)) if curves else 0, len(targets)), np.float32)
        for start in range(0, len(sources), step):
            here, into = sources[start : start + step], out[start : start + step]
            np.matmul(here[:, : self._inner], inner.T, out=into)
            into += self._mean
            for place, weights in curves:
                cosine = np.matmul(here[:, place], targets[:, place].T, out=room[: len(here)])
                add_polynomial(into, cosine, weights * self._scale)
        return out.T

    def pairs(self, targets: Floats, sources: Floats, target: Codes, source: Codes) -> Floats:
        """Return `(n_pairs,)` predictions."""
        found = np.empty(len(target), np.float32)
        for start in range(0, len(target), GATHERED):
            here = slice(start, start + GATHERED)
            t, s = targets[target[here]], sources[source[here]]
            total = np.einsum("nd,nd->n", t[:, : self._inner], s[:, : self._inner])
            for place, weights in self._curves():
                total += powers_of(np.einsum("nd,nd->n", t[:, place], s[:, place]), len(weights)) @ weights
            found[here] = total
        return found * self._scale + self._mean

    @property
    def _inner(self) -> int:
        """Leading numbers of a projection that make a plain inner product."""
        return self.rank

    def _curves(self) -> list[tuple[slice, Floats]]:
        """Return where each view lies in a projection, with the weights of its cosine's powers."""
        found, start = [], self.rank
        for name in self._alike:
            stop = start + _width(self._views, name)
            found.append((slice(start, stop), self._weights[f"{name}_powers"]))
            start = stop
        return found

    def _units(self, vectors: Floats) -> Floats:
        """Return the vectors with every view that has a cosine centred and at length 1."""
        parts = np.array(vectors, np.float32)
        for name in self._views.similar:
            place = self._views.place(name)
            parts[:, place] = unit(parts[:, place], self._weights.get(f"{name}_centre"))
        return parts

    def _joined(self, towers: Sequence[Floats], parts: Floats, *, fold: bool) -> Floats:
        alike = [parts[:, self._views.place(name)] for name in self._alike]
        return np.asarray(np.concatenate([*towers, *alike], axis=1), np.float32)


class Towers(Bilinear):
    """Two towers: a prediction is one inner product of two projections, scaled and shifted into label units."""

    powers: ClassVar[int] = 1

    @property
    def _inner(self) -> int:
        return self.width

    def _curves(self) -> list[tuple[slice, Floats]]:
        return []

    def _joined(self, towers: Sequence[Floats], parts: Floats, *, fold: bool) -> Floats:
        # The straight line's slope goes into the targets.
        alike = [
            parts[:, self._views.place(name)] * (self._weights[f"{name}_powers"][0] if fold else np.float32(1))
            for name in self._alike
        ]
        return np.asarray(np.concatenate([*towers, *alike], axis=1), np.float32)


class Product(Bilinear):
    """Towers and polynomials of the cosines."""

    powers: ClassVar[int] = len(POWERS)


def _width(views: Views, name: str) -> int:
    place = views.place(name)
    return int(place.stop - place.start)
