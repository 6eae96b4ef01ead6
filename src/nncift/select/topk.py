"""The highest mean utilities: for teachers whose values do not depend on each other (method.md 4, `topk`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nncift.pairs import UtilityMatrix
from nncift.select import Subset
from nncift.select.objectives import Reference, positions, refuse_infinite
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

    def value(self, ids: Sequence[str]) -> float:
        """Return the sum of the means that are known. Raises UsageError for ids that are no sources."""
        return math.fsum(m for i in positions(self.source_ids, ids) if not math.isnan(m := self.mean[i]))

    def choose(self, k: int, seed: int = 0, rules: Rules = NO_RULES) -> Subset:
        """Return `k` sources, highest mean first, those without any utility last; the seed changes nothing.

        With a capacity, the means above the lowest are what is collected, by themselves or per token, whichever gives more.
        The gain of a row is its mean utility, NaN where it has none; the value is the sum of those that exist.
        """
        ranked = self._ranked(lambda i: self.mean[i])
        chosen = rules.take([self.source_ids[i] for i in ranked], k)
        if rules.capacity is not None:
            low = min((m for m in self.mean if not math.isnan(m)), default=0.0)
            order = self._ranked(lambda i: (self.mean[i] - low) / max(rules.cost[self.source_ids[i]], 1))
            other = rules.take([self.source_ids[i] for i in order], k)
            chosen = max(chosen, other, key=lambda ids: self.value(ids) - low * len(ids))
        place = {self.source_ids[i]: rank for rank, i in enumerate(ranked, 1)}
        mean = dict(zip(self.source_ids, self.mean, strict=True))
        value, taken = self.value(chosen), set(chosen)
        return Subset(
            objective="topk",
            ids=tuple(chosen),
            gains=np.array([mean[item] for item in chosen], dtype=np.float64),
            value=value,
            upper_bound=value if rules == NO_RULES else self._bound(k, rules),
            final_gain={item: mean[item] for item in self.source_ids if item not in taken},
            reasons=self._reasons(chosen, place, mean, rules),
        )

    def _ranked(self, key: Callable[[int], float]) -> list[int]:
        """Return positions, the highest key first, without utility last, ties by id."""

        def place_of(i: int) -> tuple[bool, float, str]:
            missing = math.isnan(self.mean[i])
            return missing, 0.0 if missing else -key(i), self.source_ids[i]

        return sorted(range(len(self.source_ids)), key=place_of)

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

    def _reasons(
        self, chosen: Sequence[str], place: Mapping[str, int], mean: Mapping[str, float], rules: Rules
    ) -> dict[str, str]:
        k = len(chosen)
        last = f"the last chosen row has {_mean(mean[chosen[-1]])}" if k else "no row was chosen"
        reasons = {
            item: f"Not chosen: place {place[item]} with {_mean(mean[item])}, {last}." for item in self.source_ids
        }
        for item in rules.exclude & reasons.keys():
            reasons[item] = f"Not chosen: must not be in; place {place[item]} with {_mean(mean[item])}."
        for rank, item in enumerate(chosen, 1):
            how = "Must be in" if item in rules.include else "Chosen"
            reasons[item] = f"{how} at rank {rank} of {k}: {_mean(mean[item])} over {self.n_targets} targets."
        return reasons


def _mean(mean: float) -> str:
    return "no utility known for any target" if math.isnan(mean) else f"mean utility {mean:.4g}"
