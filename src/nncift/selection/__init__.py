"""Selection: from a utility matrix to a ranked subset that says why each row is in or out (method.md 4).

Nothing here imports torch, and numba loads only when a selection is made, so that choosing again from a finished run
starts quickly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from nncift.core.amounts import check_count
from nncift.core.pairs import UtilityMatrix
from nncift.core.plugins import class_of
from nncift.selection.rules import NO_RULES, Rules

if TYPE_CHECKING:
    from nncift.selection.objectives import Reference

__all__ = [
    "NOTHING",
    "OBJECTIVES",
    "Given",
    "Problem",
    "Rules",
    "Selector",
    "Subset",
    "pose",
    "select",
    "selector",
]

OBJECTIVES: Mapping[str, str] = {
    "fl": "nncift.selection.facility:FacilityLocation",
    "flmi": "nncift.selection.facility:MutualInformation",
    "fl2mi": "nncift.selection.facility:TargetMutualInformation",
    "flcg": "nncift.selection.facility:ConditionalGain",
    "rr": "nncift.selection.round_robin:RoundRobin",
    "max": "nncift.selection.topk:Highest",
    "topk": "nncift.selection.topk:TopK",
    "random": "nncift.selection.facility:RandomControl",
}
"""Objective name -> where its Selector lives; other packages add theirs as entry points of `nncift.selectors`."""


COVERING = ("fl", "flmi", "fl2mi", "flcg")
"""Objectives that live on each target's best source."""


@dataclass(frozen=True, eq=False)
class Subset:
    """The chosen rows in rank order, and an account of every row of the pool.

    gains: `(k,)` float64, what each chosen row added when it was chosen, in rank order.
    value: the objective's value of the whole set. upper_bound: no set of this size has a higher value.
    final_gain: for each row that was not chosen, what it would still add.
    reasons: for every row, chosen or not, one sentence with its numbers.
    floor: the value of choosing nothing. by_score: rows at the end of the order that add nothing to the objective, which the
    rows before them exhaust; they were taken by score.
    """

    objective: str
    ids: tuple[str, ...]
    gains: npt.NDArray[np.float64]
    value: float
    upper_bound: float
    final_gain: Mapping[str, float]
    reasons: Mapping[str, str]
    floor: float = 0.0
    by_score: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def share_of_optimum(self) -> float:
        """Return a lower bound on value / value of the best set of this size, both counted from `floor`."""
        most = self.upper_bound - self.floor
        return (self.value - self.floor) / most if most > 0 else 1.0


@dataclass(frozen=True, eq=False)
class Given:
    """What an objective may get beside the matrix; each reads what it needs.

    reference: what a second set does for each target. subtask_of: each target's subtask by id. score: `(n_sources,)` in the
    order of the matrix, what decides among rows that the objective has no use for; by default their mean utility in the matrix.
    """

    reference: Reference | None = None
    subtask_of: Mapping[str, str] | None = None
    score: npt.NDArray[np.float64] | None = None


NOTHING = Given()


class Problem(Protocol):
    """An objective over one matrix, ready to be solved for any size and rules."""

    def choose(self, k: int, seed: int = 0, rules: Rules = NO_RULES) -> Subset:
        """Return `k` sources in rank order, fewer only where `rules` have a capacity; both have been checked."""
        ...

    def value(self, ids: Sequence[str]) -> float:
        """Return the objective's value of a set of sources."""
        ...


class Selector(Protocol):
    """A way to choose sources of a utility matrix; deterministic for a seed, ties by id."""

    def pose(self, matrix: UtilityMatrix, given: Given = NOTHING, *, reuse: bool = False) -> Problem:
        """Return the problem of choosing from a matrix. reuse: the matrix may be overwritten."""
        ...


def selector(objective: str) -> Selector:
    """Return the selector registered under a name. Raises UsageError as `class_of`."""
    made: Selector = class_of("objective", objective, OBJECTIVES, "nncift.selectors")()
    return made


def pose(matrix: UtilityMatrix, objective: str = "fl", given: Given = NOTHING, *, reuse: bool = False) -> Problem:
    """Return the problem of a registered objective over `matrix` (`(n_targets, n_sources)`), to solve it more than once.

    reuse: the matrix is not needed any more, so that its memory may hold the problem.
    Raises UsageError for an unknown objective or one that lacks its reference, DataError for infinite utilities.
    """
    return selector(objective).pose(matrix, given, reuse=reuse)


def select(
    matrix: UtilityMatrix,
    k: int,
    objective: str = "fl",
    seed: int = 0,
    *,
    reference: Reference | None = None,
    subtask_of: Mapping[str, str] | None = None,
    rules: Rules = NO_RULES,
) -> Subset:
    """Choose `k` sources of `matrix` (`(n_targets, n_sources)`) by a registered objective (method.md 4).

    reference: what a second set does for each target: the target set for `flmi`, the existing set for `flcg`, `rr` and `max`.
    subtask_of: each target's subtask, for `rr`, `max` and `topk`. rules: what must hold beside the size; with a budget of
    tokens, `k` is only an upper bound.

    Raises UsageError for an unknown objective, InfeasibleError for a `k` or for rules that the pool cannot give, DataError
    for infinite utilities.
    """
    selector(objective)
    check_count(k, len(matrix.source_ids))
    rules.check(matrix.source_ids, k)
    return pose(matrix, objective, Given(reference, subtask_of)).choose(k, seed, rules)
