"""The coverage objectives (method.md 4), each a choice of floor, cap and bonus over one similarity matrix.

Only one number per target is needed of a second set: the highest utility that any of its rows has for the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nncift.core.pairs import UtilityMatrix
from nncift.errors import UsageError
from nncift.selection import NOTHING, Given, Subset, kernels
from nncift.selection.coverage import Coverage
from nncift.selection.objectives import Reference, Scale, by_id, similarity
from nncift.selection.rules import NO_RULES, Rules


class FacilityLocation:
    """`fl`: sum_t max_{s in A} sim[t, s]; the rows that together serve every target best."""

    def pose(self, matrix: UtilityMatrix, given: Given = NOTHING, *, reuse: bool = False) -> Coverage:
        """Return the problem over all targets of the matrix; a reference changes nothing."""
        return Coverage.plain("fl", similarity(matrix, reuse=reuse), by_id(matrix, given.score))


@dataclass(frozen=True)
class MutualInformation:
    """`flmi`: sum_t min(max_{s in A} sim[t, s], eta max_{q in T} sim[t, q]); rows count as far as a target set T serves them."""

    eta: float = 1.0

    def pose(self, matrix: UtilityMatrix, given: Given = NOTHING, *, reuse: bool = False) -> Coverage:
        """Return the problem; reference: what T does for each target. Raises UsageError without one."""
        known = needed(given.reference, "flmi", "the target set")
        scale = Scale.of(matrix, references=(known,))
        # Of the utilities themselves: what is capped is no score.
        score = matrix.mean_per_source() if given.score is None else given.score
        ordered = by_id(matrix, score)
        sim = similarity(matrix, scale, reuse=reuse)
        cap = _scaled(known.levels(sim.target_ids, scale), self.eta)
        columns = sim.levels.T
        np.minimum(columns, cap, out=columns)
        return Coverage.plain("flmi", sim, ordered)


@dataclass(frozen=True)
class TargetMutualInformation:
    """`fl2mi`: sum_{q in T} max_{s in A} sim[q, s] + eta sum_{s in A} max_{q in T} sim[q, s], the matrix being T by pool."""

    eta: float = 1.0

    def pose(self, matrix: UtilityMatrix, given: Given = NOTHING, *, reuse: bool = False) -> Coverage:
        """Return the problem; a reference changes nothing."""
        sim = similarity(matrix, reuse=reuse)
        best = sim.levels.max(axis=0, initial=0).astype(np.int64)
        bonus = best if self.eta == 1.0 else np.round(best * self.eta).astype(np.int64)
        nothing = np.zeros(len(sim.target_ids), np.int32)
        return Coverage("fl2mi", sim, nothing, bonus, by_id(matrix, given.score))


@dataclass(frozen=True)
class ConditionalGain:
    """`flcg`: sum_t max(max_{s in A} sim[t, s] - nu max_{e in E} sim[t, e], 0); what a set E that is there already lacks."""

    nu: float = 1.0

    def pose(self, matrix: UtilityMatrix, given: Given = NOTHING, *, reuse: bool = False) -> Coverage:
        """Return the problem; reference: what E does for each target. Raises UsageError without one."""
        known = needed(given.reference, "flcg", "the existing set")
        scale = Scale.of(matrix, references=(known,))
        sim = similarity(matrix, scale, reuse=reuse)
        floor = _scaled(known.levels(sim.target_ids, scale), self.nu)
        nothing = np.zeros(len(sim.source_ids), np.int64)
        return Coverage("flcg", sim, floor, nothing, by_id(matrix, given.score))


@dataclass(frozen=True, eq=False)
class _Draw:
    """A problem that is answered by chance."""

    coverage: Coverage

    def choose(self, k: int, seed: int = 0, rules: Rules = NO_RULES) -> Subset:
        """Return `k` sources drawn without replacement."""
        return self.coverage.drawn(k, seed, rules)

    def value(self, ids: Sequence[str]) -> float:
        """Return the value under facility location."""
        return self.coverage.value(ids)


class RandomControl:
    """`random`: chooses at random, and is valued like facility location so that both can be compared."""

    def pose(self, matrix: UtilityMatrix, given: Given = NOTHING, *, reuse: bool = False) -> _Draw:
        """Return the problem; a reference changes nothing."""
        return _Draw(Coverage.plain("random", similarity(matrix, reuse=reuse)))


def needed(reference: Reference | None, objective: str, what: str) -> Reference:
    """Return what a second set does. Raises UsageError where it is not there."""
    if reference is None:
        raise UsageError(f"objective {objective} needs to know how well {what} serves each target; none was given")
    return reference


def _scaled(levels: kernels.Levels, factor: float) -> kernels.Levels:
    if factor == 1.0:
        return levels
    return np.minimum(np.round(levels * factor), np.iinfo(np.int32).max).astype(np.int32)
