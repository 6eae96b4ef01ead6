"""Similarities that are free: what a selection by them alone would be stands beside every selection, as a control.

Of embeddings alone; of the map in the package where MiniLM made them (`student.pretrained_map`); and where a probe asked the
teacher's model about each row, of what it found: hidden states, gradients at the output, and the sum of all (method.md 2). They
take the place of utilities under the run's own objective; a row is no source of its own, as with every teacher. RDS+ (arXiv
2503.01807) is a rule of its own: by hidden states with weights that rise by the position, targets take rows in turn, whatever the
run's objective is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from nncift.core.arrays import Floats
from nncift.core.pairs import UtilityMatrix
from nncift.core.seeds import generator
from nncift.models.views import HIDDEN, OUTPUT, TEXT, Views, centre_of, unit
from nncift.selection import Given
from nncift.selection.controls import similar_ids, similarities
from nncift.selection.objectives import Reference
from nncift.selection.rules import NO_RULES, Rules
from nncift.student.pretrained_map import PRETRAINED, applies, mapped

EMBEDDING, SUM, RDS = "embedding", "sum", "rds"
NAMES = {TEXT: EMBEDDING, HIDDEN: "hidden", OUTPUT: "output"}
"""View -> name of the control that selects by its cosines."""

OF_TWO_SETS = ("flmi", "flcg", "rr", "max")
"""Objectives that look at what a second set does for each target."""

SAMPLED = 4096
"""Pairs that the spread of a cosine is measured on."""


@dataclass(frozen=True, eq=False)
class FreeSimilarities:
    """Vectors of both axes, whose cosines are the similarities.

    targets, sources: `(n_targets, dim)` and `(n_sources, dim)`, as the student reads them; targets of width 0, a pointwise
    teacher's, stand for the sources themselves. second: `(n_second, dim)` of a second set's rows (see `Reference`), None where
    the objective looks at none. shared: targets and sources are the same rows. subtask_of: each target's subtask, where targets
    have any.
    """

    views: Views
    targets: Floats
    sources: Floats
    shared: bool
    second: Floats | None = None
    subtask_of: Mapping[str, str] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the controls: views, the sum of several, the map in the package and RDS+ where they apply."""
        names = tuple(NAMES[view] for view in self.views.similar if view in NAMES)
        several = (SUM,) if len(names) > 1 else ()
        learned = (PRETRAINED,) if applies(self.views) else ()
        return (*names, *several, *learned, *((RDS,) if HIDDEN in self.views.names else ()))

    def at(self, targets: list[int], sources: list[int]) -> FreeSimilarities:
        """Return the similarities of some targets and sources."""
        across = self.targets if self._pointwise else self.targets[targets]
        return replace(self, targets=across, sources=self.sources[sources])

    def ids(
        self,
        name: str,
        objective: str,
        target_ids: tuple[str, ...],
        source_ids: tuple[str, ...],
        k: int,
        *,
        seed: int = 0,
        rules: Rules = NO_RULES,
    ) -> list[str]:
        """Return `k` sources that an objective takes from a similarity in the place of utilities, under the same rules.

        An objective that looks at a second set sees the similarities to it. For a pointwise teacher, which has no targets, it is
        facility location over the rows themselves. RDS+ always takes rows in turn: for the target set, else for the rows.
        """
        if self._pointwise or objective == "random":
            matrix = self.matrix(name, source_ids, source_ids, rows=self.sources)
            return similar_ids(matrix, "rr" if name == RDS else "fl", k, seed, rules=rules)
        if name == RDS:
            if objective == "flmi" and self.second is not None:
                # There the targets are the pool's rows, and the target set is the second.
                wanted = replace(self, targets=self.second, second=None, shared=False, subtask_of=None)
                named = tuple(f"target {i}" for i in range(len(self.second)))
                return wanted.ids(name, "rr", named, source_ids, k, seed=seed, rules=rules)
            objective = "rr"
        reference = None
        if self.second is not None and objective in OF_TWO_SETS:
            second = tuple(f"second {i}" for i in range(len(self.second)))
            reference = Reference.of(
                similarities(target_ids, second, *self.sides(name, self.targets, self.second), shared=False)
            )
        given = Given(reference, self.subtask_of)
        return similar_ids(self.matrix(name, target_ids, source_ids), objective, k, seed, given=given, rules=rules)

    def matrix(
        self, name: str, target_ids: tuple[str, ...], source_ids: tuple[str, ...], rows: Floats | None = None
    ) -> UtilityMatrix:
        """Return similarities `(n_targets, n_sources)`, the diagonal masked where the axes are the same rows.

        rows: vectors of the targets, where these are the sources themselves.
        """
        sides = self.sides(name, self.targets if rows is None else rows, self.sources)
        return similarities(target_ids, source_ids, *sides, shared=self.shared or rows is not None)

    @property
    def _pointwise(self) -> bool:
        return not self.targets.shape[1]

    def sides(self, name: str, targets: Floats, sources: Floats) -> tuple[Floats, Floats]:
        """Return vectors of both sides whose inner products are the similarity."""
        if name == RDS:
            return unit(self.views.pooled(targets)), unit(self.views.pooled(sources))
        if name == PRETRAINED:
            return mapped(self.views, targets), mapped(self.views, sources)
        if name != SUM:
            view = next(view for view, own in NAMES.items() if own == name)
            return self._unit(view, targets), self._unit(view, sources)
        both: tuple[list[Floats], list[Floats]] = [], []
        for view in self.views.similar:
            for side, vectors in zip(both, (targets, sources), strict=True):
                side.append(self._unit(view, vectors) * np.float32(self._spread[view] ** -0.5))
        return np.concatenate(both[0], axis=1), np.concatenate(both[1], axis=1)

    def _unit(self, view: str, vectors: Floats) -> Floats:
        return unit(self.views.take(vectors, view), self._centres[view])

    @cached_property
    def _centres(self) -> dict[str, Floats]:
        """What is taken off each view: see `centre_of`; the mean of hidden states is that of all rows of both axes."""
        axes = (self.sources,) if self.shared or self._pointwise else (self.targets, self.sources)
        return {view: centre_of(view, [self.views.take(axis, view) for axis in axes]) for view in self.views.similar}

    @cached_property
    def _spread(self) -> dict[str, float]:
        """The standard deviation of each view's cosine over random pairs: in the sum, each counts in units of it."""
        random = generator(0, "select", "similarities")
        across = self.sources if self._pointwise else self.targets
        t, s = random.integers(len(across), size=SAMPLED), random.integers(len(self.sources), size=SAMPLED)
        apart = t != s if self.shared or self._pointwise else np.ones(SAMPLED, bool)
        found = {}
        for view in self.views.similar:
            both = self._unit(view, across[t[apart]]), self._unit(view, self.sources[s[apart]])
            found[view] = float(np.einsum("nd,nd->n", *both).std()) if apart.any() else 0.0
        return {view: spread or 1.0 for view, spread in found.items()}
