"""Similarities behind the objectives, and the values of given subsets (method.md 4)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nncift.core.arrays import Doubles, Longs
from nncift.core.pairs import UtilityMatrix
from nncift.core.texts import some
from nncift.errors import DataError, UsageError
from nncift.selection import kernels

_LEVELS = 30
"""Similarities are stored in at most 2^30 steps: finer than float32 near the top of the range, and exact in sums."""

_SHOWN = 5


@dataclass(frozen=True)
class Scale:
    """The one constant that makes utilities non-negative, and the step in which similarities are counted.

    similarity = level * unit = utility - low, to half a step. The unit is a power of two, so that turning a value into
    a level and back loses nothing that float32 utilities of one range usually have.
    """

    low: float
    unit: float

    @classmethod
    def of(cls, *matrices: UtilityMatrix, references: Sequence[Reference] = ()) -> Scale:
        """Return the scale that all matrices of an objective share; raises DataError where a utility is infinite."""
        extents = [_extent(matrix) for matrix in matrices]
        lows = [*(e[0] for e in extents), *(np.array([known.low]) for known in references)]
        highs = [*(e[1] for e in extents), *(known.best[~np.isnan(known.best)] for known in references)]
        return cls._spanning(np.concatenate(lows), np.concatenate(highs))

    @classmethod
    def _spanning(cls, lows: Doubles, highs: Doubles) -> Scale:
        """Return the scale from the lowest of `lows` to the highest of `highs`; inf and -inf mean no utility at all."""
        return cls.over(float(lows.min(initial=math.inf)), float(highs.max(initial=-math.inf)))

    @classmethod
    def over(cls, low: float, high: float) -> Scale:
        """Return the scale of utilities from `low` to `high`; inf and -inf where there is none."""
        if low >= high:
            return cls(low if low == high else 0.0, 1.0)
        return cls(low, math.ldexp(1.0, math.frexp(high - low)[1] - _LEVELS))

    def levels(self, utilities: Doubles) -> npt.NDArray[np.int64]:
        """Return the levels of utilities that are not NaN, rounded as in the similarity matrix."""
        return np.floor((utilities - self.low) / self.unit + 0.5).astype(np.int64)

    def utility(self, level: int | np.integer) -> float:
        """Return the utility of a level."""
        return self.low + int(level) * self.unit


@dataclass(frozen=True, eq=False)
class Reference:
    """What a second set of sources does for each target of an objective (`max_q`, `max_e` in method.md 4).

    best: `(n_targets,)` float64, the highest utility of any of its rows for the target, NaN where none is known.
    low: the lowest utility of its rows for any target, inf where none is known; it counts for the shared constant.
    """

    target_ids: tuple[str, ...]
    best: Doubles
    low: float

    def __post_init__(self) -> None:
        bad = np.flatnonzero(np.isinf(self.best))
        if len(bad) or self.low == -math.inf:
            which = some([self.target_ids[t] for t in bad]) or "its lowest"
            raise DataError(f"Infinite utilities of the second set cannot be selected on: {which}.")

    @classmethod
    def of(cls, matrix: UtilityMatrix) -> Reference:
        """Return what the sources of a matrix do for its targets; raises DataError where a utility is infinite."""
        check_infinite(matrix)
        values = np.asarray(matrix.values)
        best = np.fmax.reduce(values, axis=1, initial=np.nan).astype(np.float64)
        low = float(np.fmin.reduce(values, axis=None, initial=np.nan))
        return cls(matrix.target_ids, best, math.inf if math.isnan(low) else low)

    def levels(self, target_ids: Sequence[str], scale: Scale) -> kernels.Levels:
        """Return the levels of `best` in the order of the given targets; 0 where none is known.

        Raises UsageError where the targets are other ones.
        """
        if set(target_ids) != set(self.target_ids):
            raise UsageError("the second set was compared with other targets than those of the matrix")
        best = self.best[positions(self.target_ids, target_ids)]
        known = ~np.isnan(best)
        levels = np.zeros(len(best), np.int32)
        levels[known] = scale.levels(best[known])
        return levels


@dataclass(frozen=True, eq=False)
class Similarity:
    """Non-negative similarities: `levels` is `(n_targets, n_sources)` int32 in Fortran order, in units of `scale`.

    Both axes are in the order of their ids, so that ties by position are ties by id and the order in which rows came
    changes nothing. Masked and missing pairs are level 0. known: `(n_sources,)` how many utilities a source has.
    """

    target_ids: tuple[str, ...]
    source_ids: tuple[str, ...]
    levels: kernels.Levels
    scale: Scale
    known: Longs


def similarity(matrix: UtilityMatrix, scale: Scale | None = None, *, reuse: bool = False) -> Similarity:
    """Return utility minus one constant, the lowest finite utility, as levels; the only copy that selection makes.

    NaN (masked or missing) gives no coverage, also on the diagonal (method.md 4). scale: given, by `Scale.of` over all of
    them, where several matrices share their constant. reuse: write the levels into the matrix's own memory where its layout
    allows, so that there is no copy at all; the matrix is gone then.

    Raises DataError, naming the ids, for infinite utilities and for ids that occur twice.
    """
    for axis, ids in (("target", matrix.target_ids), ("source", matrix.source_ids)):
        if len(set(ids)) < len(ids):
            twice = sorted({a for a, b in zip(sorted(ids), sorted(ids)[1:], strict=False) if a == b})
            raise DataError(f"Ids must be unique to select by them; {axis} ids that occur twice: {some(twice)}.")
    lows, highs, known = _extent(matrix)
    scale = scale or Scale._spanning(lows, highs)
    targets, sources = _order(matrix.target_ids), _order(matrix.source_ids)
    columns, stay = matrix.values.T, np.arange(len(sources))
    reuse = reuse and columns.flags.c_contiguous and columns.dtype == np.float32
    out = columns.view(np.int32) if reuse else np.empty((len(sources), len(targets)), np.int32)
    across = targets[:0] if np.array_equal(targets, np.arange(len(targets))) else targets
    down = stay if reuse else sources
    kernels.in_threads(
        lambda a, b: kernels.to_levels(columns, a, b, down, across, (scale.low, 1 / scale.unit), out), len(sources)
    )
    if reuse and not np.array_equal(sources, stay):
        kernels.reorder(out, sources)
    return Similarity(
        tuple(matrix.target_ids[i] for i in targets),
        tuple(matrix.source_ids[i] for i in sources),
        out.T,
        scale,
        known[sources],
    )


def by_id(matrix: UtilityMatrix, score: Doubles | None) -> Doubles | None:
    """Return scores of the matrix's sources in the order of their ids, as `similarity` has them; None for none."""
    return None if score is None else np.asarray(score, np.float64)[_order(matrix.source_ids)]


def facility_location_value(matrix: UtilityMatrix, ids: Sequence[str]) -> float:
    """Return sum_t max_{s in ids} sim[t, s] with the constant of `similarity` (method.md 4, `fl`).

    The same number as the value of a Subset with these ids. Raises UsageError for ids that the matrix does not have,
    DataError for infinite utilities.
    """
    scale = Scale.of(matrix)
    best = np.full(len(matrix.target_ids), scale.low)
    for column in positions(matrix.source_ids, ids):
        np.fmax(best, matrix.values[:, column], out=best)
    return int(scale.levels(best).sum()) * scale.unit


def check_infinite(matrix: UtilityMatrix) -> None:
    """Raise DataError with the ids where a utility is infinite."""
    _extent(matrix)


def _extent(matrix: UtilityMatrix) -> tuple[Doubles, Doubles, Longs]:
    """Return the lowest and the highest utility (inf and -inf where none) and the number of utilities per source."""
    n = len(matrix.source_ids)
    low, high, known = np.empty(n), np.empty(n), np.empty(n, np.int64)
    columns = matrix.values.T
    kernels.in_threads(lambda a, b: kernels.extent(columns, a, b, low, high, known), n)
    bad = np.flatnonzero((known > 0) & (np.isinf(low) | np.isinf(high)))
    if len(bad):
        pairs = [
            f"target {matrix.target_ids[t]} with source {matrix.source_ids[s]}"
            for s in bad[:_SHOWN]
            for t in np.flatnonzero(np.isinf(matrix.values[:, s]))[:_SHOWN]
        ]
        raise DataError(
            f"Infinite utilities cannot be selected on ({len(bad)} sources have one): {some(pairs)}. "
            "A missing value is NaN; compute these pairs again or mask them."
        )
    return low, high, known


def _order(ids: Sequence[str]) -> npt.NDArray[np.intp]:
    return np.array(sorted(range(len(ids)), key=ids.__getitem__), dtype=np.intp)


def positions(known: Sequence[str], ids: Sequence[str]) -> npt.NDArray[np.intp]:
    """Return where each of `ids` stands in `known`. Raises UsageError for ids that are not there."""
    return looked_up({item: i for i, item in enumerate(known)}, ids)


def looked_up(place: Mapping[str, int], ids: Sequence[str]) -> npt.NDArray[np.intp]:
    """Return the places of `ids`. Raises UsageError for ids that have none."""
    unknown = [item for item in ids if item not in place]
    if unknown:
        raise UsageError(f"Ids that are not on this axis of the matrix: {some(unknown)}.")
    return np.array([place[item] for item in ids], dtype=np.intp)
