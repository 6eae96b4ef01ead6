"""An interval for the mean utility of a row that was never labelled, from held-out rows (split conformal)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nncift.core.arrays import Doubles, Places
from nncift.core.pairs import LabelledPairs
from nncift.core.result_types import Record
from nncift.errors import UsageError

LUCK = 0.1
"""Quantile of F at which rows are taken to differ by no more than noise: an interval collapses in one run of ten at most, where
rows do not differ at all."""


@dataclass(frozen=True)
class MeanUtilityInterval:
    """Half the width of the interval around a predicted mean utility; None where the held-out rows are too few."""

    half_width: float | None
    level: float
    items: int

    def note(self) -> str:
        """Return in one sentence what the interval rests on."""
        if self.half_width is None:
            return (
                f"No {self.level:.0%} interval for new rows: {self.items} held-out rows were labelled, "
                f"and it takes {_needed(self.level)}."
            )
        return f"{self.level:.0%} interval for new rows from {self.items} held-out rows."


def interval_of_mean_utility(
    held_out: LabelledPairs, prediction: npt.ArrayLike, level: float = 0.9
) -> MeanUtilityInterval:
    """Return the half-width that holds for a new row with probability `level`, with rows as the units.

    held_out: labelled pairs whose sources were not trained on (validation and test together); prediction: `(n_pairs,)`.
    A held-out row's residual is the mean of its labels minus the mean of the predictions on the same pairs. Of m such
    residuals the ceil((m+1) level)-th smallest in size covers one more exchangeable row with at least that probability.
    A mean over the few held-out targets is noisier than one over all targets: what pairs scatter beside their row's and their
    target's own residual is taken off the residuals' variance as far as the data can tell (`_of_all_targets`), and the residuals
    shrink towards their mean in proportion. What still bends the promise: that validation rows also decided the penalty, which
    narrows it a little.
    Raises UsageError for a level outside (0, 1) and for predictions of another length.
    """
    if not 0 < level < 1:
        raise UsageError(f"level {level} given; expected a probability between 0 and 1, such as 0.9")
    guess = np.asarray(prediction, dtype=np.float64)
    if guess.shape != held_out.value.shape:
        raise UsageError(f"{guess.shape} predictions given for {len(held_out)} pairs; expected one for each pair")
    present = np.isfinite(held_out.value)
    _, row = np.unique(held_out.source[present], return_inverse=True)
    _, target = np.unique(held_out.target[present], return_inverse=True)
    residual = held_out.value[present] - guess[present]
    count = np.bincount(row)
    error, least = np.bincount(row, residual) / count, 0.0
    if len(count) > 1 and count.min(initial=2) > 1:
        error, least = _of_all_targets(residual, row, target)
    rank = _rank(len(error), level)
    if rank > len(error):
        return MeanUtilityInterval(None, level, len(error))
    half_width = float(np.sort(np.abs(error))[rank - 1])
    return MeanUtilityInterval(max(half_width, least), level, len(error))


def _of_all_targets(residual: Doubles, row: Places, target: Places) -> tuple[Doubles, float]:
    """Return the residuals of rows as they would be over many targets, and the least half-width that the data can tell.

    residual: of pairs. Analysis of variance in two ways: F compares what rows differ by with what pairs scatter by. Rows are
    taken to differ by as much as F allows at its lower `LUCK` quantile, so that residuals shrink away only where rows clearly do
    not differ. The mean stays, for it may be a bias on new rows, and its own error is the least half-width.
    """
    # Its import takes a third of a second, which whoever only reads a finished run need not wait for.
    from scipy import special

    count = np.bincount(row)
    error = np.bincount(row, residual) / count
    mean, items = float(error.mean()), len(count)
    spread = float(((error - mean) ** 2).sum()) / (items - 1)
    least = abs(mean) + float(special.stdtrit(items - 1, 0.95)) * math.sqrt(spread / items)
    within = _beside_both(residual, row, target)
    free = len(residual) - items - len(np.unique(target)) + 1
    if free < 1 or spread <= 0:
        return error, least
    noise = float((within**2).sum()) / free / float(count.mean())
    allowed = spread / max(noise, 1e-300) / float(special.fdtri(items - 1, free, LUCK))
    return mean + (error - mean) * math.sqrt(max(0.0, 1.0 - 1.0 / allowed)), least


def _beside_both(residual: Doubles, row: Places, target: Places) -> Doubles:
    """Return what is left of residuals `(n_pairs,)` without the means of rows and of targets, taken off in turns."""
    left = residual - residual.mean()
    for _ in range(20):
        for axis in (row, target):
            left = left - (np.bincount(axis, left) / np.bincount(axis))[axis]
    return np.asarray(left, np.float64)


@dataclass(frozen=True)
class PairInterval(Record):
    """Half the width of the interval around the prediction of a pair of unseen items, and how often it held.

    coverage: share of the test pairs inside the interval that the validation pairs alone give; None where either is missing.
    """

    half_width: float | None
    level: float
    coverage: float | None
    items: int


def interval_of_pairs(*blocks: tuple[LabelledPairs, npt.ArrayLike], level: float = 0.9) -> PairInterval:
    """Return the half-width that holds for a pair of new items with probability `level` (split conformal).

    blocks: labelled pairs of held-out items with their predictions `(n_pairs,)`; the last is the test block. Pairs that share an
    item are not independent, so the rank is that of the smaller number of items, not of pairs.
    """
    errors = [np.abs(pairs.value.astype(np.float64) - np.asarray(guess)) for pairs, guess in blocks]
    items = [min(len(np.unique(pairs.target)), len(np.unique(pairs.source))) for pairs, _ in blocks]
    before = _quantile(np.concatenate(errors[:-1]), sum(items[:-1]), level) if len(errors) > 1 else None
    coverage = None if before is None or not len(errors[-1]) else float(np.mean(errors[-1] <= before))
    return PairInterval(_quantile(np.concatenate(errors), sum(items), level), level, coverage, sum(items))


def _quantile(errors: Doubles, items: int, level: float) -> float | None:
    share = _rank(items, level) / items if items else 2.0
    return float(np.quantile(errors, share, method="higher")) if share <= 1 and len(errors) else None


def _rank(items: int, level: float) -> int:
    # The subtraction keeps a product that is a whole number in exact arithmetic from being rounded up by one.
    return math.ceil((items + 1) * level - 1e-9)


def _needed(level: float) -> int:
    """Return the smallest number of rows for which the rank exists: m >= level / (1 - level)."""
    return math.ceil(level / (1 - level) - 1e-9)
