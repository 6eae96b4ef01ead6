"""Metrics on labelled pairs, written with weights: a bootstrap resample is only a change of integer weights.

Every weighted metric takes weights of shape `(n_pairs,)` or `(n_pairs, n_resamples)`, where weight w means "this pair
is there w times", and returns float64 of shape `()` or `(n_resamples,)`. NaN means undefined; `number` turns it into
the None of the JSON files. Two rules hold throughout (method.md 2):

- A constant prediction has rank correlation 0, not NaN: it orders nothing, which is a result and not a gap.
- Constant labels, or fewer than three pairs, leave rank correlation undefined: there is nothing to order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nncift.core.arrays import Doubles, Places
from nncift.core.memory import check_room
from nncift.core.pairs import LabelledPairs

MIN_PAIRS = 3
"""Fewer pairs than this have no rank correlation worth the name: two pairs always score +1 or -1."""

TOP_SHARE = 0.1


def number(value: float | Doubles) -> float | None:
    """Return a plain float for JSON, or None where the value is undefined."""
    plain = float(value)
    return plain if math.isfinite(plain) else None


def mse(label: Doubles, prediction: Doubles, weights: Doubles) -> Doubles:
    """Return the weighted mean squared error; undefined where all weights are 0."""
    return _ratio(_total((label - prediction) ** 2, weights), weights.sum(axis=0))


def r2(label: Doubles, prediction: Doubles, train_mean: float, weights: Doubles) -> Doubles:
    """Return R^2 against the training mean: 1 - sum (y - p)^2 / sum (y - train_mean)^2 (method.md 2).

    The mean of the training labels is the constant that one would predict without a student; the mean of the labels
    under test is not known at that point. Undefined where every label equals the training mean.
    """
    return 1 - _ratio(_total((label - prediction) ** 2, weights), _total((label - train_mean) ** 2, weights))


def spearman(label: Doubles, prediction: Doubles, weights: Doubles) -> Doubles:
    """Return the weighted rank correlation with average ranks for ties, over all pairs."""
    if len(label) < MIN_PAIRS:
        return np.full(weights.shape[1:], np.nan)
    return rank_correlation(Ranking.of(label).centred(weights), Ranking.of(prediction).centred(weights), weights)


@dataclass(frozen=True)
class Ranking:
    """The order of some values, found once, from which the ranks under any weights follow without sorting again.

    order: `(n,)` positions that sort the values. last: `(n_runs,)` place in that order where each run of ties ends.
    """

    order: Places
    last: Places

    @classmethod
    def of(cls, values: Doubles) -> Ranking:
        """Sort values of shape `(n,)`."""
        _, run, size = np.unique(values, return_inverse=True, return_counts=True)
        return cls(np.argsort(run, kind="stable"), np.cumsum(size) - 1)

    def centred(self, weights: Doubles) -> Doubles:
        """Return average ranks minus their mean, in the shape of the weights.

        A run of ties that has weight b below it and weight w in it takes the ranks b+1 .. b+w of the replicated
        sample; their average is b + (w+1)/2, and the mean of all ranks is (total+1)/2. Sums of integers and halves
        are exact in float64, so a constant gives exactly 0.
        """
        from nncift.core.compiled import write_centred_ranks

        check_room("a compiled loop")
        columns = np.ascontiguousarray(weights.reshape(len(weights), -1), np.float64)
        ranks = np.empty_like(columns)
        write_centred_ranks(columns, self.order, self.last, ranks)
        return ranks.reshape(weights.shape)


def rank_correlation(label: Doubles, prediction: Doubles, weights: Doubles) -> Doubles:
    """Return Pearson's correlation of centred ranks that belong to these weights; all three have the same shape."""
    weighted = weights * label
    label_spread = (weighted * label).sum(axis=0)
    spread = (weights * prediction * prediction).sum(axis=0)
    together = (weighted * prediction).sum(axis=0)
    # A constant on either side makes `together` 0, and 0 / 1 is the 0 that a constant prediction is to score.
    scale = np.sqrt(label_spread * spread)
    return np.where(label_spread > 0, together / np.where(scale > 0, scale, 1), np.nan)


def spearman_by_target(pairs: LabelledPairs, prediction: Doubles) -> float | None:
    """Return the mean over targets of the rank correlation within a target.

    Counted are targets with at least three pairs whose labels are not all equal; None where there is none.
    """
    group, size = _groups(pairs)
    label, guess = _ranks_within(group, pairs.value), _ranks_within(group, prediction)
    label_spread = np.bincount(group, label * label)
    spread = np.bincount(group, guess * guess)
    together = np.bincount(group, label * guess)
    usable = (size >= MIN_PAIRS) & (label_spread > 0)
    if not usable.any():
        return None
    scale = np.sqrt(label_spread * spread)
    correlation = np.divide(together, scale, out=np.zeros_like(together), where=scale > 0)
    return float(correlation[usable].mean())


def topk_overlap(pairs: LabelledPairs, prediction: Doubles) -> float | None:
    """Return the mean over targets of |top k by label and top k by prediction| / k, k = a tenth of the target's pairs.

    k is rounded and at least 1; ties are broken by source id. Targets with fewer than three pairs are left out, since
    the best of one pair is always found; None where no target remains.
    """
    group, size = _groups(pairs)
    k = np.maximum(1, np.rint(TOP_SHARE * size)).astype(np.intp)
    codes, source = np.unique(pairs.source, return_inverse=True)
    by_id = np.empty(len(codes), dtype=np.intp)
    by_id[sorted(range(len(codes)), key=lambda place: pairs.source_ids[codes[place]])] = np.arange(len(codes))

    def chosen(values: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
        order = np.lexsort((by_id[source], -values, group))
        place = np.empty(len(order), dtype=np.intp)
        place[order] = np.arange(len(order))
        first = np.cumsum(size) - size
        return np.asarray(place - first[group] < k[group])

    usable = size >= MIN_PAIRS
    if not usable.any():
        return None
    shared = np.bincount(group, chosen(pairs.value) & chosen(prediction), minlength=len(size))
    return float((shared / k)[usable].mean())


def skill(value_selected: float, value_random: float, value_full: float) -> float | None:
    """Return the selection skill (selected - random) / (full - random), all values under the true matrix (method.md 2).

    None where the full teacher is no better or worse than chance, so that there is nothing to be skilled at.
    """
    gap = value_full - value_random
    if math.isclose(value_full, value_random, rel_tol=1e-12, abs_tol=0.0):
        return None
    return number((value_selected - value_random) / gap)


def _total(values: Doubles, weights: Doubles) -> Doubles:
    """Return the weighted sum of values `(n,)` under weights `(n,)` or `(n, n_resamples)`."""
    return np.asarray(values @ weights)


def _ratio(numerator: Doubles, denominator: Doubles) -> Doubles:
    positive = denominator > 0
    return np.where(positive, numerator / np.where(positive, denominator, 1), np.nan)


def _groups(pairs: LabelledPairs) -> tuple[Places, Places]:
    """Return for every pair the number of its target among the targets that occur, and the pairs of each of those."""
    _, group, size = np.unique(pairs.target, return_inverse=True, return_counts=True)
    return group, size


def _ranks_within(group: Places, values: npt.NDArray[np.floating]) -> Doubles:
    """Return the average rank of every value within its group, minus the group's mean; one sort for all groups."""
    if not len(values):
        return np.empty(0)
    order = np.lexsort((values, group))
    sorted_group, sorted_values = group[order], values[order]
    starts = np.ones(len(order), dtype=np.bool_)
    starts[1:] = (sorted_group[1:] != sorted_group[:-1]) | (sorted_values[1:] != sorted_values[:-1])
    first = np.flatnonzero(starts)
    last = np.append(first[1:], len(order)) - 1
    ranks = np.empty(len(order))
    ranks[order] = ((first + last) / 2)[np.cumsum(starts) - 1]
    centred: Doubles = ranks - (np.bincount(group, ranks) / np.bincount(group))[group]
    return centred
