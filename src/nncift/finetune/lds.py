"""What retraining says about influence estimates: the linear datamodelling score, and its noise ceiling (docs/method.md 6).

An estimate gives a number to every pair of target and row. Summed over the rows of a subset it forecasts how well a model trained
on that subset does on the target; the score is the rank correlation of forecast and outcome over many subsets (Park et al.,
arXiv 2303.14186).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import rankdata

from nncift.core.arrays import Doubles
from nncift.core.result_types import Record
from nncift.core.seeds import generator
from nncift.evaluation.bootstrap import percentile_interval
from nncift.evaluation.metrics import number

RESAMPLES = 2000
LEVEL = 0.95
NORMAL = 1.959964
"""The standard normal distribution's quantile for an interval of `LEVEL`."""


@dataclass(frozen=True)
class Mean(Record):
    """A mean over targets and its interval (bootstrap over targets); None where it is not defined. targets: behind the mean.

    wide: of a score, the interval over other targets and other halves; None where nothing was left out to tell it.
    """

    mean: float | None
    interval: tuple[float, float] | None
    targets: int
    wide: tuple[float, float] | None = None


@dataclass(frozen=True)
class Agreement(Record):
    """How well an estimate forecasts retraining.

    lds: rank correlation. differences: from other estimates, target by target.
    """

    lds: Mean
    differences: Mapping[str, Mean]


def forecasts(values: Doubles, members: Doubles) -> Doubles:
    """Return what an estimate forecasts for every subset, `(n_targets, n_subsets)`: the sum over the subset's rows.

    values: `(n_targets, n_rows)`; a missing pair counts as its target's mean, so that it speaks for no subset. members:
    `(n_subsets, n_rows)`, 1 where a row is in.
    """
    known = np.isfinite(values)
    count = known.sum(1, keepdims=True)
    mean = np.divide(
        np.where(known, values, 0.0).sum(1, keepdims=True), count, where=count > 0, out=np.zeros((len(values), 1))
    )
    return np.where(known, values, mean) @ members.T


def rank_correlations(first: Doubles, second: Doubles) -> Doubles:
    """Return Spearman's correlation of the rows of two tables `(n, m)`, `(n,)`; NaN where a row is constant or not finite."""
    found = np.full(len(first), np.nan)
    for at, (one, other) in enumerate(zip(first, second, strict=True)):
        both = np.isfinite(one) & np.isfinite(other)
        if both.sum() < 3:
            continue
        a, b = (rankdata(part[both]) - (both.sum() + 1) / 2 for part in (one, other))
        scale = np.sqrt((a @ a) * (b @ b))
        # What differs by rounding alone says nothing, and would be ranked all the same.
        if scale > 0 and not (_flat(one[both]) or _flat(other[both])):
            found[at] = (a @ b) / scale
    return found


def agreements(
    estimates: Mapping[str, Doubles], members: Doubles, losses: Doubles, *, against: tuple[str, ...] = (), seed: int = 0
) -> dict[str, Agreement]:
    """Return the score of every estimate, and its difference from those named in `against`.

    estimates: by name, `(n_targets, n_rows)`. members: `(n_subsets, n_rows)`. losses: of the targets after training on each
    subset, `(n_subsets, n_targets)`.
    """
    foreseen = {name: forecasts(values, members) for name, values in estimates.items()}
    found = {name: rank_correlations(one, -losses.T) for name, one in foreseen.items()}
    fewer = {name: _without_each(one, -losses.T) for name, one in foreseen.items()}
    return {
        name: Agreement(
            _with_halves(mean_of(own, seed), own, fewer[name]),
            {
                other: _with_halves(mean_of(own - found[other], seed), own - found[other], fewer[name] - fewer[other])
                for other in against
                if other in found and other != name
            },
        )
        for name, own in found.items()
    }


def _without_each(forecast: Doubles, outcome: Doubles) -> Doubles:
    """Return the mean correlation over targets without each of the subsets, `(n_subsets,)`."""
    parts = [rank_correlations(np.delete(forecast, m, 1), np.delete(outcome, m, 1)) for m in range(forecast.shape[1])]
    known = [part[np.isfinite(part)] for part in parts]
    return np.array([part.mean() if len(part) else np.nan for part in known])


def _with_halves(mean: Mean, own: Doubles, fewer: Doubles) -> Mean:
    """Return a mean with its interval over other targets and other subsets: normal, with both variances added.

    The one over subsets is the jackknife's. What chance does to single pairs of target and subset is in both, so that the
    interval is a little too wide and never too narrow for it. own: by target, fewer: means without each subset.
    """
    known = own[np.isfinite(own)]
    if mean.mean is None or len(known) < 2 or not np.isfinite(fewer).all():
        return mean
    count = len(fewer)
    variance = (count - 1) / count * float(((fewer - fewer.mean()) ** 2).sum()) + float(known.var(ddof=1)) / len(known)
    half = NORMAL * math.sqrt(variance)
    return replace(mean, wide=(mean.mean - half, mean.mean + half))


def ceiling(losses: Doubles) -> float | None:
    """Return the highest score that any estimate can be expected to reach against the mean of repeated trainings.

    losses: of repeated trainings, `(n_repeats, n_subsets, n_targets)`. Two trainings of the same subsets agree by r, target by
    target; means over R trainings agree by R r / (1 + (R - 1) r) (Spearman-Brown), and a forecast of what they have in common
    agrees with one of these means by the root of that (the correction for attenuation of C. Spearman, 1904). None with fewer
    than two repeats, or where trainings do not agree at all.
    """
    repeats = len(losses)
    pairs = [(a, b) for a in range(repeats) for b in range(a)]
    if not pairs:
        return None
    mean = float(np.nanmean([rank_correlations(losses[a].T, losses[b].T) for a, b in pairs]))
    if not np.isfinite(mean) or mean <= 0:
        return None
    return math.sqrt(repeats * mean / (1 + (repeats - 1) * mean))


def mean_of(values: Doubles, seed: int) -> Mean:
    """Return the mean of a number per target with its interval over targets."""
    known = values[np.isfinite(values)]
    if not len(known):
        return Mean(None, None, 0)
    if len(known) == 1:
        return Mean(number(known[0]), None, 1)
    drawn = generator(seed, "retrain", "targets").integers(len(known), size=(RESAMPLES, len(known)))
    return Mean(float(known.mean()), percentile_interval(known[drawn].mean(1), LEVEL), len(known))


def _flat(values: Doubles) -> bool:
    return float(np.ptp(values)) <= 1e-12 * float(np.abs(values).max(initial=0.0))
