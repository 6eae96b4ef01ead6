"""Round-robin and highest utility on a graph, where every target knows the utilities of a few sources only (`sparse.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from nncift.core.amounts import check_count
from nncift.core.lazily import LazilyBy
from nncift.core.threads import in_threads
from nncift.errors import DataError
from nncift.selection import Subset
from nncift.selection import round_robin_kernels as turn_kernels
from nncift.selection import sparse_kernels as kernels
from nncift.selection.objectives import positions
from nncift.selection.round_robin import Groups
from nncift.selection.rules import NO_RULES, Rules
from nncift.selection.sparse import Codes, Graph, Scores, Solution, SparseCoverage
from nncift.selection.topk import Ranked


class SparseTurns(SparseCoverage):
    """`rr` on a graph; the value is the mean over targets with a neighbour of the best chosen utility, the lowest for none."""

    def _keep(self, sources: Codes, levels: npt.NDArray[np.int32]) -> None:
        """Keep each target's sources, best first."""
        self._lists = np.empty(sources.shape, np.int32)
        self._size = np.zeros(len(sources), np.int64)
        in_threads(lambda a, b: kernels.sort_edges(a, b, sources, levels, self._lists, self._size), len(sources))
        self._counted = max(int(np.count_nonzero(self._size)), 1)

    def take_turns(
        self,
        k: int,
        *,
        rules: Rules = NO_RULES,
        seed: int = 0,
        subtask_of: Mapping[str, str] | None = None,
        score: Scores | None = None,
    ) -> Solution:
        """Return `k` sources in the order in which targets took them, with a capacity as many as fit; see `RoundRobin`.

        Rows that must be in come first, and where no target has a neighbour left, the rest is taken by score: as given, or the
        mean on the graph. Raises InfeasibleError for a `k` that the graph cannot give.
        """
        n = len(self.source_ids)
        check_count(k, n)
        ledger = rules.ledger(self.source_ids, k)
        forced = ledger.forced
        if len(forced):
            forced = forced[np.argsort(-self.scores(score)[forced], kind="stable")]
        gone = np.ones(n, bool)
        gone[ledger.candidates] = False
        for s in forced.tolist():
            ledger.admit(s)
        order, taker = np.empty(k, np.int64), np.full(k, -1, np.int64)
        order[: len(forced)] = forced
        groups, n_targets = Groups.of(self.target_ids, subtask_of, seed), len(self.target_ids)
        nothing = np.empty((0, n_targets), np.int32)
        taken = turn_kernels.take_turns(
            nothing,
            np.zeros(n_targets, np.int32),
            self._lists.copy(),
            self._size.copy(),
            np.ones(n_targets, bool),
            groups.starts,
            groups.members,
            gone,
            ledger.group,
            ledger.least,
            ledger.most,
            ledger.cost,
            ledger.room,
            order[len(forced) :],
            taker[len(forced) :],
        )
        found = ledger.filled(order[: len(forced) + taken], k, lambda: self.scores(score))
        by = np.zeros(len(found.sources), np.int64)
        kernels.replay(found.sources, *self._edges, self._unserved(), by)
        whole = self._solution(found, by, rules)
        reachable = self._reachable(rules)
        base, counted = self._scale.low, self._counted
        return replace(
            whole,
            gains=whole.gains / counted,
            value=base + whole.value / counted,
            floor=base,
            upper_bound=base + min(whole.upper_bound, reachable) / counted,
            taker=taker[: len(found.sources)],
        )

    def account(self, solution: Solution, rules: Rules = NO_RULES) -> Subset:
        """Return the solution with what every other row would still add, and a reason for every row."""
        k, counted, taker = len(solution.ids), self._counted, solution.taker
        left = self._left(positions(self.source_ids, solution.ids)) * (self._scale.unit / counted)
        rank = {item: rank for rank, item in enumerate(solution.ids)}
        out = {item: float(gain) for item, gain in zip(self.source_ids, left, strict=True) if item not in rank}
        first = k - solution.by_score

        def reason(item: str) -> str:
            if item not in rank:
                if item in rules.exclude:
                    return "Not chosen: must not be in."
                return f"Not chosen: no target came to it in its turns; would add {out[item]:.4g} to the mean over targets."
            at = rank[item]
            if at >= first:
                return f"Taken by score at rank {at + 1} of {k}: no target had a neighbour left after the {first} before it."
            adds = f"adds {solution.gains[at]:.4g} to the mean over targets."
            if taker is None or taker[at] < 0:
                return f"Must be in at rank {at + 1} of {k}: {adds}"
            name = self.target_ids[int(taker[at])]
            return f"Taken at rank {at + 1} of {k} in the turn of {name}, as its best neighbour not yet taken; {adds}"

        return Subset(
            "rr",
            solution.ids,
            solution.gains,
            solution.value,
            solution.upper_bound,
            out,
            LazilyBy(reason, self.source_ids),
            solution.floor,
            solution.by_score,
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
        kernels.replay(allowed, *self._edges, best, np.empty(len(allowed), np.int64))
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
