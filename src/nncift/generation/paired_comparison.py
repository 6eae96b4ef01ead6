"""Two arms side by side: differences of their values per item and seed, with intervals over items and seeds.

Items and seeds are both samples: another test file and another training run would give other numbers. Items and seeds are
drawn again with replacement, whole, and a cell counts as often as its seed times as often as its item (see
`evaluation.bootstrap`). With three seeds such draws say too little about what a fourth would do: they have too small a spread
(two thirds of the true one) and no tails. So their deviations are stretched to the standard error of a table with two
crossed random effects and to Student's t with Satterthwaite's degrees of freedom (S. R. Searle et al., Variance Components,
1992, chapter 4; F. E. Satterthwaite, Biometrics Bulletin 2, 1946).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nncift.core.arrays import Doubles
from nncift.core.result_types import Record
from nncift.core.seeds import generator
from nncift.errors import UsageError
from nncift.evaluation.bootstrap import MIN_ITEMS
from nncift.evaluation.metrics import number

BLOCK = 256
"""Resamples drawn at once."""

LEVEL, TIE = 0.95, 1e-9
"""Level of intervals, and the largest difference that counts as none."""

UNDECIDED = "no significant difference"


@dataclass(frozen=True)
class Comparison(Record):
    """One arm less the other, over the items that both have under every seed; None where a figure is undefined.

    difference: of the means, in the metric's unit. relative: the same as a share of the other arm's mean. mean_absolute: mean
    over seeds of the size of each seed's difference, which cannot cancel out (`relative_mean_absolute`: as a share). interval: of
    the difference; None with fewer than five items, or where no item differs. wins, ties, losses: items whose mean over seeds is
    better, equal, worse. items, left_out: items compared, and those without a value in some seed of some arm. seeds: 1 means that
    the interval says nothing about another training run. verdict: better or worse where the whole interval lies on one side of 0.
    """

    difference: float | None
    interval: tuple[float, float] | None
    level: float
    relative: float | None
    relative_interval: tuple[float, float] | None
    mean_absolute: float | None
    relative_mean_absolute: float | None
    wins: int
    ties: int
    losses: int
    items: int
    left_out: int
    seeds: int
    verdict: str


def compare(
    one: npt.ArrayLike,
    other: npt.ArrayLike,
    *,
    higher_is_better: bool = True,
    seed: int = 0,
) -> Comparison:
    """Compare two arms' values, `(n_seeds, n_items)` each, the same items in the same order, NaN where there is none.

    An arm of one seed is held against every seed of the other (an untrained model has no seeds). Raises UsageError for tables
    that do not fit each other.
    """
    a, b = _tables(one, other)
    kept = np.isfinite(a).all(axis=0) & np.isfinite(b).all(axis=0)
    b, gaps = b[:, kept], (a - b)[:, kept]
    seeds, items = gaps.shape
    base = float(b.mean()) if items else np.nan
    share = 1 / abs(base) if base else np.nan
    difference = float(gaps.mean()) if items else np.nan
    absolute = float(np.abs(gaps.mean(axis=1)).mean()) if items else np.nan
    interval = mean_interval(gaps, seed=seed)
    per_item = (gaps.mean(axis=0) if items else np.zeros(0)) * (1 if higher_is_better else -1)
    return Comparison(
        difference=number(difference),
        interval=interval,
        level=LEVEL,
        relative=number(difference * share),
        relative_interval=_finite(None if interval is None else (interval[0] * share, interval[1] * share)),
        mean_absolute=number(absolute),
        relative_mean_absolute=number(absolute * share),
        wins=int((per_item > TIE).sum()),
        ties=int((np.abs(per_item) <= TIE).sum()),
        losses=int((per_item < -TIE).sum()),
        items=items,
        left_out=int((~kept).sum()),
        seeds=seeds,
        verdict=_verdict(interval, higher_is_better=higher_is_better),
    )


def _finite(bounds: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if bounds is None or not np.isfinite(bounds).all() else bounds


def _verdict(interval: tuple[float, float] | None, *, higher_is_better: bool) -> str:
    """Return better, worse or no significant difference, by the interval alone."""
    if interval is None or not (interval[0] > 0 or interval[1] < 0):
        return UNDECIDED
    return "better" if (interval[0] > 0) == higher_is_better else "worse"


def mean_interval(table: Doubles, *, resamples: int = 2000, seed: int = 0) -> tuple[float, float] | None:
    """Return the interval of the mean of a whole table `(n_seeds, n_items)`, both axes drawn again.

    With a single seed, of the mean over other items under that seed. None below five items, and where every value is 0: how
    large a difference is that has not been seen cannot be learned from its absence.
    """
    from scipy.stats import norm, t

    items = table.shape[1]
    if items < MIN_ITEMS or not table.any():
        return None
    mean = float(table.mean())
    error, freedom = _standard_error(table)
    draws = _draws(table, resamples, seed)
    spread = float(draws.std())
    if not error or not spread:
        return mean, mean
    tails = np.array([(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    stretch = error / spread * float(t.ppf(tails[1], freedom) / norm.ppf(tails[1]))
    low, high = mean + stretch * (np.quantile(draws, tails) - draws.mean())
    return float(low), float(high)


def _draws(table: Doubles, resamples: int, seed: int) -> Doubles:
    """Return means of the table with seeds and items drawn again, `(resamples,)`."""
    random = generator(seed, "answers", "compare")
    seeds, items = table.shape
    found = []
    for start in range(0, resamples, BLOCK):
        size = min(BLOCK, resamples - start)
        across = random.multinomial(seeds, np.full(seeds, 1 / seeds), size=size)
        along = random.multinomial(items, np.full(items, 1 / items), size=size)
        found.append(((across @ table) * along).sum(axis=1) / (seeds * items))
    return np.concatenate(found)


def _standard_error(table: Doubles) -> tuple[float, float]:
    """Return the standard error of the mean, seeds and items being crossed random effects, and its degrees of freedom."""
    seeds, items = table.shape
    by_item = table.mean(axis=0)
    if seeds == 1:
        return float(by_item.std(ddof=1) / np.sqrt(items)), items - 1
    by_seed = table.mean(axis=1)
    rest = table - by_seed[:, None] - by_item[None, :] + table.mean()
    squares = np.array(
        [items * by_seed.var(ddof=1), seeds * by_item.var(ddof=1), (rest**2).sum() / ((seeds - 1) * (items - 1))]
    )
    freedom = np.array([seeds - 1, items - 1, (seeds - 1) * (items - 1)])
    total = float(squares[0] + squares[1] - squares[2])
    larger = int(squares[:2].argmax())
    if total <= squares[larger]:
        # Noise alone can leave less than nothing of an axis; then the other stands for both.
        return float(np.sqrt(squares[larger] / (seeds * items))), float(freedom[larger])
    degrees = total**2 / ((squares**2) / freedom).sum()
    return float(np.sqrt(total / (seeds * items))), float(max(degrees, min(seeds, items) - 1))


def _tables(one: npt.ArrayLike, other: npt.ArrayLike) -> tuple[Doubles, Doubles]:
    tables = [np.atleast_2d(np.asarray(values, np.float64)) for values in (one, other)]
    seeds = max(len(table) for table in tables)
    fits = all(
        table.ndim == 2 and len(table) in (1, seeds) and table.shape[1] == tables[0].shape[1] for table in tables
    )
    if not fits or not seeds:
        raise UsageError(
            f"two arms were given as tables of {tables[0].shape} and {tables[1].shape}; expected (seeds, items) of the same "
            "items, and the same seeds or a single one"
        )
    a, b = (np.broadcast_to(table, (seeds, table.shape[1])) for table in tables)
    return a, b
