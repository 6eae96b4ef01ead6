"""`nncift evaluate`: how good a finished run's student is, and what more or fewer labels would have given.

Quadrants, baselines and intervals are those of the run. The learning curve trains the same student again on parts of the labels
that exist, and costs no pass of the teacher's model. The full teacher, where it is asked for, gives the true matrix, and with it
the skill of the run's selection and the coverage of its intervals.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nncift.evaluate.gate import choose
from nncift.evaluate.judged import against_truth
from nncift.evaluate.metrics import r2, spearman
from nncift.files import write_json
from nncift.finished import FinishedRun
from nncift.fitting import Candidate
from nncift.pairs import LabelledPairs
from nncift.progress import Progress, silent
from nncift.seeds import derive, generator
from nncift.student.free import free_students
from nncift.student.networks import Lesson, network
from nncift.vectors import VectorFiles, Vectors

FILE = "evaluation.json"
SHARES = (0.125, 0.25, 0.5, 1.0)
LEAST = 50
"""Fewer labels than this are no point of a curve."""


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
        told["full_teacher"] = against_truth(run, device=device, progress=progress)
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


def _axes(labels: Mapping[str, LabelledPairs]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    first = next(iter(labels.values()))
    return first.target_ids, first.source_ids


def _number(value: Any) -> float | None:
    found = float(value)
    return found if np.isfinite(found) else None
