"""The linear algebra under the baselines: features of pairs without a matrix of all pairs times all features.

Only chunks of pairs are ever gathered, under MEMORY bytes. The additive features need not even that: the sum over
pairs of `e_t e_t'` is a sum over targets weighted by their number of pairs, and the mixed block is
`E_T' C E_S` with the sparse matrix C that counts the pairs. This is the factorisation of method.md 2 once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from nncift.core.pairs import LabelledPairs, Pairs
from nncift.errors import UsageError
from nncift.storage.vector_store import rows_of

Array = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.floating]
Integers = npt.NDArray[np.intp]

MEMORY = 64 * 2**20
"""Bytes that a chunk of gathered rows may take."""

NO_VARIANCE = 1e-12
"""A variance below this share of the squared mean is rounding, and a slope fitted to it would be noise at full size."""


@dataclass(frozen=True)
class Space:
    """The embeddings of both axes: row i of `target` belongs to `target_ids[i]`, row j of `source` to `source_ids[j]`.

    target: `(n_targets, d)`. source: `(n_sources, d)`. Either may be a memory map of any float type.
    """

    target_ids: tuple[str, ...]
    source_ids: tuple[str, ...]
    target: Matrix
    source: Matrix

    @classmethod
    def of(cls, pairs: Pairs, target: Matrix, source: Matrix) -> Space:
        """Bind embeddings to the axes of some pairs; raises UsageError where their shapes do not fit."""
        expected = (len(pairs.target_ids), len(pairs.source_ids))
        fits = target.ndim == source.ndim == 2 and (len(target), len(source)) == expected
        if not fits or target.shape[1] != source.shape[1]:
            raise UsageError(
                f"embeddings of shape {target.shape} for targets and {source.shape} for sources given; "
                f"expected ({expected[0]}, d) and ({expected[1]}, d) with the same d"
            )
        return cls(pairs.target_ids, pairs.source_ids, target, source)

    def rows(self, pairs: Pairs) -> tuple[Integers, Integers]:
        """Return the rows of the pairs' targets and sources; looked up by id where the pairs have other axes."""
        return (
            _translate(pairs.target, pairs.target_ids, self.target_ids, "target"),
            _translate(pairs.source, pairs.source_ids, self.source_ids, "source"),
        )

    def additive(self, pairs: Pairs, weights: Array) -> Array:
        """Return `[e_t ; e_s] @ weights` for weights `(2d,)` or `(2d, k)`: every item is projected once."""
        target, source = self.rows(pairs)
        width = self.target.shape[1]
        return _project(self.target, target, weights[:width]) + _project(self.source, source, weights[width:])

    def product(self, pairs: Pairs, weights: Array) -> Array:
        """Return `(e_t * e_s) @ weights` for weights `(d,)` or `(d, k)`."""

        def product(target: Array, source: Array) -> Array:
            return np.asarray((target * source) @ weights)

        return self._by_chunk(pairs, product)

    def cosine(self, pairs: Pairs) -> Array:
        """Return the cosine of the two embeddings of every pair, `(n_pairs,)`; 0 where one of them is all zeros."""

        def cosine(target: Array, source: Array) -> Array:
            size = np.linalg.norm(target, axis=1) * np.linalg.norm(source, axis=1)
            dot = np.einsum("nd,nd->n", target, source)
            return np.asarray(np.divide(dot, size, out=np.zeros_like(dot), where=size > 0))

        return self._by_chunk(pairs, cosine)

    def gathered(self, pairs: Pairs) -> Iterator[tuple[slice, Array, Array]]:
        """Yield chunks of pairs: their place and the float64 embeddings of their targets and sources."""
        target, source = self.rows(pairs)
        for place in _chunks(len(pairs), 3 * self.target.shape[1]):
            yield (
                place,
                rows_of(self.target, target[place]).astype(np.float64),
                rows_of(self.source, source[place]).astype(np.float64),
            )

    def _by_chunk(self, pairs: Pairs, function: Callable[[Array, Array], Array]) -> Array:
        parts = [function(target, source) for _, target, source in self.gathered(pairs)]
        return np.concatenate(parts) if parts else np.empty(0)


@dataclass(frozen=True)
class Moments:
    """What ridge regression needs to know of the training pairs, all of it a mean over pairs.

    mean: `(p,)` of the features. covariance: `(p, p)`. with_label: `(p,)` covariance with the labels.
    """

    mean: Array
    covariance: Array
    with_label: Array
    label_mean: float

    @classmethod
    def of_sums(cls, pairs: int, features: Array, gram: Array, with_label: Array, label_mean: float) -> Moments:
        """Centre raw sums over pairs; `with_label` was summed with labels that already have mean 0."""
        mean = features / pairs
        return cls(mean, gram / pairs - np.outer(mean, mean), with_label / pairs, label_mean)


def additive_moments(space: Space, train: LabelledPairs) -> Moments:
    """Return the moments of `[e_t ; e_s]`, p = 2d, from sums over items instead of pairs."""
    target, source = space.rows(train)
    targets, target = np.unique(target, return_inverse=True)
    sources, source = np.unique(source, return_inverse=True)
    label, label_mean = _centred(train)
    counts = sparse.csr_array((np.ones(len(train)), (target, source)), shape=(len(targets), len(sources)))
    width = space.target.shape[1]
    features, with_label = np.zeros(2 * width), np.zeros(2 * width)
    gram = np.zeros((2 * width, 2 * width))
    per_target, label_of_target = np.bincount(target), np.bincount(target, label)
    per_source, label_of_source = np.bincount(source), np.bincount(source, label)
    for place in _chunks(len(sources), 3 * width):
        rows = rows_of(space.source, sources[place]).astype(np.float64)
        features[width:] += per_source[place] @ rows
        with_label[width:] += label_of_source[place] @ rows
        rows *= np.sqrt(per_source[place, None])
        gram[width:, width:] += rows.T @ rows
    for place in _chunks(len(targets), 3 * width):
        rows = rows_of(space.target, targets[place]).astype(np.float64)
        features[:width] += per_target[place] @ rows
        with_label[:width] += label_of_target[place] @ rows
        gram[:width, width:] += rows.T @ _sum_of_sources(space, counts[place], sources)
        rows *= np.sqrt(per_target[place, None])
        gram[:width, :width] += rows.T @ rows
    gram[width:, :width] = gram[:width, width:].T
    return Moments.of_sums(len(train), features, gram, with_label, label_mean)


def product_moments(space: Space, train: LabelledPairs) -> Moments:
    """Return the moments of `e_t * e_s`, p = d, chunk by chunk."""
    width = space.target.shape[1]
    label, label_mean = _centred(train)
    features, with_label, gram = np.zeros(width), np.zeros(width), np.zeros((width, width))
    for place, target, source in space.gathered(train):
        product = target * source
        features += product.sum(axis=0)
        with_label += label[place] @ product
        gram += product.T @ product
    return Moments.of_sums(len(train), features, gram, with_label, label_mean)


def _sum_of_sources(space: Space, counts: sparse.csr_array, sources: Integers) -> Array:
    """Return for each target of a chunk the sum of the embeddings of the sources it was paired with."""
    met = np.unique(counts.indices)
    counts = counts[:, met]
    total = np.zeros((counts.shape[0], space.source.shape[1]))
    for place in _chunks(len(met), 3 * space.source.shape[1]):
        total += counts[:, place] @ rows_of(space.source, sources[met[place]]).astype(np.float64)
    return total


def affine_fit(x: Array, y: Array) -> tuple[float, float]:
    """Return slope and intercept of the least-squares line; slope 0 where x does not vary."""
    centred = x - x.mean()
    spread = float(centred @ centred)
    slope = float(centred @ y) / spread if spread > NO_VARIANCE * float(x @ x) else 0.0
    return slope, float(y.mean() - slope * x.mean())


def _centred(train: LabelledPairs) -> tuple[Array, float]:
    label = train.value.astype(np.float64)
    return label - label.mean(), float(label.mean())


def _chunks(rows: int, width: int) -> Iterator[slice]:
    """Yield slices of at most as many rows of `width` float64 as MEMORY holds."""
    size = max(1, MEMORY // (8 * width))
    for start in range(0, rows, size):
        yield slice(start, min(rows, start + size))


def _project(matrix: Matrix, row: Integers, weights: Array) -> Array:
    """Return `matrix[row] @ weights`, computing every row that occurs once."""
    rows, place = np.unique(row, return_inverse=True)
    projected = np.empty((len(rows), *weights.shape[1:]))
    for chunk in _chunks(len(rows), matrix.shape[1]):
        projected[chunk] = rows_of(matrix, rows[chunk]).astype(np.float64) @ weights
    return projected[place]


def _translate(code: npt.NDArray[np.int32], ids: tuple[str, ...], known: tuple[str, ...], axis: str) -> Integers:
    """Return the codes of another axis for the same ids; raises UsageError for an id that it does not have."""
    if ids == known:
        return code.astype(np.intp)
    place = {item: row for row, item in enumerate(known)}
    used, inverse = np.unique(code, return_inverse=True)
    missing = [ids[one] for one in used if ids[one] not in place]
    if missing:
        raise UsageError(
            f"{len(missing)} {axis} ids of these pairs, such as {missing[0]!r}, were not on the axis that the baseline "
            "was fitted with; fit it with the embeddings of all items"
        )
    return np.array([place[ids[one]] for one in used], dtype=np.intp)[inverse]
