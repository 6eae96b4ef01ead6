"""Rows by a number of their own: the mean utility (`topk`), or the highest (`max`); method.md 4."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from nncift.core.arrays import Doubles
from nncift.core.lazily import LazilyBy
from nncift.core.pairs import UtilityMatrix
from nncift.selection import NOTHING, Given, Subset, kernels
from nncift.selection.objectives import Reference, check_infinite, looked_up, positions
from nncift.selection.rules import NO_RULES, Rules

BEST = ("best subtask",)
"""The one target that is left where targets have subtasks: the subtask that a source helps most."""


class TopK:
    """`topk`: the rows with the highest mean utility over the targets that have one; with subtasks, of the best subtask."""

    def pose(self, matrix: UtilityMatrix, given: Given = NOTHING, *, reuse: bool = False) -> Ranked:
        """Return the problem; a reference changes nothing."""
        check_infinite(matrix)
        n_targets = len(matrix.target_ids)
        if given.subtask_of is not None:
            matrix = best_subtask(matrix, given.subtask_of)
        mean = matrix.mean_per_source()
        over = f" over {n_targets} targets" if given.subtask_of is None else " for its best subtask"
        return Ranked("topk", matrix.source_ids, tuple(mean.tolist()), "mean utility", lambda at: over)


class Highest:
    """`max`: the rows with the highest utility for any target; with subtasks, the highest mean over a subtask's targets."""

    def pose(self, matrix: UtilityMatrix, given: Given = NOTHING, *, reuse: bool = False) -> Ranked:
        """Return the problem; reference: what an existing set does for each target, which a row's utility has to exceed."""
        check_infinite(matrix)
        if given.subtask_of is not None:
            matrix, names = means_by_subtask(matrix, given.subtask_of)
        else:
            names = matrix.target_ids
        less = np.zeros(len(names))
        if given.reference is not None:
            less = _given_already(given.reference, matrix, given.subtask_of, names)
        columns, n = np.ascontiguousarray(matrix.values.T, np.float32), len(matrix.source_ids)
        most, at = np.full(n, np.nan), np.full(n, -1, np.int64)
        kernels.in_threads(lambda a, b: kernels.highest_of(columns, a, b, less, most, at), n)
        what = "highest utility" if given.reference is None else "highest utility beyond the existing set's"
        kind = "target" if given.subtask_of is None else "subtask"
        return Ranked(
            "max",
            matrix.source_ids,
            tuple(most.tolist()),
            what,
            lambda s: f" for {kind} {names[at[s]]}" if at[s] >= 0 else "",
        )


def best_subtask(matrix: UtilityMatrix, subtask_of: Mapping[str, str]) -> UtilityMatrix:
    """Return the maximum over subtasks of a source's mean utility within each, as a matrix with one target.

    Missing values are left out of a mean; a subtask without any value for a source does not count for it.
    """
    means, _ = means_by_subtask(matrix, subtask_of)
    best = np.fmax.reduce(means.values, axis=0, initial=np.nan)
    return UtilityMatrix(BEST, matrix.source_ids, np.asfortranarray(best[None].astype(np.float32)))


def means_by_subtask(matrix: UtilityMatrix, subtask_of: Mapping[str, str]) -> tuple[UtilityMatrix, tuple[str, ...]]:
    """Return the mean utilities of sources within each subtask, with one target per subtask, and the subtasks' names."""
    own = np.array([subtask_of[item] for item in matrix.target_ids])
    names = tuple(sorted(set(own.tolist())))
    means = np.empty((len(names), len(matrix.source_ids)), np.float32, order="F")
    for row, name in enumerate(names):
        members = UtilityMatrix((name,) * int((own == name).sum()), matrix.source_ids, matrix.values[own == name])
        means[row] = members.mean_per_source()
    return UtilityMatrix(names, matrix.source_ids, means), names


def _given_already(
    reference: Reference, matrix: UtilityMatrix, subtask_of: Mapping[str, str] | None, names: Sequence[str]
) -> Doubles:
    """Return what an existing set does for each target, or on average for each subtask's; the lowest utility where unknown."""
    lowest = min(float(np.nanmin(matrix.values, initial=np.inf)), reference.low)
    best = np.where(np.isnan(reference.best), lowest if math.isfinite(lowest) else 0.0, reference.best)
    if subtask_of is None:
        return np.asarray(best[positions(reference.target_ids, names)], np.float64)
    own = np.array([subtask_of[item] for item in reference.target_ids])
    return np.array([best[own == name].mean() for name in names], np.float64)


@dataclass(frozen=True)
class Ranked:
    """Numbers of sources, NaN where none is known; the value of a set is their sum.

    what: the name of the number; about: says at a source's position what the number is about. score: what sources without
    a number are taken by; None = by id.
    """

    objective: str
    source_ids: tuple[str, ...]
    number: tuple[float, ...]
    what: str
    about: Callable[[int], str]
    score: tuple[float, ...] | None = None

    @cached_property
    def place(self) -> Mapping[str, int]:
        """Where each source stands."""
        return {item: i for i, item in enumerate(self.source_ids)}

    def value(self, ids: Sequence[str]) -> float:
        """Return the sum of the numbers that are known. Raises UsageError for ids that are no sources."""
        return math.fsum(x for i in looked_up(self.place, ids) if not math.isnan(x := self.number[i]))

    def choose(self, k: int, seed: int = 0, rules: Rules = NO_RULES) -> Subset:
        """Return `k` sources, highest number first, those without any utility last; the seed changes nothing.

        With a capacity, the numbers above the lowest are what is collected, by themselves or per token, whichever gives more.
        The gain of a row is its number, NaN where it has none; the value is the sum of those that exist.
        """
        numbers = np.array(self.number, np.float64)
        ranked = self._ranked(numbers)
        chosen = rules.take([self.source_ids[i] for i in ranked], k)
        if rules.capacity is not None:
            low = min((x for x in self.number if not math.isnan(x)), default=0.0)
            cost = np.array([max(rules.cost[item], 1) for item in self.source_ids], np.float64)
            other = rules.take([self.source_ids[i] for i in self._ranked((numbers - low) / cost)], k)
            chosen = max(chosen, other, key=lambda ids: self.value(ids) - low * len(ids))
        value, taken = self.value(chosen), set(chosen)

        def left(item: str) -> float:
            if item in taken:
                raise KeyError(item)
            return self.number[self.place[item]]

        return Subset(
            objective=self.objective,
            ids=tuple(chosen),
            gains=np.array([self.number[self.place[item]] for item in chosen], dtype=np.float64),
            value=value,
            upper_bound=max(value, self._bound(k, rules)),
            final_gain=LazilyBy(left, [item for item in self.source_ids if item not in taken]),
            reasons=self._reasons(chosen, ranked, rules),
            by_score=0 if self.score is None else sum(math.isnan(self.number[self.place[item]]) for item in chosen),
        )

    def _ranked(self, key: Doubles) -> list[int]:
        """Return positions, the highest key first, without utility last, ties by id."""
        by_id = np.array(sorted(range(len(self.source_ids)), key=self.source_ids.__getitem__), np.intp)
        order = by_id[np.argsort(-key[by_id], kind="stable")]
        without = int(np.isnan(key).sum())
        if self.score is not None and without:
            last = order[len(order) - without :]
            order[len(order) - without :] = last[np.argsort(-np.array(self.score)[last], kind="stable")]
        ranked: list[int] = order.tolist()
        return ranked

    def _bound(self, k: int, rules: Rules) -> float:
        """Return the value of the best set of at most `k` rows if only the excluded ones were out of reach."""
        if rules.capacity is None:
            numbers = np.array(self.number, np.float64)
            if rules.exclude:
                numbers = numbers[[item not in rules.exclude for item in self.source_ids]]
            # A row without a number counts nothing, which is more than one below 0.
            return math.fsum(np.sort(np.nan_to_num(numbers, nan=0.0))[max(len(numbers) - k, 0) :].tolist())
        cost = [max(rules.cost[item], 1) for item in self.source_ids]
        order = sorted(
            (i for i, x in enumerate(self.number) if x > 0 and self.source_ids[i] not in rules.exclude),
            key=lambda i: -self.number[i] / cost[i],
        )
        room, total = float(rules.capacity), 0.0
        for i in order:
            share = min(1.0, room / cost[i])
            total, room = total + share * self.number[i], room - share * cost[i]
        return total

    def _reasons(self, chosen: Sequence[str], ranked: Sequence[int], rules: Rules) -> Mapping[str, str]:
        """Return a sentence for every source, made when it is asked for: a million of them would take 0.2 GB."""
        k, rank = len(chosen), {item: rank for rank, item in enumerate(chosen, 1)}
        place = np.empty(len(ranked), np.int64)
        place[ranked] = np.arange(1, len(ranked) + 1)
        last = f"the last chosen row has {self._said(self.place[chosen[-1]])}" if k else "no row was chosen"

        def reason(item: str) -> str:
            at = self.place[item]
            said = self._said(at)
            if item in rank:
                if self.score is not None and math.isnan(self.number[at]):
                    return f"Taken by score at rank {rank[item]} of {k}: it is no target's neighbour."
                how = "Required by --include" if item in rules.include else "Chosen"
                return f"{how} at rank {rank[item]} of {k}: {said}{self.about(at)}."
            if item in rules.exclude:
                return f"Not chosen: must not be in; place {place[at]} with {said}."
            return f"Not chosen: place {place[at]} with {said}, {last}."

        return LazilyBy(reason, self.source_ids)

    def _said(self, at: int) -> str:
        number = self.number[at]
        return "no utility known for any target" if math.isnan(number) else f"{self.what} {number:.4g}"
