"""Bootstrap over items: targets and sources are drawn again, never single pairs (method.md 2).

Pairs that share an item are not independent: one odd target moves its whole row. Drawing single pairs takes them for
independent and gives intervals that are far too narrow. Here items are drawn with replacement and a pair counts as
often as its target times as often as its source: the pigeonhole bootstrap (A. B. Owen, Annals of Applied Statistics
1, 2007). No bootstrap of a two-way table is exact (P. McCullagh, Bernoulli 6, 2000): what is noise of single pairs is
counted more than once here, which widens an interval, and with a few dozen items percentiles fall a little short. In
the tests 95 % intervals over 25 x 25 items cover 92 % of the time, those over single pairs 34 %.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from nncift.core.arrays import Doubles
from nncift.core.pairs import Pairs

MIN_ITEMS = 5
"""Fewer targets or sources than this give no interval: drawn from so few, it would promise more than it holds."""

MIN_DEFINED = 0.9
"""Share of the resamples in which a metric must be defined; an interval over a remainder would be a selected one."""

BLOCK = 32
"""Resamples per block: the ranks of some thousand pairs then stay in the processor's cache."""


def has_enough_items(pairs: Pairs) -> bool:
    """Say whether an interval over the items of these pairs means something."""
    targets, sources = len(np.unique(pairs.target)), len(np.unique(pairs.source))
    fixed = _fixed(pairs)
    return not all(fixed) and (targets >= MIN_ITEMS or fixed[0]) and (sources >= MIN_ITEMS or fixed[1])


def item_weights(pairs: Pairs, generator: np.random.Generator, resamples: int) -> Iterator[Doubles]:
    """Yield blocks of weights `(n_pairs, at most BLOCK)`, together `resamples` columns.

    Targets and sources are drawn independently of each other, except that an item which plays both roles is drawn
    once: the uncertainty is about which items came into the sample, and an item that came twice came twice as a target
    and as a source. (Drawn apart, coverage fell from 90 to 76 % in a trial with 30 such items.) Sources that are not
    also targets are drawn among themselves. A single target or source, and fewer than MIN_ITEMS targets
    that are no rows of the pool, are given, not sampled, and not drawn again.
    """
    target_codes, target = np.unique(pairs.target, return_inverse=True)
    source_codes, source = np.unique(pairs.source, return_inverse=True)
    fixed = _fixed(pairs)
    place = {} if any(fixed) else {pairs.target_ids[code]: row for row, code in enumerate(target_codes)}
    twin = np.array([place.get(pairs.source_ids[code], -1) for code in source_codes], dtype=np.intp)
    both = twin >= 0
    for start in range(0, resamples, BLOCK):
        size = min(BLOCK, resamples - start)
        targets = _counts(generator, len(target_codes), size, fixed[0])
        sources = np.empty((len(source_codes), size))
        sources[both] = targets[twin[both]]
        sources[~both] = _counts(generator, int((~both).sum()), size, fixed[1])
        yield targets[target] * sources[source]


def percentile_interval(values: Doubles, level: float = 0.95) -> tuple[float, float] | None:
    """Return the central interval of resampled values `(n_resamples,)`; None where too many of them are undefined."""
    defined = values[np.isfinite(values)]
    if not len(values) or len(defined) < MIN_DEFINED * len(values):
        return None
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _fixed(pairs: Pairs) -> tuple[bool, bool]:
    """Tell of targets and of sources whether they are given."""
    targets, sources = pairs.target_ids, pairs.source_ids
    few = len(targets) < MIN_ITEMS and set(targets).isdisjoint(sources)
    return few or len(targets) == 1, len(sources) == 1


def _counts(generator: np.random.Generator, items: int, size: int, fixed: bool) -> Doubles:
    """Return how often each item is drawn, `(items, size)`: as many draws as items, with replacement."""
    if fixed or not items:
        return np.ones((items, size))
    return generator.multinomial(items, np.full(items, 1 / items), size=size).T.astype(np.float64)
