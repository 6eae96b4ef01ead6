"""Selections judged by the full teacher: skill of a run's selection and of everything free, under the run's own objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nncift.core.pairs import LabelledPairs, UtilityMatrix
from nncift.core.progress import Progress, silent
from nncift.core.result_types import JsonObject, Record
from nncift.data import Examples
from nncift.errors import UsageError
from nncift.evaluation.metrics import skill
from nncift.labels import SCORE
from nncift.labels.vectors import VectorFiles
from nncift.runs.finished import FinishedRun
from nncift.runs.true_matrix import true_matrix
from nncift.selection import Problem, pose
from nncift.selection.constraints import Constraints, ResolvedConstraints
from nncift.selection.controls import random_ids
from nncift.selection.objectives import Reference
from nncift.selection.probe_controls import EMBEDDING, FreeSimilarities
from nncift.selection.problem import KNOWS_EXISTING, DenseProblem, GraphProblem, build
from nncift.selection.rules import NO_RULES
from nncift.selection.solve import choose_on, solve
from nncift.selection.utilities import Existing, Utilities
from nncift.stages.check import prepare_all
from nncift.stages.embed_existing import VECTORS as EXISTING
from nncift.stages.embed_existing import load_existing
from nncift.stages.inputs import read_existing
from nncift.teachers import RowTeacher, Teacher

BUDGETS = (0.01, 0.05, 0.1, 0.3)
RANDOM_DRAWS = 20


def truth_of(
    run: FinishedRun, folder: Path | None = None, *, device: str = "auto", progress: Progress = silent
) -> UtilityMatrix:
    """Return all pairs' utilities by the run's teacher, computed once and resumable.

    folder: where they are kept, so that runs with one teacher and pool can share them; by default in the run.
    """
    return _true(
        run,
        teacher_of(run, device),
        run.rows.examples,
        folder or run.base / "truth",
        progress,
        run.rows.target_examples,
    )


def teacher_of(run: FinishedRun, device: str) -> Teacher | RowTeacher:
    """Return the run's teacher. Raises UsageError where the call does not permit what it takes."""
    from nncift.teachers import registry

    run.check_models(encoder=registry.takes(run.settings.teacher, "encoder"))
    settings = run.settings
    return registry.create(
        settings, device, seed=settings.seed, encoder=settings.encoder, workspace=run.base / "labels" / "teacher"
    )


def taught(
    run: FinishedRun,
    sources: Examples,
    targets: Examples,
    folder: Path,
    *,
    device: str = "auto",
    progress: Progress = silent,
) -> UtilityMatrix:
    """Return the utilities of some rows of a run's pool for some targets by the run's teacher, kept in a folder."""
    return _true(run, teacher_of(run, device), sources, folder, progress, targets)


def judged_objective(run: FinishedRun) -> str:
    """Return the objective that a run's selection is judged by: its own; a random selection's is coverage."""
    objective = run.result.selection.objective
    return "fl" if objective == "random" else objective


def true_problem(
    run: FinishedRun, objective: str, true: UtilityMatrix, *, device: str = "auto", progress: Progress = silent
) -> DenseProblem:
    """Return what an objective would choose from if every pair were labelled.

    true: `truth_of` the run. `flmi`, and rows that were trained on already, need more pairs, which are labelled here and kept in
    the run. Raises UsageError where the rows that were trained on already are not at hand.
    """
    utilities, sources = utilities_of(run, objective), run.rows.ids
    matrix, similar = _over(true, sources), utilities.similarities()
    if not run.pointwise:
        similar = replace(similar, targets=VectorFiles(run.base).on(matrix.target_ids, sources).targets)
    if objective == "flmi":
        return _of_the_pool(run, matrix, similar, device, progress)
    reference, existing = None, utilities.existing
    if existing is not None:
        reference = _existing_serves(run, matrix, device, progress)
        similar = replace(similar, second=existing.vectors)
    return DenseProblem(matrix, reference, similar)


def check_existing(run: FinishedRun, objective: str) -> None:
    """Raise UsageError where an objective looks at rows that were trained on already, and their files are not known."""
    looked_at = objective == "flcg" or (objective in KNOWS_EXISTING and (run.base / EXISTING).exists())
    if looked_at and not run.settings.existing:
        raise UsageError(
            f"this run's objective, {objective}, looks at rows that were trained on already. They were not given as files, a run "
            "keeps none of them, and so the full teacher cannot be asked about them; run with --existing FILE, or select again "
            "with another objective (nncift select DIR --objective fl)"
        )


def _of_the_pool(
    run: FinishedRun, matrix: UtilityMatrix, similar: FreeSimilarities, device: str, progress: Progress
) -> DenseProblem:
    """Return the pool against itself, and what the target set's rows do for it (`flmi`)."""
    teacher, pool, wanted = teacher_of(run, device), run.rows.examples, run.rows.target_examples
    if wanted is None:
        raise UsageError("flmi is about a target set, and this run has none")
    values = _over(_true(run, teacher, pool, run.base / "truth" / "pool", progress), run.rows.ids)
    served = _true(run, teacher, wanted, run.base / "truth" / "target", progress, pool)
    alike = FreeSimilarities(similar.views, similar.sources, similar.sources, shared=True, second=similar.targets)
    if values.target_ids != run.rows.ids:
        order = {item: at for at, item in enumerate(run.rows.ids)}
        rows = similar.sources[[order[item] for item in values.target_ids]]
        alike = replace(alike, targets=rows)
    return DenseProblem(values, Reference.of(served), alike, matrix.mean_per_source())


def _existing_serves(run: FinishedRun, matrix: UtilityMatrix, device: str, progress: Progress) -> Reference:
    """Return what the rows that were trained on already do for each target, by the teacher."""
    rows = read_existing(run.settings)
    if rows is None:
        raise UsageError("this run has no rows that were trained on already")
    once = {row.content_hash: row for row in sorted(rows, key=lambda row: row.content_hash)}
    named = Examples(tuple(replace(row, id=f"existing:{row.id}") for row in once.values()))
    targets = run.rows.examples if run.rows.target_examples is None else run.rows.target_examples
    served = _true(run, teacher_of(run, device), named, run.base / "truth" / "existing", progress, targets)
    place = {item: at for at, item in enumerate(served.target_ids)}
    found = Reference.of(served)
    return Reference(matrix.target_ids, found.best[[place[item] for item in matrix.target_ids]], found.low)


def _true(
    run: FinishedRun,
    teacher: Teacher | RowTeacher,
    sources: Examples,
    folder: Path,
    progress: Progress,
    targets: Examples | None = None,
) -> UtilityMatrix:
    if isinstance(teacher, RowTeacher):
        # The pool comes first, as in the run: LESS draws its warm-up from it.
        prepare_all(teacher, run.rows.examples, run.rows.target_examples)
    run.check_same(teacher.describe())
    return true_matrix(teacher, sources, folder, progress, targets=targets)


def existing_of(run: FinishedRun, objective: str) -> Existing | None:
    """Return the vectors of the rows that were trained on already, where the run has any and the objective looks at them."""
    return load_existing(run.base) if objective in KNOWS_EXISTING and (run.base / EXISTING).exists() else None


def utilities_of(run: FinishedRun, objective: str) -> Utilities:
    """Return what is known and predicted of a run's pairs, as an objective sees them."""
    axes = next(iter(run.labels.values()))
    vectors, contents = VectorFiles(run.base).on(axes.target_ids, axes.source_ids), run.rows.content
    return Utilities(run.student, vectors, run.labels, contents, existing_of(run, objective), run.subtask_of)


def predicted_problem(run: FinishedRun, objective: str) -> DenseProblem | GraphProblem:
    """Return what the run itself selects from: known labels exact, the rest predicted."""
    return build(utilities_of(run, objective), run.settings.model_copy(update={"objective": objective}))


@dataclass(frozen=True)
class BudgetSkill:
    """Skill under the truth at a budget. free: of what every similarity that costs no label selects, by its name."""

    budget: float
    rows: int
    skill: float | None
    free: Mapping[str, float | None]

    def to_json(self) -> JsonObject:
        """Return the figures, one `..._skill` for each similarity."""
        names = {"embeddings" if name == EMBEDDING else name: value for name, value in self.free.items()}
        free = {f"{name}_skill": value for name, value in names.items()}
        return {"budget": self.budget, "rows": self.rows, "skill": self.skill, **free}


@dataclass(frozen=True)
class IntervalCoverage(Record):
    """The share of unlabelled pairs that lie within the run's interval around their prediction; None without an interval."""

    level: float | None
    covered: float | None
    pairs: int


@dataclass(frozen=True)
class FullTeacherResult(Record):
    """Selections judged by the full teacher. value, skill: by way to select; passes: of the full teacher."""

    objective: str
    passes: int
    selected: int
    value: Mapping[str, float]
    skill: Mapping[str, float | None]
    skill_by_budget: tuple[BudgetSkill, ...]
    coverage: IntervalCoverage


def against_truth(run: FinishedRun, *, device: str = "auto", progress: Progress = silent) -> FullTeacherResult:
    """Return skills under the true matrix, and how many of the unlabelled pairs lie within their interval.

    Everything is chosen under the run's own rules, by its own objective. Raises the errors of the teacher, and UsageError where
    the rows that were trained on already are not at hand.
    """
    objective = judged_objective(run)
    check_existing(run, objective)
    true = truth_of(run, device=device, progress=progress)
    dense = true_problem(run, objective, true, device=device, progress=progress)
    rows = run.rows
    settled = Constraints.read(run.settings).settle(rows, run.vectors(rows.ids))
    rest = dense.without(settled.removed)
    own = float(pose(rest.matrix, objective, rest.given).value(run.chosen))
    by_budget = skill_by_budget(run, dense, objective, BUDGETS)
    # The matrix is gone after this.
    record = solve(rows, settled, dense, objective=objective, seed=run.settings.seed).record
    controls = {name: value for name, value in record.controls.items() if value is not None}
    if run.pointwise:
        controls = {name: value for name, value in controls.items() if name not in dense.similar.names}
    values = {
        "this run": own,
        **{"embeddings" if name == EMBEDDING else name: value for name, value in controls.items()},
        "full teacher": record.value,
    }
    passes = len(rows.ids) if true.target_ids == SCORE else len(true.target_ids) * len(true.source_ids)
    skills = {name: skill(value, values["random"], values["full teacher"]) for name, value in values.items()}
    return FullTeacherResult(objective, passes, len(run.chosen), values, skills, by_budget, _coverage(run, true))


def skill_by_budget(
    run: FinishedRun, dense: DenseProblem, objective: str, shares: Sequence[float]
) -> tuple[BudgetSkill, ...]:
    """Return the skill under the truth of what the run's utilities and free similarities select, without the run's rules.

    dense: `true_problem` of the run. Skill by budget: of the student, of `embeddings`, and of every similarity of a probe.
    """
    problem, ids, seed = pose(dense.matrix, objective, dense.given), dense.matrix.source_ids, run.settings.seed
    predicted = predicted_problem(run, objective)
    given = (
        None if isinstance(predicted, GraphProblem) else pose(predicted.matrix, objective, predicted.given, reuse=True)
    )
    found = []
    for budget in shares:
        k = max(1, round(budget * len(ids)))
        random, full = _random(problem, ids, k), float(problem.value(list(problem.choose(k, seed).ids)))
        if isinstance(predicted, GraphProblem):
            chosen = choose_on(predicted, predicted.graph, ResolvedConstraints(k, NO_RULES, {}), seed)[0].ids
        elif given is not None:
            chosen = given.choose(k, seed).ids
        alone = {
            name: problem.value(dense.similar_ids(name, objective, k, seed))
            for name in (() if run.pointwise else dense.similar.names)
        }
        free = {name: skill(float(value), random, full) for name, value in alone.items()}
        found.append(BudgetSkill(budget, k, skill(float(problem.value(list(chosen))), random, full), free))
    return tuple(found)


def _coverage(run: FinishedRun, true: UtilityMatrix) -> IntervalCoverage:
    """Return the share of unlabelled pairs that lie within the run's interval around their prediction."""
    record = run.fidelity.pair_interval
    width = record.half_width
    if width is None:
        return IntervalCoverage(record.level, None, 0)
    known = {
        (pairs.target_ids[t], pairs.source_ids[s])
        for pairs in run.labels.values()
        for t, s in zip(pairs.target, pairs.source, strict=True)
    }
    t, s = np.nonzero(np.isfinite(true.values))
    fresh = np.array([(true.target_ids[a], true.source_ids[b]) not in known for a, b in zip(t, s, strict=True)], bool)
    t, s = t[fresh].astype(np.int32), s[fresh].astype(np.int32)
    pairs = LabelledPairs(true.target_ids, true.source_ids, t, s, true.values[t, s])
    inside = np.abs(pairs.value - run.predicted(pairs)) <= width
    return IntervalCoverage(record.level, float(inside.mean()) if len(inside) else None, len(inside))


def _random(problem: Problem, ids: tuple[str, ...], k: int) -> float:
    return float(np.mean([problem.value(random_ids(ids, k, draw)) for draw in range(RANDOM_DRAWS)]))


def _over(matrix: UtilityMatrix, source_ids: tuple[str, ...]) -> UtilityMatrix:
    """Return a matrix with its sources in another order."""
    place = {item: at for at, item in enumerate(matrix.source_ids)}
    columns = matrix.values[:, [place[item] for item in source_ids]]
    return UtilityMatrix(matrix.target_ids, source_ids, np.asfortranarray(columns))
