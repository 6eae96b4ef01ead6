"""`nncift evaluate`: how good a finished run's student is, and what more or fewer labels would have given.

Quadrants, baselines and intervals are those of the run. The learning curve trains the same student again on parts of the labels
that exist, and costs no pass of the teacher's model. The full teacher, where it is asked for, gives the true matrix, and with it
the skill of the run's selection and the coverage of its intervals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nncift.errors import UsageError
from nncift.evaluate.gate import choose
from nncift.evaluate.metrics import r2, skill, spearman
from nncift.evaluate.truth import true_matrix
from nncift.files import write_json
from nncift.finished import FinishedRun
from nncift.fitting import Candidate
from nncift.pairs import LabelledPairs, UtilityMatrix
from nncift.progress import Progress, silent
from nncift.rows import SCORE
from nncift.seeds import derive, generator
from nncift.select import pose
from nncift.select.baselines import embedding_ids, random_ids
from nncift.student.free import free_students
from nncift.student.networks import Lesson, network
from nncift.vectors import VectorFiles, Vectors

FILE = "evaluation.json"
SHARES = (0.125, 0.25, 0.5, 1.0)
LEAST = 50
"""Fewer labels than this are no point of a curve."""

BUDGETS = (0.01, 0.05, 0.1, 0.3)
RANDOM_DRAWS = 20


def evaluate(
    path: Path, *, full_teacher: bool = False, progress: Progress = silent, device: str = "auto"
) -> dict[str, Any]:
    """Evaluate a finished run, write `evaluation.json` beside its files, and return what is in it.

    full_teacher: label every pair, which costs `full_teacher_passes`; resumable. device: of the teacher's model.
    Raises the errors of `nncift.errors`.
    """
    run = FinishedRun(path)
    vectors = VectorFiles(path).on(*_axes(run.labels))
    told: dict[str, Any] = {
        "run": str(path),
        **{
            key: run.fidelity.get(key)
            for key in ("fidelity", "baselines", "differences", "gate", "pair_interval", "verdicts")
        },
        "curve": learning_curve(run, vectors, progress),
        "full_teacher": None,
    }
    if full_teacher:
        told["full_teacher"] = _against_truth(run, vectors, truth_of(run, device=device, progress=progress))
    write_json(path / FILE, told)
    return told


def learning_curve(run: FinishedRun, vectors: Vectors, progress: Progress = silent) -> list[dict[str, Any]]:
    """Return measures on unseen items for students trained on growing parts of the run's labels, drawn by the run's seed."""
    settings, labels = run.settings, run.labels
    every = labels["train"].present()
    order = generator(settings.seed, "learning curve").permutation(len(every))
    sizes = sorted({round(share * len(every)) for share in SHARES if round(share * len(every)) >= LEAST} | {len(every)})
    found = []
    with progress("training on parts of the labels", len(sizes)) as advance:
        for size in sizes:
            train = every.take(np.sort(order[:size]))
            lesson = Lesson(train, labels["validation"], vectors.targets, vectors.sources, vectors.views)
            learned = network(settings.student).learn(
                lesson, recipe=settings.recipe, seed=derive(settings.seed, "student"), advance=lambda step: None
            )
            made = Candidate.of(settings.student, learned, vectors)
            candidates = {"student": made}
            candidates |= {name: Candidate.of("towers", free, vectors) for name, free in free_students(lesson).items()}
            found.append({"labels": size, **_measured(candidates, labels, float(train.value.mean()), settings.seed)})
            advance(1)
    return found


def _measured(
    candidates: Mapping[str, Candidate], labels: Mapping[str, LabelledPairs], train_mean: float, seed: int
) -> dict[str, Any]:
    """Return R^2 and Spearman on q4 by candidate, and skill on the held-out blocks."""
    test, blocks = labels["test"].present(), [labels[name].present() for name in ("validation", "test")]
    predictions = {name: [of.predict(block) for block in blocks] for name, of in candidates.items()}
    gate = choose(blocks, predictions, derive(seed, "gate"))
    truth, once = test.value.astype(np.float64), np.ones(len(test))
    found: dict[str, Any] = {}
    for name, of in candidates.items():
        guess = of.predict(test).astype(np.float64)
        known = gate.skills.get(name)
        found[name] = {
            "r2": _number(r2(truth, guess, train_mean, once)), "spearman": _number(spearman(truth, guess, once)),
            "skill": None if known is None else known.skill, "skill_error": None if known is None else known.error,
        }  # fmt: skip
    return found


def truth_of(
    run: FinishedRun, folder: Path | None = None, *, device: str = "auto", progress: Progress = silent
) -> UtilityMatrix:
    """Return all pairs' utilities by the run's teacher, computed once and resumable.

    folder: where they are kept, so that runs with one teacher and pool can share them; by default in the run.
    """
    from nncift.teachers import registry

    settings = run.settings
    teacher = registry.create(
        settings, device, seed=settings.seed, encoder=settings.encoder, workspace=run.path / "labels" / "teacher"
    )
    return true_matrix(teacher, run.rows.pool, folder or run.path / "truth", progress, targets=run.rows.wanted)


def _against_truth(run: FinishedRun, vectors: Vectors, true: UtilityMatrix) -> dict[str, Any]:
    """Return skills under the true matrix, and how many of the unlabelled pairs lie within their interval."""
    objective = str(run.summary["selection"]["objective"])
    if objective not in ("fl", "topk"):
        raise UsageError(
            f"--full-teacher judges selections by fl or topk, and this run's objective is {objective}; select again with one of "
            "them (nncift select DIR --objective fl)"
        )
    problem, ids = pose(true, objective), true.source_ids
    ways = {"this run": list(run.chosen), "embeddings": embedding_ids(ids, run.vectors(ids), len(run.chosen))}
    if run.pointwise:
        ways.pop("embeddings")
    sizes = {"run": len(run.chosen)}
    values: dict[str, Any] = {name: float(problem.value(order)) for name, order in ways.items()}
    values["random"] = _random(problem, ids, sizes["run"])
    values["full teacher"] = float(problem.value(list(problem.choose(sizes["run"], run.settings.seed).ids)))
    skills = {name: skill(value, values["random"], values["full teacher"]) for name, value in values.items()}
    return {
        "objective": objective, "passes": len(true.target_ids) * len(true.source_ids) if true.target_ids != SCORE else len(ids),
        "selected": sizes["run"], "value": values, "skill": skills,
        "skill_by_budget": skill_by_budget(run, true, objective, BUDGETS), "coverage": _coverage(run, true),
    }  # fmt: skip


def skill_by_budget(
    run: FinishedRun, true: UtilityMatrix, objective: str, shares: Sequence[float]
) -> list[dict[str, Any]]:
    """Return the skill under the truth of what the run's matrix and embeddings alone select, without the run's rules."""
    from nncift.fitting import predict

    shared = not run.pointwise and run.rows.targets is None
    student = run.student.for_coverage() if objective == "fl" else run.student
    matrix = predict(student, VectorFiles(run.path).on(*_axes(run.labels)), run.labels, shared=shared).matrix
    problem, given = pose(true, objective), pose(matrix, objective)
    found = []
    for budget in shares:
        k = max(1, round(budget * len(true.source_ids)))
        random, full = _random(problem, true.source_ids, k), float(problem.value(list(problem.choose(k, 0).ids)))
        line = {
            "budget": budget,
            "rows": k,
            "skill": skill(float(problem.value(list(given.choose(k, 0).ids))), random, full),
        }
        if not run.pointwise:
            alone = embedding_ids(true.source_ids, run.vectors(true.source_ids), k)
            line["embeddings_skill"] = skill(float(problem.value(alone)), random, full)
        found.append(line)
    return found


def _coverage(run: FinishedRun, true: UtilityMatrix) -> dict[str, Any]:
    """Return the share of unlabelled pairs that lie within the run's interval around their prediction."""
    told = run.fidelity.get("pair_interval") or {}
    width = told.get("half_width")
    if width is None:
        return {"level": told.get("level"), "covered": None, "pairs": 0}
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
    return {"level": told["level"], "covered": float(inside.mean()) if len(inside) else None, "pairs": len(inside)}


def _random(problem: Any, ids: tuple[str, ...], k: int) -> float:
    return float(np.mean([problem.value(random_ids(ids, k, draw)) for draw in range(RANDOM_DRAWS)]))


def _axes(labels: Mapping[str, LabelledPairs]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    first = next(iter(labels.values()))
    return first.target_ids, first.source_ids


def _number(value: Any) -> float | None:
    found = float(value)
    return found if np.isfinite(found) else None
