"""Facility location on a graph: every target knows the utilities of a few sources only, the others give it nothing.

For pools whose matrix would not fit. Values are those of the graph: a lower bound on the value under the whole matrix with the
same constant, since a missing pair counts as the lowest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nncift.core.amounts import check_count
from nncift.core.arrays import Codes, Floats, Longs
from nncift.core.lazily import LazilyBy
from nncift.core.threads import in_threads
from nncift.errors import DataError
from nncift.selection import Subset
from nncift.selection import sparse_kernels as kernels
from nncift.selection.coverage import bound_on_more
from nncift.selection.kernels import Queue
from nncift.selection.objectives import Scale, positions
from nncift.selection.rules import NO_RULES, Order, Rules

Scores = Mapping[str, float]
_SHOWN = 5


@dataclass(frozen=True, eq=False)
class Graph:
    """Utilities of a few sources for every target: `sources` (codes, -1 for none) and `utility`, `(n_targets, k)` each.

    NaN is a missing utility and gives nothing.
    """

    target_ids: tuple[str, ...]
    source_ids: tuple[str, ...]
    sources: Codes
    utility: Floats


class OnGraph:
    """A problem on a graph. Sources are in the order of their ids, so that ties by position are ties by id."""

    def __init__(self, graph: Graph, score: Scores | None = None) -> None:
        """Turn utilities into levels by source. Raises DataError, naming ids, where a utility is infinite.

        score: by id, what sources are taken by where none adds anything any more; by default the mean on the graph.
        """
        self._score = score
        known = (graph.sources >= 0) & ~np.isnan(graph.utility)
        infinite = np.argwhere(np.isinf(graph.utility) & known)
        if len(infinite):
            pairs = ", ".join(
                f"target {graph.target_ids[t]} with source {graph.source_ids[graph.sources[t, e]]}"
                for t, e in infinite[:_SHOWN]
            )
            raise DataError(f"Infinite utilities cannot be selected on ({len(infinite)} pairs have one): {pairs}.")
        values = graph.utility[known]
        self._scale = Scale.over(float(values.min(initial=np.inf)), float(values.max(initial=-np.inf)))
        levels = np.zeros(graph.utility.shape, np.int32)
        levels[known] = self._scale.levels(values.astype(np.float64))
        order = np.array(sorted(range(len(graph.source_ids)), key=graph.source_ids.__getitem__), np.int64)
        place = np.empty(len(order), np.int32)
        place[order] = np.arange(len(order), dtype=np.int32)
        self.source_ids = tuple(graph.source_ids[s] for s in order)
        sources = np.where(known, place[graph.sources], np.int32(-1)).astype(np.int32)
        self._edges = kernels.transpose(sources, levels, len(order))
        self.target_ids, self._n_targets = graph.target_ids, len(graph.target_ids)
        self._keep(sources, levels)

    def _keep(self, sources: Codes, levels: npt.NDArray[np.int32]) -> None:
        """Keep what a kind of selection needs of the edges by target, `(n_targets, k)` each; coverage needs nothing."""

    def _outcome(self, found: Order, by: Longs, rules: Rules) -> tuple[tuple[str, ...], float, dict[str, float]]:
        """Return the chosen ids, an upper bound on the value of such a set, and what every other source would add, in levels."""
        best, order = self._unserved(), found.sources
        kernels.replay(order, self._edges, best, np.empty(len(order), np.int64))
        left = self._gains(best)
        out = np.setdiff1d(np.arange(len(left)), order)
        names = [self.source_ids[s] for s in out.tolist()]
        bound = int(by.sum()) + bound_on_more(left[out], names, len(order), rules)
        return tuple(self.source_ids[s] for s in order), bound, dict(zip(names, left[out].tolist(), strict=True))

    def value(self, ids: Sequence[str]) -> float:
        """Return the value of a set on the graph. Raises UsageError for ids that are no sources."""
        best, order = self._unserved(), positions(self.source_ids, ids).astype(np.int64)
        kernels.replay(order, self._edges, best, np.empty(len(order), np.int64))
        return int(best.sum(dtype=np.int64)) * self._scale.unit

    def _unserved(self) -> npt.NDArray[np.int32]:
        return np.zeros(self._n_targets, np.int32)

    def _gains(self, best: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        gains = np.empty(len(self.source_ids), np.int64)
        in_threads(lambda a, b: kernels.gains_of(a, b, self._edges, best, gains), len(gains))
        return gains

    def scores(self) -> npt.NDArray[np.float64]:
        """Return what decides among sources that add nothing, `(n_sources,)`: as given, or the mean over a source's targets."""
        if self._score is not None:
            return np.array([self._score[item] for item in self.source_ids], np.float64)
        starts, _, levels = self._edges
        total = np.concatenate([[0], np.cumsum(levels, dtype=np.int64)])
        count = np.diff(starts)
        mean = np.divide(np.diff(total[starts]), count, out=np.full(len(count), np.nan), where=count > 0)
        return np.asarray(self._scale.low + mean * self._scale.unit, np.float64)


class SparseCoverage(OnGraph):
    """`fl` on a graph."""

    def choose(self, k: int, seed: int = 0, rules: Rules = NO_RULES) -> Subset:
        """Return `k` sources as plain greedy would choose them, ties by id; the seed changes nothing.

        With a capacity as many as fit, by gain or by gain per token, whichever is worth more (Leskovec et al. 2007). Raises
        InfeasibleError for a `k` that the graph cannot give.
        """
        check_count(k, len(self.source_ids))
        found, by = self._greedy(k, rules)
        if rules.capacity is not None:
            other = self._greedy(k, rules, per_cost=True)
            found, by = other if other[1].sum() > by.sum() else (found, by)
        return self._subset(found, by, rules)

    def _subset(self, found: Order, by: Longs, rules: Rules) -> Subset:
        """Return the chosen sources with what every other row would still add, and a reason for every row."""
        unit, k, first = self._scale.unit, len(found.sources), len(found.sources) - found.by_score
        ids, bound, out = self._outcome(found, by, rules)
        gains = by.astype(np.float64) * unit
        last = f"the last chosen row added {gains[-1]:.4g}" if k else "no row was chosen"
        rank, where = {item: rank for rank, item in enumerate(ids)}, "of coverage on the graph of neighbours"

        def reason(item: str) -> str:
            if item in rank:
                if rank[item] >= first:
                    return f"Taken by score at rank {rank[item] + 1} of {k}: no row adds anything to the {first} before it."
                how = "Required by --include" if item in rules.include else "Chosen"
                return f"{how} at rank {rank[item] + 1} of {k}: adds {gains[rank[item]]:.4g} {where}."
            if item in rules.exclude:
                return f"Not chosen: must not be in; would add {out[item] * unit:.4g} {where}."
            return f"Not chosen: would still add {out[item] * unit:.4g} {where}, {last}."

        return Subset(
            "fl",
            ids,
            gains,
            int(by.sum()) * unit,
            bound * unit,
            {item: gain * unit for item, gain in out.items()},
            LazilyBy(reason, self.source_ids),
            by_score=found.by_score,
        )

    def _greedy(self, k: int, rules: Rules, *, per_cost: bool = False) -> tuple[Order, Longs]:
        """Return the choice, rows that must be in first, and its gains."""
        best, ledger = self._unserved(), rules.ledger(self.source_ids, k)
        order, by, chosen = np.empty(k, np.int64), np.zeros(k, np.int64), 0
        weight = 1.0 / np.maximum(ledger.limits.cost, 1) if per_cost else np.ones(len(self.source_ids))
        for heap, lowest in ((ledger.forced, 0), (ledger.candidates.copy(), 1)):
            if len(heap) and chosen < k:
                queue = Queue(heap, self._gains(best), weight)
                chosen += kernels.lazy(queue, self._edges, best, ledger.limits, lowest, order[chosen:], by[chosen:])
        found = ledger.filled(order[:chosen], k, self.scores)
        return found, by[: len(found.sources)]
