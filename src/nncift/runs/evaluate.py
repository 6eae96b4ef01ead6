"""`nncift evaluate`: how good a finished run's student is, and what more or fewer labels would have given.

Quadrants, baselines and intervals are those of the run. The learning curve trains the same student again on parts of the labels
that exist, and costs no pass of the teacher's model. The full teacher, where it is asked for, gives the true matrix, and with it
the skill of the run's selection and the coverage of its intervals.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nncift.core.pairs import LabelledPairs
from nncift.core.permissions import NOTHING, Permissions
from nncift.core.progress import Progress, silent
from nncift.core.result_types import JsonObject, Record
from nncift.core.seeds import generator
from nncift.evaluation.cross_fit import hold_out, labels_rows
from nncift.evaluation.fidelity import Measures
from nncift.evaluation.gate import GateRecord
from nncift.evaluation.held_out_labels import Recipe
from nncift.evaluation.intervals import PairInterval
from nncift.evaluation.metrics import number, r2, spearman
from nncift.evaluation.verdicts import Difference
from nncift.labels.pair_labels import combine
from nncift.labels.vectors import VectorFiles, Vectors
from nncift.runs.finished import FinishedRun
from nncift.runs.full_teacher import FullTeacherResult, against_truth
from nncift.selection import COVERING
from nncift.storage.atomic import write_json

FILE = "evaluation.json"
SHARES = (0.125, 0.25, 0.5, 1.0)
LEAST = 50
"""Fewer labels than this are no point of a curve."""

LEAST_ROWS = 20
"""Fewer measured rows than this are none either."""


@dataclass(frozen=True)
class PredictorPoint(Record):
    """R^2 and Spearman on pairs of unseen items, and skill on held-out labels with its standard error; None where undefined."""

    r2: float | None
    spearman: float | None
    skill: float | None
    skill_error: float | None


@dataclass(frozen=True)
class CurvePoint:
    """What the student and what is free reach with so many labels."""

    labels: int
    predictors: Mapping[str, PredictorPoint]

    def to_json(self) -> JsonObject:
        """Return the labels, and each predictor's figures by its name."""
        return {"labels": self.labels, **{name: of.to_json() for name, of in self.predictors.items()}}


@dataclass(frozen=True)
class Evaluation(Record):
    """What `evaluation.json` holds: the run's own fidelity, the learning curve, and the judgement by the full teacher."""

    run: str
    fidelity: Mapping[str, Measures]
    baselines: Mapping[str, Mapping[str, Measures]]
    differences: Mapping[str, Mapping[str, Difference]]
    gate: GateRecord
    pair_interval: PairInterval
    verdicts: tuple[str, ...]
    curve: tuple[CurvePoint, ...]
    full_teacher: FullTeacherResult | None


def evaluate(
    path: Path,
    *,
    full_teacher: bool = False,
    progress: Progress = silent,
    device: str = "auto",
    allowed: Permissions = NOTHING,
) -> Evaluation:
    """Evaluate a finished run, write `evaluation.json` beside its files, and return what is in it.

    full_teacher: label every pair, which costs `full_teacher_passes`; resumable. device: of the teacher's model. allowed: what
    may be done with the models that the run names. Raises the errors of `nncift.errors`.
    """
    run = FinishedRun(path, allowed)
    if full_teacher:
        run.check_models(encoder=False)
    vectors = VectorFiles(run.base).on(*_axes(run.labels))
    report = run.fidelity
    found = Evaluation(
        run=str(path),
        fidelity=report.fidelity,
        baselines=report.baselines,
        differences=report.differences,
        gate=report.gate,
        pair_interval=report.pair_interval,
        verdicts=report.verdicts,
        curve=learning_curve(run, vectors, progress),
        full_teacher=against_truth(run, device=device, progress=progress) if full_teacher else None,
    )
    write_json(path / FILE, found.to_json())
    return found


def learning_curve(run: FinishedRun, vectors: Vectors, progress: Progress = silent) -> tuple[CurvePoint, ...]:
    """Return measures on unseen items for students trained on growing parts of the run's labels, drawn by the run's seed."""
    settings, labels = run.settings, run.labels
    parts = list(_row_parts(labels, settings.seed) if labels_rows(labels) else _pair_parts(labels, settings.seed))
    found = []
    with progress("training on parts of the labels", len(parts)) as advance:
        for part in parts:
            found.append(CurvePoint(len(part["train"].present()), _measured(run, part, vectors)))
            advance(1)
    return tuple(found)


def _pair_parts(labels: Mapping[str, LabelledPairs], seed: int) -> Iterator[dict[str, LabelledPairs]]:
    """Yield the labels with growing parts of the pairs to train on."""
    every = labels["train"].present()
    order = generator(seed, "learning curve").permutation(len(every))
    sizes = {round(share * len(every)) for share in SHARES}
    for size in sorted({size for size in sizes if size >= LEAST} | {len(every)}):
        yield {**labels, "train": every.take(np.sort(order[:size]))}


def _row_parts(labels: Mapping[str, LabelledPairs], seed: int) -> Iterator[dict[str, LabelledPairs]]:
    """Yield the labels among growing parts of the rows that were measured."""
    every = combine(dict(labels))
    rows = np.unique(every.source)
    order = rows[generator(seed, "learning curve").permutation(len(rows))]
    sizes = {round(share * len(rows)) for share in SHARES}
    shared = every.target_ids == every.source_ids
    for size in sorted({size for size in sizes if size >= LEAST_ROWS} | {len(rows)}):
        kept = order[:size]

        def part(pairs: LabelledPairs, kept: npt.NDArray[np.int32] = kept) -> LabelledPairs:
            inside = np.isin(pairs.source, kept)
            return pairs.take(inside & np.isin(pairs.target, kept) if shared else inside)

        yield {name: part(pairs) for name, pairs in labels.items()}


def _measured(run: FinishedRun, labels: dict[str, LabelledPairs], vectors: Vectors) -> dict[str, PredictorPoint]:
    """Return R^2 and Spearman on q4, and skill on held-out labels, of the student and what is free."""
    from nncift.stages.fit import judged, share_of

    settings, objective = run.settings, run.result.selection.objective
    recipe = Recipe(settings.student, settings.recipe, settings.seed)
    held = hold_out(labels, vectors, recipe, coverage=objective in COVERING)
    gate = judged(held, objective, share_of(settings.budget, len(vectors.sources)), settings.seed)
    test = held.quadrants["q4"]
    truth, once = test.value.astype(np.float64), np.ones(len(test))
    mean = float(held.quadrants["q1"].value.mean(dtype=np.float64))
    found: dict[str, PredictorPoint] = {}
    for name in (name for name in held.shipped if name in held.predictions):
        guess = held.predictions[name]["q4"].astype(np.float64)
        known = gate.skills.get(name)
        found[name] = PredictorPoint(
            number(r2(truth, guess, mean, once)),
            number(spearman(truth, guess, once)),
            None if known is None else known.skill,
            None if known is None else known.error,
        )
    return found


def _axes(labels: Mapping[str, LabelledPairs]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    first = next(iter(labels.values()))
    return first.target_ids, first.source_ids
