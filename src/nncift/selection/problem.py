"""From a trained student to what an objective chooses from: the utilities, and how well a second set serves each target.

Known labels are exact and the rest is predicted (method.md 1), also for rows of a second set that the pool has too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from nncift.config import RunSettings, SelectSettings
from nncift.core.arrays import Doubles
from nncift.core.pairs import UtilityMatrix
from nncift.errors import UsageError
from nncift.selection import COVERING, Given
from nncift.selection.graphs import graph_of, mean_scores
from nncift.selection.objectives import Reference
from nncift.selection.probe_controls import FreeSimilarities
from nncift.selection.rules import NO_RULES, Rules
from nncift.selection.sparse import Graph
from nncift.selection.utilities import Existing, Utilities
from nncift.student.score import all_pairs, best_per_target

KNOWS_EXISTING = ("flcg", "rr", "max")
"""Objectives that look at rows that were trained on already."""
ON_GRAPH = ("fl", "rr", "max")
"""Objectives that can select on a graph of neighbours."""
IN_TURN = ("rds", "less", "ekfac", "logra", "trackstar")
"""Teachers by whose values targets take rows in turn, as published targeted selections do. Of one kind of target a mean over
all may do as well; of several it takes the rows of one kind alone, and trains worse than random rows: so found by RDS+
(docs/results/real.md), and not asked of the others."""


@dataclass(frozen=True, eq=False)
class DenseProblem:
    """What is chosen from: utilities, what a second set does for each target (where the objective needs it), similarities.

    Where targets and sources are the same rows, a row that is removed is no target either. score: mean utility of each source
    over the run's targets; None = the matrix's own means.
    """

    matrix: UtilityMatrix
    reference: Reference | None
    similar: FreeSimilarities
    score: Doubles | None = None

    def without(self, removed: Collection[str]) -> DenseProblem:
        """Return the problem without some rows."""
        if not removed:
            return self
        matrix, reference = self.matrix, self.reference
        sources = [i for i, item in enumerate(matrix.source_ids) if item not in removed]
        targets = [i for i, item in enumerate(matrix.target_ids) if not self.similar.shared or item not in removed]
        target_ids = tuple(matrix.target_ids[i] for i in targets)
        if reference is not None:
            place = {item: i for i, item in enumerate(reference.target_ids)}
            reference = Reference(target_ids, reference.best[[place[item] for item in target_ids]], reference.low)
        values = matrix.values.T[np.ix_(sources, targets)].T
        rest = UtilityMatrix(target_ids, tuple(matrix.source_ids[i] for i in sources), values)
        score = None if self.score is None else self.score[sources]
        return DenseProblem(rest, reference, self.similar.at(targets, sources), score)

    @property
    def given(self) -> Given:
        """What the objective sees beside the matrix."""
        return Given(self.reference, self.similar.subtask_of, self.score)

    def similar_ids(self, name: str, objective: str, k: int, seed: int = 0, rules: Rules = NO_RULES) -> list[str]:
        """Return `k` sources that an objective takes from a similarity in the place of utilities, under the same rules."""
        matrix = self.matrix
        return self.similar.ids(name, objective, matrix.target_ids, matrix.source_ids, k, seed=seed, rules=rules)


@dataclass(frozen=True, eq=False)
class GraphProblem:
    """What is chosen from where all pairs would not fit, rows that are removed first left out.

    each, recall: neighbours of every target that the graph was made of, and the share of the true nearest that were found.
    score: means of all rows, estimated where targets are many, the removed ones too. alike: graphs of similarities in the
    place of utilities, for the controls; None for one that was not looked for.
    """

    graph: Graph
    each: int
    recall: float
    score: Doubles
    alike: Mapping[str, Graph | None]
    objective: str = "fl"
    subtask_of: Mapping[str, str] | None = None


def build(utilities: Utilities, settings: RunSettings, removed: Collection[str] = ()) -> DenseProblem | GraphProblem:
    """Return what the objective of some settings chooses from: the whole matrix, or with `neighbours` a graph.

    removed: rows that are removed first; a graph is made without them. Raises DataError where predictions are not finite.
    """
    utilities.check_finite()
    if settings.neighbours is not None:
        return _on_graph(utilities, settings, removed)
    return build_dense(utilities, str(settings.objective))


def build_dense(utilities: Utilities, objective: str, *, scored: bool = True) -> DenseProblem:
    """Return the whole matrix, for predictions that are finite. Objectives of coverage see the student's tail, others do not.

    `flmi` looks at the pool's rows as targets, whose utilities are all predicted where the run has a target set of its own.
    scored: see `Utilities.matrix`.
    """
    similar = utilities.similarities()
    if objective == "flmi":
        # Scores are means over the run's targets, whatever the objective looks at.
        plain = utilities.matrix(last=False)
        return _aimed(utilities, similar, plain.matrix.mean_per_source() if plain.score is None else plain.score)
    if objective in COVERING:
        utilities = utilities.for_coverage()
    found, existing, reference = utilities.matrix(scored=scored), utilities.existing, None
    if objective in KNOWS_EXISTING and existing is not None:
        reference = _already(utilities, found.matrix, existing)
        similar = replace(similar, second=existing.vectors)
    return DenseProblem(found.matrix, reference, similar, found.score)


def _on_graph(utilities: Utilities, settings: RunSettings, removed: Collection[str]) -> GraphProblem:
    """Return a graph of the pool's rows, less the rows that are removed first, and the scores of all rows."""
    objective, seed = str(settings.objective or "fl"), settings.seed
    score = mean_scores(utilities, seed)
    used = utilities.for_coverage() if objective in COVERING else utilities
    keep = np.array([place for place, item in enumerate(used.source_ids) if item not in removed], np.int64)
    k = min(settings.neighbours or 0, len(keep) if not used.shared else max(len(keep) - 1, 1))
    found = graph_of(used, keep, k, seed)
    return GraphProblem(found.graph, k, found.recall, score, found.alike, objective, used.subtask_of)


def _aimed(utilities: Utilities, similar: FreeSimilarities, score: Doubles) -> DenseProblem:
    """Return the pool against itself, and how well the target set's rows serve each of its rows."""
    covering, pool, wanted = utilities.student.for_coverage(), similar.sources, similar.targets
    ids, calculate = utilities.source_ids, utilities.calculate
    as_targets = covering.project_targets(pool)
    best, low = best_per_target(covering, as_targets, covering.project_sources(wanted), calculate=calculate)
    values = all_pairs(covering, as_targets, covering.project_sources(pool), calculate)
    np.fill_diagonal(values, np.nan)
    reference = Reference(ids, best.astype(np.float64), low)
    alike = FreeSimilarities(similar.views, pool, pool, shared=True, second=wanted)
    return DenseProblem(UtilityMatrix(ids, ids, values), reference, alike, score)


def _already(utilities: Utilities, matrix: UtilityMatrix, existing: Existing) -> Reference:
    """Return how well the existing rows serve each target; one that the pool has too serves as the pool's row does."""
    student, vectors = utilities.student, utilities.vectors
    place = {content: s for s, content in enumerate(utilities.contents)}
    twins = sorted({place[content] for content in existing.contents if content in place})
    # A copy of a target serves it, though the pool's row itself is masked there: that entry alone is predicted.
    others = [i for i, content in enumerate(existing.contents) if content not in place]
    as_targets = student.project_targets(vectors.targets)
    best, low = best_per_target(
        student, as_targets, student.project_sources(existing.vectors[others]), calculate=utilities.calculate
    )
    target_place = {item: t for t, item in enumerate(matrix.target_ids)}
    for s in twins:
        column = matrix.values[:, s].astype(np.float32)
        own = target_place.get(matrix.source_ids[s])
        if own is not None:
            source = student.project_sources(vectors.sources[[s]])
            column[own] = student.predict_block(as_targets[[own]], source)[0, 0]
        best = np.fmax(best, column)
        low = min(low, float(np.nanmin(column, initial=np.inf)))
    return Reference(matrix.target_ids, best.astype(np.float64), low)


@dataclass(frozen=True)
class Sets:
    """What an objective can look at. pointwise: scores alone; existing: rows that were trained on already."""

    pointwise: bool
    target: bool
    existing: bool


def default_objective(sets: Sets, teacher: str = "") -> str:
    """Return the objective that fits the sets at hand, and the teacher (method.md 4)."""
    if sets.pointwise:
        return "topk"
    if sets.existing:
        return "flcg"
    if sets.target:
        return "rr" if teacher in IN_TURN else "fl2mi"
    return "fl"


def check_sets(objective: str, sets: Sets) -> None:
    """Raise UsageError where an objective lacks the set that it is about, or has one that it would not look at."""
    if sets.pointwise and objective not in ("topk", "random"):
        raise UsageError(f"--objective {objective} needs utilities of pairs, and this teacher gives scores; use topk")
    if objective in ("flmi", "fl2mi") and not sets.target:
        raise UsageError(f"--objective {objective} is about a target set; give --target FILE, or use fl")
    if objective == "flcg" and not sets.existing:
        raise UsageError("--objective flcg is about rows that were trained on already; give --existing FILE, or use fl")
    if sets.existing and objective not in KNOWS_EXISTING:
        raise UsageError(
            f"--existing was given, and --objective {objective} does not look at it; use flcg, rr or max, or leave it out"
        )


def check_graph(settings: SelectSettings, objective: str, sets: Sets, *, subtasks: bool) -> None:
    """Raise UsageError where a selection on a graph of neighbours is asked for what only the whole matrix gives."""
    if settings.neighbours is None:
        return
    if objective not in ON_GRAPH or sets.pointwise:
        raise UsageError(
            f"--neighbours selects by {', '.join(ON_GRAPH)} from utilities of pairs, and the objective is {objective}; leave it "
            "out"
        )
    if sets.existing:
        raise UsageError("--neighbours does not look at rows that were trained on already; leave it or --existing out")
    if subtasks and objective == "max":
        raise UsageError(
            "--neighbours knows the best rows of each target, and no means over subtasks; use --objective rr, or leave it out"
        )
