"""Round-robin: targets take rows in turn (method.md 4, `rr`), as LESS, RDS+ and other targeted selections do.

In every round each target takes its best row that is not taken yet. With subtasks, the subtasks take turns, and the rows of a
subtask take its turns one after the other, so that a large subtask gets no more than a small one. The order of subtasks and rows
is drawn by the seed. The value is the mean over targets of the best chosen utility: facility location, counted per target.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from nncift.core.arrays import Bools, Doubles, Longs
from nncift.core.lazily import LazilyBy
from nncift.core.pairs import UtilityMatrix
from nncift.core.seeds import shuffled
from nncift.selection import NOTHING, Given, Subset, kernels
from nncift.selection import round_robin_kernels as turn_kernels
from nncift.selection.coverage import Coverage, bound_on_more, taken_by_score
from nncift.selection.objectives import Scale, by_id, similarity
from nncift.selection.rules import NO_RULES, Ledger, Order, Rules

_FEW_ROUNDS = 8
"""Rounds up to which each target's best rows are found in one pass over all; after that its whole order is worth knowing."""
_LISTED = 1 << 24
"""Entries of all targets' lists together."""


class RoundRobin:
    """`rr`: targets take their best rows in turn."""

    def pose(self, matrix: UtilityMatrix, given: Given = NOTHING, *, reuse: bool = False) -> Turns:
        """Return the problem.

        With a reference, what an existing set does, a target takes only rows that serve it better than that set; a target
        without such a row lets its turn pass. Missing utilities are never taken by.
        """
        references = () if given.reference is None else (given.reference,)
        scale = Scale.of(matrix, references=references)
        # One step lower than elsewhere: the lowest utility has level 1, and a missing one level 0.
        scale = Scale(scale.low - scale.unit, scale.unit)
        score = by_id(matrix, given.score)
        sim = similarity(matrix, scale, reuse=reuse)
        need = np.zeros(len(sim.target_ids), np.int32)
        for reference in references:
            need = reference.levels(sim.target_ids, scale)
        coverage = Coverage("rr", sim, np.maximum(need, 1), np.zeros(len(sim.source_ids), np.int64), score)
        return Turns(coverage, need, given.subtask_of)


def groups_of(target_ids: Sequence[str], subtask_of: Mapping[str, str] | None, seed: int) -> turn_kernels.Groups:
    """Draw the order of targets, and of their subtasks where they have any."""
    place = {item: t for t, item in enumerate(target_ids)}
    order = shuffled(target_ids, seed, "select", "turns")
    found: dict[str, list[int]] = {}
    for item in order:
        found.setdefault("" if subtask_of is None else subtask_of[item], []).append(place[item])
    names = shuffled(found, seed, "select", "subtasks")
    sizes = [len(found[name]) for name in names]
    return turn_kernels.Groups(
        np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        np.array([t for name in names for t in found[name]], np.int64),
    )


def begun(k: int, ledger: Ledger, score: Callable[[], Doubles]) -> tuple[turn_kernels.Taken, Bools, int]:
    """Return room for `k` sources, those that must be in at the front by score; what may not be taken; how many must be in."""
    forced = ledger.forced
    if len(forced):
        forced = forced[np.argsort(-score()[forced], kind="stable")]
    gone = np.ones(len(ledger.limits.cost), bool)
    gone[ledger.candidates] = False
    for s in forced.tolist():
        ledger.admit(s)
    taken = turn_kernels.Taken(np.empty(k, np.int64), np.full(k, -1, np.int64))
    taken.order[: len(forced)] = forced
    return taken, gone, len(forced)


@dataclass(frozen=True, eq=False)
class Turns:
    """A posed problem. coverage: its value, in levels; need: `(n_targets,)` a target takes only rows at a higher level."""

    coverage: Coverage
    need: kernels.Levels
    subtask_of: Mapping[str, str] | None = None

    def choose(self, k: int, seed: int = 0, rules: Rules = NO_RULES) -> Subset:
        """Return `k` sources in the order in which they were taken, with a capacity as many as fit, up to `k`.

        Rows that must be in come first. Where no target has a row left, the rest is taken by score.
        """
        sim = self.coverage.similarity
        ledger = rules.ledger(sim.source_ids, k)
        order, taker = self._taken(k, seed, ledger)
        found = ledger.filled(order, k, self.coverage.scores)
        taker = np.concatenate([taker, np.full(found.by_score, -1, np.int64)])
        return self._selection_table(found, taker, rules)

    def value(self, ids: Sequence[str]) -> float:
        """Return the mean over targets of the best utility of `ids`. Raises UsageError for ids that are no sources."""
        return self._base + self.coverage.value(ids) / self._counted

    @cached_property
    def _highest(self) -> kernels.Levels:
        """The highest level that each target has with any source."""
        return self._highest_among(np.arange(len(self.coverage.similarity.source_ids), dtype=np.int64))

    @cached_property
    def _counted(self) -> int:
        """How many targets have a utility at all, at least 1."""
        return max(int(np.count_nonzero((self._highest > 0) | (self.need > 0))), 1)

    @cached_property
    def _base(self) -> float:
        """The value of choosing nothing: every target has the lowest utility of all, or what the existing set gives it."""
        scale = self.coverage.similarity.scale
        above = int((self.coverage.floor - 1).sum(dtype=np.int64))
        return scale.utility(1) + above * scale.unit / self._counted

    def _highest_among(self, sources: Longs) -> kernels.Levels:
        columns, best = self.coverage.similarity.levels.T, np.zeros(len(self.need), np.int32)
        kernels.in_threads(lambda a, b: kernels.raise_to(columns, sources, a, b, best), len(best))
        return best

    def _taken(self, k: int, seed: int, ledger: Ledger) -> tuple[Longs, Longs]:
        """Return the positions of the chosen sources, and the target that took each, -1 for those that must be in."""
        sim = self.coverage.similarity
        columns, n_targets = sim.levels.T, len(sim.target_ids)
        (order, taker), gone, forced = begun(k, ledger, self.coverage.scores)
        groups = groups_of(sim.target_ids, self.subtask_of, seed)
        rounds = k / max(n_targets, 1)
        width = max(1, min(len(columns), max(_LISTED // max(n_targets, 1), 16)))
        lists, size = np.empty((n_targets, width), np.int32), np.zeros(n_targets, np.int64)
        whole = np.zeros(n_targets, bool)
        if rounds <= _FEW_ROUNDS:
            first = np.empty((n_targets, min(width, 2 * _FEW_ROUNDS)), np.int32)
            kernels.in_threads(
                lambda a, b: turn_kernels.best_sources(columns, a, b, self.need, gone, first, size), n_targets
            )
            lists[:, : first.shape[1]] = first
            whole = size < first.shape[1]
        ahead, rest = turn_kernels.Lists(lists, size, whole), turn_kernels.Taken(order[forced:], taker[forced:])
        count = forced + turn_kernels.take_turns(columns, self.need, ahead, groups, gone, ledger.limits, rest)
        return order[:count], taker[:count]

    def _selection_table(self, found: Order, taker: Longs, rules: Rules) -> Subset:
        """Return the subset with gains in units of the value, a bound, and reasons that tell of turns."""
        sim, coverage, order = self.coverage.similarity, self.coverage, found.sources
        k, n_sources = len(found.sources), len(sim.source_ids)
        (_, holder), gained, (left, favourite, highest) = coverage.replayed(order)
        by = gained.gains
        out = np.setdiff1d(np.arange(n_sources), order)
        names, step = [sim.source_ids[s] for s in out.tolist()], sim.scale.unit / self._counted
        reachable = self._highest
        if rules.exclude:
            allowed = np.array([s for s, item in enumerate(sim.source_ids) if item not in rules.exclude], np.int64)
            reachable = self._highest_among(allowed)
        most = int(np.maximum(reachable - coverage.floor, 0).sum(dtype=np.int64))
        value = int(by.sum())
        gains = np.asarray(by * step, np.float64)
        reasons = _Reasons(self, found, taker, gains, rules, holder, favourite, highest)
        return Subset(
            objective="rr",
            ids=tuple(sim.source_ids[s] for s in order),
            gains=gains,
            value=self._base + value * step,
            upper_bound=self._base + min(value + bound_on_more(left[out], names, k, rules), most) * step,
            final_gain=dict(zip(names, (left[out] * step).tolist(), strict=True)),
            reasons=LazilyBy(reasons, sim.source_ids),
            floor=self._base,
            by_score=found.by_score,
        )


@dataclass(frozen=True, eq=False)
class _Reasons:
    """Says in whose turn each row was taken, or why in none; made when it is asked for.

    gains: `(k,)` of the chosen rows; holder: `(n_targets,)` the rank that serves each target best, -1 for none; favourite,
    highest: `(n_sources,)` the target that each source serves best, -1 for none, and at which level.
    """

    problem: Turns
    found: Order
    taker: Longs
    gains: Doubles
    rules: Rules
    holder: Longs
    favourite: Longs
    highest: kernels.Levels

    @cached_property
    def _rank(self) -> dict[int, int]:
        return {s: rank for rank, s in enumerate(self.found.sources.tolist())}

    @cached_property
    def _place(self) -> dict[str, int]:
        return {item: s for s, item in enumerate(self.problem.coverage.similarity.source_ids)}

    @cached_property
    def _score(self) -> Doubles:
        return self.problem.coverage.scores()

    def __call__(self, item: str) -> str:
        s = self._place[item]
        return self._left_out(s) if s not in self._rank else self._chosen(s, self._rank[s])

    def _chosen(self, s: int, rank: int) -> str:
        sim, k = self.problem.coverage.similarity, len(self.found.sources)
        if rank >= k - self.found.by_score:
            return taken_by_score(rank, k, k - self.found.by_score, self._score[s])
        adds = f"adds {self.gains[rank]:.4g} to the mean over targets."
        t = int(self.taker[rank])
        if t < 0:
            return f"Required by --include at rank {rank + 1} of {k}: {adds}"
        return (
            f"Taken at rank {rank + 1} of {k} in the turn of {sim.target_ids[t]}, as its best row not yet taken (utility "
            f"{sim.scale.utility(sim.levels[t, s]):.4g}); {adds}"
        )

    def _left_out(self, s: int) -> str:
        sim, t = self.problem.coverage.similarity, int(self.favourite[s])
        if sim.source_ids[s] in self.rules.exclude:
            return "Not chosen: must not be in."
        if t < 0:
            return "Not chosen: no utility is known for it."
        text = (
            f"Not chosen: no target came to it in its turns; the target that it serves best, {sim.target_ids[t]} (utility "
            f"{sim.scale.utility(self.highest[s]):.4g}), "
        )
        if self.holder[t] < 0:
            need = self.problem.need[t]
            by = f"best by the existing set (utility {sim.scale.utility(need):.4g})" if need > 0 else "by no chosen row"
            return f"{text}is served {by}."
        rival = int(self.found.sources[self.holder[t]])
        level = sim.levels[t, rival]
        return (
            f"{text}is served best by {sim.source_ids[rival]} (rank {self.holder[t] + 1}, utility "
            f"{sim.scale.utility(level):.4g})."
        )
