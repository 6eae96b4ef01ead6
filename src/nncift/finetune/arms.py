"""The subsets that are set against each other: each arm gives ids of the run's pool, never having looked at the test rows.

`selected` is the run's own selection. Rules of the run (quotas, rows in and out, duplicates) bind `selected`, `teacher` and
`small-teacher`, which choose as the run chooses; the others know no rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from nncift.core.amounts import check_count
from nncift.finetune.run_rows import Pool
from nncift.finetune.teacher_arms import rds_ids, small_teacher_ids, teacher_ids
from nncift.selection.controls import longest_ids, random_ids, stratified_ids

Chooser = Callable[[Pool, "Budget", int], Sequence[str]]


@dataclass(frozen=True)
class Budget:
    """A size of subset. asked: as it was given, None = the run's own; rows: of the run's selection at it, in rank order."""

    asked: str | None
    rows: tuple[str, ...]

    @property
    def k(self) -> int:
        """Rows of every arm that chooses."""
        return len(self.rows)

    @property
    def name(self) -> str:
        """As it is written in reports."""
        return self.asked or f"{self.k} rows"


@dataclass(frozen=True)
class Arm:
    """A way to choose. drawn: anew for every seed. sized: gives as many rows as the run's selection has."""

    choose: Chooser
    about: str
    drawn: bool = False
    sized: bool = True


def _selected(pool: Pool, budget: Budget, seed: int) -> Sequence[str]:
    passes = pool.run.summary["ledger"]["teacher_passes"]
    pool.costs.setdefault("selected", {})["teacher_passes"] = passes
    return budget.rows


def _random(pool: Pool, budget: Budget, seed: int) -> Sequence[str]:
    return random_ids(pool.ids, budget.k, seed)


def _stratified(pool: Pool, budget: Budget, seed: int) -> Sequence[str]:
    return stratified_ids(pool.ids, pool.rows.sources, budget.k, seed)


def _longest(pool: Pool, budget: Budget, seed: int) -> Sequence[str]:
    return longest_ids(pool.ids, pool.rows.length, budget.k)


def _similar(name: str) -> Chooser:
    """Return what chooses by a similarity that is free, under the run's objective."""
    return lambda pool, budget, seed: pool.run.similar_ids(name, budget.k)


def _teacher(pool: Pool, budget: Budget, seed: int) -> Sequence[str]:
    return teacher_ids(pool, budget.asked)


def _small_teacher(pool: Pool, budget: Budget, seed: int) -> Sequence[str]:
    return small_teacher_ids(pool, budget.k)


def _rds(pool: Pool, budget: Budget, seed: int) -> Sequence[str]:
    return rds_ids(pool, budget.k)


def _full(pool: Pool, budget: Budget, seed: int) -> Sequence[str]:
    return pool.ids


def _none(pool: Pool, budget: Budget, seed: int) -> Sequence[str]:
    return ()


ARMS: Mapping[str, Arm] = {
    "selected": Arm(_selected, "the run's selection"),
    "teacher": Arm(_teacher, "the same objective on the full teacher's labels of all pairs"),
    "small-teacher": Arm(_small_teacher, "a run of its own with labels of a smaller model"),
    "random": Arm(_random, "drawn uniformly, anew for every seed", drawn=True),
    "stratified": Arm(_stratified, "drawn in proportion by source, anew for every seed", drawn=True),
    "longest": Arm(_longest, "the longest responses"),
    "embedding": Arm(_similar("embedding"), "the same objective on cosines of embeddings alone"),
    "hidden": Arm(_similar("hidden"), "the same objective on cosines of a probe's hidden states alone"),
    "output": Arm(_similar("output"), "the same objective on cosines of a probe's output gradients alone"),
    "sum": Arm(_similar("sum"), "the same objective on the sum of all free similarities of a probe"),
    "rds": Arm(
        _rds, "RDS+: the target set's rows, or the pool's, take in turn what is nearest in the model's hidden states"
    ),
    "full": Arm(_full, "every row of the pool", sized=False),
    "none": Arm(_none, "no row: the model as it is", sized=False),
}
"""Name -> arm, in the order of reports."""


def choose(pool: Pool, name: str, budget: Budget, seed: int) -> tuple[str, ...]:
    """Return the rows of an arm. Raises InfeasibleError where the pool has fewer, and what the arm's own labels raise."""
    arm = ARMS[name]
    if arm.sized:
        check_count(budget.k, len(pool.ids))
    return tuple(arm.choose(pool, budget, seed))
