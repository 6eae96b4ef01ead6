"""Rules of a selection beside its size: rows that must or must not be in, quotas by group, and a budget of tokens.

A greedy selection under these rules never has to look back. What may not be chosen once (its group is full, its tokens do
not fit, or every place left is owed to a group below its minimum) may never be chosen later, so it is dropped for good; and
where `Rules.check` finds no conflict, every place can be filled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nncift.core.amounts import check_count
from nncift.core.arrays import Longs
from nncift.core.texts import some
from nncift.errors import InfeasibleError, UsageError
from nncift.selection.quota import Quota

QUOTAS_COUNT_ROWS = "quotas count rows and cannot be joined with a budget of tokens; give a share or a count"


@dataclass(frozen=True, eq=False)
class Order:
    """Positions of the chosen sources, `(k,)`, in rank order. by_score: how many at the end add nothing and were taken by score.

    how: the beginning of the sentence that says why a row is in.
    """

    sources: Longs
    by_score: int
    how: str = "Chosen"


class Limits(NamedTuple):
    """What may still be chosen, in the form that compiled code reads and counts down.

    group, cost: `(n_sources,)`. least, most: by group, how many rows must and how many may still come. room: the cost that is
    left, and the rows that may still come beyond those that are owed to a group.
    """

    group: Longs
    least: Longs
    most: Longs
    cost: Longs
    room: Longs


@dataclass(frozen=True)
class Ledger:
    """What may still be chosen. candidates, forced: positions of sources, ascending."""

    candidates: Longs
    forced: Longs
    limits: Limits

    @classmethod
    def plain(cls, n: int, k: int) -> Ledger:
        """Return the ledger of any `k` of `n` sources."""
        return cls(
            np.arange(n, dtype=np.int64),
            np.empty(0, np.int64),
            Limits(
                np.zeros(n, np.int64),
                np.zeros(1, np.int64),
                np.full(1, k, np.int64),
                np.zeros(n, np.int64),
                np.array([0, k], np.int64),
            ),
        )

    def filled(self, order: Longs, k: int, score: Callable[[], npt.NDArray[np.float64]]) -> Order:
        """Return the chosen sources of `order`, and after them as many others by score, ties by position, as there may be.

        score: gives `(n_sources,)`, NaN where a source has none; these come last. Asked only where places are left.
        """
        short = k - len(order)
        if short <= 0 or not len(self.candidates):
            return Order(order, 0)
        taken = np.zeros(len(self.limits.cost), bool)
        taken[order] = True
        rest = self.candidates[~taken[self.candidates]]
        more: list[int] = []
        if len(rest):
            # NaN sorts to the end.
            ranked = rest[np.argsort(-score()[rest], kind="stable")]
            for s in ranked.tolist():
                if len(more) == short:
                    break
                if self.admits(s):
                    self.admit(s)
                    more.append(s)
        return Order(np.concatenate([order, np.array(more, np.int64)]), len(more))

    def admits(self, s: int) -> bool:
        """Tell whether the source at a position may still be chosen."""
        group, least, most, cost, room = self.limits
        g = group[s]
        return bool(most[g] > 0 and cost[s] <= room[0] and (least[g] > 0 or room[1] > 0))

    def admit(self, s: int) -> None:
        """Count the source at a position as chosen."""
        group, least, most, cost, room = self.limits
        g = group[s]
        if least[g] > 0:
            least[g] -= 1
        else:
            room[1] -= 1
        most[g] -= 1
        room[0] -= cost[s]


@dataclass(frozen=True)
class Rules:
    """What every selection has to keep.

    include, exclude: ids that must or must not be chosen; an excluded row is still a target. quota: shares by group.
    cost: tokens of every row, and capacity: of all chosen ones together; both or neither.
    """

    include: frozenset[str] = frozenset()
    exclude: frozenset[str] = frozenset()
    quota: Quota | None = None
    cost: Mapping[str, int] = field(default_factory=dict)
    capacity: int | None = None

    def check(self, ids: Sequence[str], k: int) -> None:
        """Raise InfeasibleError, naming the conflict, unless `k` rows of `ids` can be chosen by these rules.

        With a capacity, `k` is only an upper bound. Raises UsageError for ids that the pool does not have.
        """
        known = set(ids)
        for what, wanted in (("must be chosen", self.include), ("must not be chosen", self.exclude)):
            if unknown := sorted(wanted - known):
                raise UsageError(f"{len(unknown)} ids that {what} are not in the pool: {some(unknown)}")
        if both := sorted(self.include & self.exclude):
            raise InfeasibleError(f"{len(both)} ids both must and must not be chosen: {some(both)}")
        free = [item for item in ids if item not in self.exclude]
        if self.capacity is not None:
            self._check_tokens(free)
        else:
            check_count(k, len(ids))
            if k > len(free):
                raise InfeasibleError(
                    f"Cannot select {k} rows: of {len(ids)} rows {len(self.exclude)} must not be chosen, and "
                    f"{len(free)} are left; lower the budget or exclude fewer"
                )
            if len(self.include) > k:
                raise InfeasibleError(
                    f"{len(self.include)} rows must be chosen, and the budget is {k} rows; raise the budget or include fewer"
                )
        if self.quota is not None:
            if self.capacity is not None:
                raise UsageError(QUOTAS_COUNT_ROWS)
            self.quota.check(free, k, self.include)

    def ledger(self, ids: Sequence[str], k: int) -> Ledger:
        """Return the rules over the sources `ids` as arrays, nothing chosen yet; `check` has passed."""
        n = len(ids)
        if self == NO_RULES:
            return Ledger.plain(n, k)
        group, least, most = np.zeros(n, np.int64), np.zeros(1, np.int64), np.full(1, k, np.int64)
        if self.quota is not None:
            names = sorted({self.quota.group[item] for item in ids})
            place = {name: code for code, name in enumerate(names)}
            group = np.array([place[self.quota.group[item]] for item in ids], np.int64)
            bounds = np.array([self.quota.bounds(name, k) for name in names], np.int64)
            least, most = bounds[:, 0].copy(), bounds[:, 1].copy()
            # A group whose rows must all be left out is owed nothing: `Quota.check` does not know it either.
            free_groups = {self.quota.group[item] for item in ids if item not in self.exclude}
            least[[name not in free_groups for name in names]] = 0
        cost, room = np.zeros(n, np.int64), 0
        if self.capacity is not None:
            cost, room = np.array([self.cost[item] for item in ids], np.int64), self.capacity
        forced = [i for i, item in enumerate(ids) if item in self.include]
        free = [i for i, item in enumerate(ids) if item not in self.include and item not in self.exclude]
        limits = Limits(group, least, most, cost, np.array([room, k - int(least.sum())], np.int64))
        return Ledger(np.array(free, np.int64), np.array(forced, np.int64), limits)

    def take(self, order: Iterable[str], k: int) -> list[str]:
        """Return the first `k` of `order` that may be chosen, those that must be first; for orders without gains."""
        ranked = list(order)
        if self == NO_RULES:
            return ranked[:k]
        ledger = self.ledger(ranked, k)
        chosen = ledger.forced.tolist()
        for s in chosen:
            ledger.admit(s)
        for s in ledger.candidates.tolist():
            if len(chosen) == k:
                break
            if ledger.admits(s):
                ledger.admit(s)
                chosen.append(s)
        return [ranked[s] for s in chosen]

    def _check_tokens(self, free: Sequence[str]) -> None:
        capacity = self.capacity or 0
        if missing := sorted(item for item in free if item not in self.cost):
            raise UsageError(f"{len(missing)} rows have no number of tokens: {some(missing)}")
        if not free:
            return
        owed = sum(self.cost[item] for item in self.include)
        if owed > capacity:
            raise InfeasibleError(
                f"The {len(self.include)} rows that must be chosen have {owed} tokens, and the budget is {capacity}"
            )
        smallest = min(self.cost[item] for item in free)
        if not self.include and smallest > capacity:
            raise InfeasibleError(
                f"Cannot select with a budget of {capacity} tokens: the shortest row alone has {smallest}"
            )


NO_RULES = Rules()
