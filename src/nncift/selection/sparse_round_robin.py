"""Round-robin and highest utility on a graph, where every target knows the utilities of a few sources only (`sparse.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from nncift.core.amounts import check_count
from nncift.core.arrays import Codes
from nncift.core.lazily import LazilyBy
from nncift.core.threads import in_threads
from nncift.errors import DataError
from nncift.selection import Subset
from nncift.selection import round_robin_kernels as turn_kernels
from nncift.selection import sparse_kernels as kernels
from nncift.selection.round_robin import begun, groups_of
from nncift.selection.rules import NO_RULES, Order, Rules
from nncift.selection.sparse import Graph, OnGraph, Scores
from nncift.selection.topk import Ranked


class SparseTurns(OnGraph):
    """`rr` on a graph; the value is the mean over targets with a neighbour of the best chosen utility, the lowest for none."""

    def __init__(self, graph: Graph, score: Scores | None = None, subtask_of: Mapping[str, str] | None = None) -> None:
        """Turn utilities into levels by source; see `OnGraph`. subtask_of: each target's subtask, where targets have any."""
        super().__init__(graph, score)
        self._subtask_of = subtask_of

    def _keep(self, sources: Codes, levels: npt.NDArray[np.int32]) -> None:
        """Keep each target's sources, best first."""
        self._lists = np.empty(sources.shape, np.int32)
        self._size = np.zeros(len(sources), np.int64)
        in_threads(lambda a, b: kernels.sort_edges(a, b, sources, levels, self._lists, self._size), len(sources))
        self._counted = max(int(np.count_nonzero(self._size)), 1)

    def choose(self, k: int, seed: int = 0, rules: Rules = NO_RULES) -> Subset:
        """Return `k` sources in the order in which targets took them, with a capacity as many as fit; see `RoundRobin`.

        Rows that must be in come first, and where no target has a neighbour left, the rest is taken by score. Raises
        InfeasibleError for a `k` that the graph cannot give.
        """
        n_targets = len(self.target_ids)
        check_count(k, len(self.source_ids))
        ledger = rules.ledger(self.source_ids, k)
        (order, taker), gone, forced = begun(k, ledger, self.scores)
        lists = turn_kernels.Lists(self._lists.copy(), self._size.copy(), np.ones(n_targets, bool))
        count = forced + turn_kernels.take_turns(
            np.empty((0, n_targets), np.int32),
            np.zeros(n_targets, np.int32),
            lists,
            groups_of(self.target_ids, self._subtask_of, seed),
            gone,
            ledger.limits,
            turn_kernels.Taken(order[forced:], taker[forced:]),
        )
        return self._account(ledger.filled(order[:count], k, self.scores), taker, rules)

    def _account(self, found: Order, taker: npt.NDArray[np.int64], rules: Rules) -> Subset:
        """Return the chosen sources with what every other row would still add, and a reason for every row."""
        by, step, base = np.zeros(len(found.sources), np.int64), self._scale.unit / self._counted, self._scale.low
        kernels.replay(found.sources, self._edges, self._unserved(), by)
        ids, bound, out = self._outcome(found, by, rules)
        gains, k, first = by.astype(np.float64) * self._scale.unit / self._counted, len(ids), len(ids) - found.by_score
        rank = {item: rank for rank, item in enumerate(ids)}

        def reason(item: str) -> str:
            if item not in rank:
                if item in rules.exclude:
                    return "Not chosen: must not be in."
                adds = f"would add {out[item] * step:.4g} to the mean over targets."
                return f"Not chosen: no target came to it in its turns; {adds}"
            at = rank[item]
            if at >= first:
                return f"Taken by score at rank {at + 1} of {k}: no target had a neighbour left after the {first} before it."
            adds = f"adds {gains[at]:.4g} to the mean over targets."
            if taker[at] < 0:
                return f"Required by --include at rank {at + 1} of {k}: {adds}"
            name = self.target_ids[int(taker[at])]
            return f"Taken at rank {at + 1} of {k} in the turn of {name}, as its best neighbour not yet taken; {adds}"

        return Subset(
            "rr",
            ids,
            gains,
            base + int(by.sum()) * self._scale.unit / self._counted,
            base + min(bound * self._scale.unit, self._reachable(rules)) / self._counted,
            {item: gain * step for item, gain in out.items()},
            LazilyBy(reason, self.source_ids),
            base,
            found.by_score,
        )

    def value(self, ids: Sequence[str]) -> float:
        """Return the mean over targets of the best utility of a set. Raises UsageError for ids that are no sources."""
        return self._scale.low + super().value(ids) / self._counted

    def _reachable(self, rules: Rules) -> float:
        """Return what all rows that may be chosen give together, in units of utility above the lowest."""
        best, n = self._unserved(), len(self.source_ids)
        allowed = np.arange(n)
        if rules.exclude:
            allowed = np.flatnonzero([item not in rules.exclude for item in self.source_ids])
        kernels.replay(allowed, self._edges, best, np.empty(len(allowed), np.int64))
        return int(best.sum(dtype=np.int64)) * self._scale.unit


def highest_on(graph: Graph, score: Scores | None = None) -> Ranked:
    """Return the problem of `max` on a graph: rows by their highest utility for any target.

    A row that is nobody's neighbour has none, and comes last, by score. Raises DataError where a utility is infinite.
    """
    n = len(graph.source_ids)
    most, at = np.full(n, np.nan), np.full(n, -1, np.int64)
    known = (graph.sources >= 0) & ~np.isnan(graph.utility)
    if np.isinf(graph.utility[known]).any():
        raise DataError("infinite utilities cannot be selected on; compute these pairs again or mask them")
    kernels.highest_of_edges(graph.sources, graph.utility, most, at)
    names = graph.target_ids
    return Ranked(
        "max",
        graph.source_ids,
        tuple(most.tolist()),
        "highest utility",
        lambda s: f" for target {names[at[s]]}" if at[s] >= 0 else "",
        None if score is None else tuple(score[item] for item in graph.source_ids),
    )
