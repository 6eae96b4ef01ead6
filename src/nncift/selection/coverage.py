"""Coverage: the form that all facility-location objectives share, solved by lazy greedy and accounted for row by row.

    f(A) = sum_t (max(floor_t, max_{s in A} level[t, s]) - floor_t) + sum_{s in A} bonus_s

`facility.py` says which floors, caps and bonuses make which objective (method.md 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from nncift.core.arrays import Doubles, Longs
from nncift.core.seeds import shuffled
from nncift.selection import Subset, kernels
from nncift.selection.objectives import Similarity, positions
from nncift.selection.rules import NO_RULES, Order, Rules

Codes = npt.NDArray[np.integer]


@dataclass(frozen=True, eq=False)
class Coverage:
    """A posed problem.

    similarity: levels, already capped; floor: `(n_targets,)`; bonus: `(n_sources,)`, both in levels. score: `(n_sources,)`, what
    rows are taken by that would add nothing; None = the mean of their utilities here.
    """

    objective: str
    similarity: Similarity
    floor: kernels.Levels
    bonus: Longs
    score: Doubles | None = None

    @classmethod
    def plain(cls, objective: str, similarity: Similarity, score: Doubles | None = None) -> Coverage:
        """Return facility location: no floor, no bonus."""
        n_targets, n_sources = similarity.levels.shape
        return cls(objective, similarity, np.zeros(n_targets, np.int32), np.zeros(n_sources, np.int64), score)

    def choose(self, k: int, seed: int = 0, rules: Rules = NO_RULES) -> Subset:
        """Return `k` sources as plain greedy would choose them, ties by id; with a capacity as many as fit, up to `k`.

        Where no source adds anything any more, the rest is taken by score.
        """
        return self.account(self.order(k, rules), rules)

    def order(self, k: int, rules: Rules = NO_RULES) -> Order:
        """Return the chosen sources in rank order.

        With a capacity, gain and gain per token are both followed, and the better result counts: either alone can be
        arbitrarily bad, the better of both is not (Leskovec et al. 2007, cost-effective greedy).
        """
        if rules.capacity is None:
            return self._greedy(k, rules, per_cost=False)
        by_gain, by_cost = self._greedy(k, rules, per_cost=False), self._greedy(k, rules, per_cost=True)
        if self._value(by_cost.sources) > self._value(by_gain.sources):
            return replace(by_cost, how="Chosen by gain per token")
        return replace(by_gain, how="Chosen by gain")

    def drawn(self, k: int, seed: int, rules: Rules = NO_RULES) -> Subset:
        """Return a random choice, valued like any other."""
        ids = rules.take(shuffled(self.similarity.source_ids, seed, "select", "random"), k)
        return self.account(Order(self._positions(ids), 0, f"Drawn at random (seed {seed})"), rules)

    def value(self, ids: Sequence[str]) -> float:
        """Return the objective's value of a set. Raises UsageError for ids that are no sources."""
        return self._value(self._positions(ids)) * self.similarity.scale.unit

    def values(self, sets: Codes) -> Doubles:
        """Return the values `(n_sets,)` of small sets, each a row of `(n_sets, k)` positions among the similarity's sources."""
        best = np.maximum(self.similarity.levels.T[sets].max(axis=1, initial=0), self.floor)
        added = best.sum(axis=1, dtype=np.int64) - self.floor.sum(dtype=np.int64) + self.bonus[sets].sum(axis=1)
        return np.asarray(added * self.similarity.scale.unit, np.float64)

    def _positions(self, ids: Sequence[str]) -> Longs:
        return positions(self.similarity.source_ids, ids).astype(np.int64)

    def _value(self, order: Longs) -> int:
        best = self.floor.copy()
        columns = self.similarity.levels.T
        # Over ranges of targets, so that two threads never write the same place.
        kernels.in_threads(lambda a, b: kernels.raise_to(columns, order, a, b, best), len(best))
        return int(best.sum(dtype=np.int64) - self.floor.sum(dtype=np.int64) + self.bonus[order].sum())

    def _gains(self, best: kernels.Levels) -> Longs:
        columns = self.similarity.levels.T
        gains = np.empty(len(columns), np.int64)
        kernels.in_threads(lambda a, b: kernels.gains_of(columns, a, b, best, gains), len(columns))
        return gains + self.bonus

    def _greedy(self, k: int, rules: Rules, *, per_cost: bool) -> Order:
        columns, best = self.similarity.levels.T, self.floor.copy()
        ledger = rules.ledger(self.similarity.source_ids, k)
        weight = 1.0 / np.maximum(ledger.limits.cost, 1) if per_cost else np.ones(len(columns))
        order, chosen = np.empty(k, np.int64), 0
        # Rows that must be in come first, so that the others are chosen for what they add to them.
        for heap, lowest in ((ledger.forced, 0), (ledger.candidates.copy(), 1)):
            if len(heap) and chosen < k:
                queue = kernels.Queue(heap, self._gains(best), weight)
                chosen += kernels.lazy_greedy(columns, queue, self.bonus, best, ledger.limits, lowest, order[chosen:])
        return ledger.filled(order[:chosen], k, self.scores)

    def scores(self) -> Doubles:
        """Return what decides among sources that add nothing, `(n_sources,)`; NaN where a source has none."""
        if self.score is not None:
            return self.score
        known, scale = self.similarity.known, self.similarity.scale
        total = self.similarity.levels.T.sum(axis=1, dtype=np.int64)
        mean = np.divide(total, known, out=np.full(len(known), np.nan), where=known > 0)
        return np.asarray(scale.low + mean * scale.unit, np.float64)

    def replayed(self, order: Longs) -> tuple[kernels.Service, kernels.Gained, kernels.Left]:
        """Choose the sources of `order`: who serves each target then, what each of these added, what every source would add."""
        columns = self.similarity.levels.T
        n_sources, n_targets = columns.shape
        service = kernels.Service(self.floor.copy(), np.full(n_targets, -1, np.int64))
        gained = kernels.Gained(*(np.zeros(len(order), np.int64) for _ in range(4)))
        kernels.replay(columns, order, service, gained)
        left = kernels.Left(np.zeros(n_sources, np.int64), np.zeros(n_sources, np.int64), np.zeros(n_sources, np.int32))
        kernels.in_threads(lambda a, b: kernels.what_is_left(columns, a, b, service.best, self.bonus, left), n_sources)
        return service, gained, left

    def account(self, found: Order, rules: Rules = NO_RULES) -> Subset:
        """Return the subset of the chosen sources with gains, bound and reasons."""
        order = found.sources
        unit, k, sources = self.similarity.scale.unit, len(order), self.similarity.source_ids
        service, gained, rest = self.replayed(order)
        gained.gains[:] += self.bonus[order]
        gains, left, value = gained.gains, rest.gains, int(gained.gains.sum())
        out = np.setdiff1d(np.arange(len(sources)), order)
        reasons, first = _Reasons(self, order, found.how, rules), k - found.by_score
        said = {sources[s]: reasons.chosen(rank, gained) for rank, s in enumerate(order[:first].tolist())}
        if found.by_score:
            score = self.scores()
            said |= {
                sources[s]: taken_by_score(rank, k, first, score[s])
                for rank, s in enumerate(order[first:].tolist(), first)
            }
        last = f"the last chosen row added {gains[-1] * unit:.4g}" if k else "no row was chosen"
        said |= {sources[s]: reasons.left_out(s, rest, service.holder, last) for s in out.tolist()}
        return Subset(
            objective=self.objective,
            ids=tuple(sources[s] for s in order),
            gains=gains.astype(np.float64) * unit,
            value=value * unit,
            upper_bound=(value + bound_on_more(left[out], [sources[s] for s in out], k, rules)) * unit,
            final_gain={sources[s]: float(left[s] * unit) for s in out},
            reasons=said,
            by_score=found.by_score,
        )


def taken_by_score(rank: int, k: int, first: int, score: float) -> str:
    """Return the reason of a row that was taken by score after the `first` rows left nothing to add."""
    known = "no utility is known for it" if np.isnan(score) else f"its score is {score:.4g}"
    return f"Taken by score at rank {rank + 1} of {k}: no row adds anything to the {first} before it; {known}."


def bound_on_more(left: Longs, ids: Sequence[str], k: int, rules: Rules) -> float:
    """Return what the best set can have beyond the chosen one, at most, from the gains `left` of the rows left out.

    By submodularity a set adds no more than its rows would one by one: the k largest gains, or the fractional knapsack of
    gains with a capacity. Quotas only lower the optimum. Rows that must not be chosen cannot be in it.
    """
    free = np.array([item not in rules.exclude for item in ids], bool)
    gains = left[free]
    if rules.capacity is None:
        return float(np.sort(gains)[max(len(gains) - (k - len(rules.include)), 0) :].sum())
    cost = np.maximum(np.array([rules.cost[item] for item, ok in zip(ids, free, strict=True) if ok], np.float64), 1)
    order = np.argsort(-gains / cost, kind="stable")
    room = rules.capacity - sum(rules.cost[item] for item in rules.include)
    before = np.concatenate([[0.0], np.cumsum(cost[order])])[:-1]
    share = np.clip((room - before) / cost[order], 0, 1)
    return float(np.ceil((gains[order] * share).sum()))


@dataclass(frozen=True, eq=False)
class _Reasons:
    """Says why each row is in or out, in one sentence with its numbers."""

    problem: Coverage
    order: Longs
    how: str
    rules: Rules

    def chosen(self, rank: int, gained: kernels.Gained) -> str:
        gains, raised, top, top_by = gained
        similarity, s = self.problem.similarity, int(self.order[rank])
        unit, bonus = similarity.scale.unit, self.problem.bonus[s]
        how = "Required by --include" if similarity.source_ids[s] in self.rules.include else self.how
        text = f"{how} at rank {rank + 1} of {len(self.order)}: "
        coverage = (gains[rank] - bonus) * unit
        if raised[rank]:
            text += (
                f"adds {coverage:.4g} of coverage; serves {raised[rank]} of {len(similarity.target_ids)} targets better than "
                f"all rows before it, most of all {similarity.target_ids[top[rank]]} (by {top_by[rank] * unit:.4g})"
            )
        else:
            text += f"adds nothing{' to coverage' if bonus else ''}, {self._without_gain(s)}"
        return text + (f"; counts {bonus * unit:.4g} for its best target." if bonus else ".")

    def left_out(self, s: int, rest: kernels.Left, holder: Longs, last: str) -> str:
        left, favourite, highest = rest
        similarity, order, floor = self.problem.similarity, self.order, self.problem.floor
        if similarity.source_ids[s] in self.rules.exclude:
            return f"Not chosen: must not be in; would add {left[s] * similarity.scale.unit:.4g}."
        what = "" if self.problem.bonus.any() else " of coverage"
        text = f"Not chosen: would still add {left[s] * similarity.scale.unit:.4g}{what}, {last}"
        t = favourite[s]
        if t < 0:
            return f"{text}; {self._without_gain(s)}."
        text += f"; the target that it serves best, {similarity.target_ids[t]} (utility {self._utility(highest[s])}), "
        if holder[t] >= 0:
            rival = order[holder[t]]
            return (
                f"{text}is served best by {similarity.source_ids[rival]} (rank {holder[t] + 1}, "
                f"utility {self._utility(similarity.levels[t, rival])})."
            )
        if floor[t] > 0:
            return f"{text}is served best by the existing set (utility {self._utility(floor[t])})."
        return f"{text}is served by no chosen row."

    def _without_gain(self, s: int) -> str:
        if not self.problem.similarity.known[s]:
            return "since no utility is known for it"
        if not self.problem.similarity.levels[:, s].any():
            return "since none of its utilities is above the lowest of all"
        return "since the rows before it serve every target at least as well"

    def _utility(self, level: np.int32) -> str:
        return f"{self.problem.similarity.scale.utility(level):.4g}"
