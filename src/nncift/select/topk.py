"""The highest mean utilities: for teachers whose values do not depend on each other (method.md 4, `topk`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from nncift.lazily import LazilyBy
from nncift.pairs import UtilityMatrix
from nncift.select import Subset
from nncift.select.objectives import Reference, looked_up, refuse_infinite
from nncift.select.rules import NO_RULES, Rules


class TopK:
    """`topk`: the rows with the highest mean utility over the targets that have one."""

    def pose(self, matrix: UtilityMatrix, reference: Reference | None = None, *, reuse: bool = False) -> HighestMean:
        """Return the problem; a reference changes nothing."""
        refuse_infinite(matrix)
        return HighestMean(matrix.source_ids, len(matrix.target_ids), tuple(matrix.mean_per_source().tolist()))


@dataclass(frozen=True)
class HighestMean:
    """Mean utilities of sources, NaN where none is known; the value of a set is their sum."""

    source_ids: tuple[str, ...]
    n_targets: int
    mean: tuple[float, ...]

    @cached_property
    def place(self) -> Mapping[str, int]:
        """Where each source stands."""
        return {item: i for i, item in enumerate(self.source_ids)}

    def value(self, ids: Sequence[str]) -> float:
        """Return the sum of the means that are known. Raises UsageError for ids that are no sources."""
        return math.fsum(m for i in looked_up(self.place, ids) if not math.isnan(m := self.mean[i]))

    def choose(self, k: int, seed: int = 0, rules: Rules = NO_RULES) -> Subset:
        """Return `k` sources, highest mean first, those without any utility last; the seed changes nothing.

        With a capacity, the means above the lowest are what is collected, by themselves or per token, whichever gives more.
        The gain of a row is its mean utility, NaN where it has none; the value is the sum of those that exist.
        """
        means = np.array(self.mean, np.float64)
        ranked = self._ranked(means)
        chosen = rules.take([self.source_ids[i] for i in ranked], k)
        if rules.capacity is not None:
            low = min((m for m in self.mean if not math.isnan(m)), default=0.0)
            cost = np.array([max(rules.cost[item], 1) for item in self.source_ids], np.float64)
            other = rules.take([self.source_ids[i] for i in self._ranked((means - low) / cost)], k)
            chosen = max(chosen, other, key=lambda ids: self.value(ids) - low * len(ids))
        value, taken = self.value(chosen), set(chosen)

        def left(item: str) -> float:
            if item in taken:
                raise KeyError(item)
            return self.mean[self.place[item]]

        return Subset(
            objective="topk",
            ids=tuple(chosen),
            gains=np.array([self.mean[self.place[item]] for item in chosen], dtype=np.float64),
            value=value,
            upper_bound=value if rules == NO_RULES else self._bound(k, rules),
            final_gain=LazilyBy(left, [item for item in self.source_ids if item not in taken]),
            reasons=self._reasons(chosen, ranked, rules),
        )

    def _ranked(self, key: npt.NDArray[np.float64]) -> list[int]:
        """Return positions, the highest key first, without utility last, ties by id."""
        by_id = np.array(sorted(range(len(self.source_ids)), key=self.source_ids.__getitem__), np.intp)
        ranked: list[int] = by_id[np.argsort(-key[by_id], kind="stable")].tolist()
        return ranked

    def _bound(self, k: int, rules: Rules) -> float:
        """Return the value of the best set of at most `k` rows if only the excluded ones were out of reach."""
        known = [m for item, m in zip(self.source_ids, self.mean, strict=True) if item not in rules.exclude]
        best = sorted((m for m in known if not math.isnan(m)), reverse=True)[:k]
        if rules.capacity is None:
            return math.fsum(best)
        cost = [max(rules.cost[item], 1) for item in self.source_ids]
        order = sorted(
            (i for i, m in enumerate(self.mean) if m > 0 and self.source_ids[i] not in rules.exclude),
            key=lambda i: -self.mean[i] / cost[i],
        )
        room, total = float(rules.capacity), 0.0
        for i in order:
            share = min(1.0, room / cost[i])
            total, room = total + share * self.mean[i], room - share * cost[i]
        return total

    def _reasons(self, chosen: Sequence[str], ranked: Sequence[int], rules: Rules) -> Mapping[str, str]:
        """Return a sentence for every source, made when it is asked for: a million of them would take 0.2 GB."""
        k, rank = len(chosen), {item: rank for rank, item in enumerate(chosen, 1)}
        place = np.empty(len(ranked), np.int64)
        place[ranked] = np.arange(1, len(ranked) + 1)
        last = f"the last chosen row has {_mean(self.mean[self.place[chosen[-1]]])}" if k else "no row was chosen"

        def reason(item: str) -> str:
            at = self.place[item]
            mean = _mean(self.mean[at])
            if item in rank:
                how = "Must be in" if item in rules.include else "Chosen"
                return f"{how} at rank {rank[item]} of {k}: {mean} over {self.n_targets} targets."
            if item in rules.exclude:
                return f"Not chosen: must not be in; place {place[at]} with {mean}."
            return f"Not chosen: place {place[at]} with {mean}, {last}."

        return LazilyBy(reason, self.source_ids)


def _mean(mean: float) -> str:
    return "no utility known for any target" if math.isnan(mean) else f"mean utility {mean:.4g}"
