"""The student's stage: train it, measure it beside what is free, and use the better one (method.md 2).

Fidelity and selection skill are measured on labels that the student has not seen; then it is fitted again on all of them. The
gate: where another candidate selects clearly better on those labels, selection and scores use that, and the run says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from nncift.config import StudentSettings
from nncift.core.amounts import Budget
from nncift.core.pairs import LabelledPairs
from nncift.core.seeds import derive
from nncift.core.threads import one_thread_if_small
from nncift.evaluation.cross_fit import hold_out
from nncift.evaluation.fidelity import STUDENT, FidelityReport, HeldOutPairs, measure
from nncift.evaluation.gate import Gate
from nncift.evaluation.held_out_labels import HeldOut, Recipe
from nncift.labels.vectors import Vectors
from nncift.selection import COVERING
from nncift.stages.context import RunContext, probe_of
from nncift.storage.atomic import write_json
from nncift.student.model import Student

FILES = ("student/student.json", "student/student.safetensors", "fidelity.json")
TOKENS_SHARE = 0.3
"""Share of the rows that a selection is judged at where the budget counts tokens."""


def fit_key(context: RunContext) -> str:
    """Set and return the fingerprint of the stage; those of labels and vectors are there."""
    given = [context.keys[name] for name in ("label", "embed", "probe") if name in context.keys]
    settings = context.settings
    # Another budget or objective keeps the student that was chosen for the first: choosing again repeats nothing.
    student = {**settings.part(StudentSettings), "features": context.features}
    return context.key("fit", *given, student, settings.seed)


def fit_student(
    context: RunContext, vectors: Vectors, labels: dict[str, LabelledPairs]
) -> tuple[Student, FidelityReport]:
    """Train the student, measure its fidelity beside the baselines, choose by the gate, and save."""
    settings, key = context.settings, fit_key(context)
    folder = context.directory.file("student")
    with context.directory.stage("fit", key, FILES) as stage:
        if not stage.done:
            recipe = Recipe(settings.student, settings.recipe, settings.seed)
            with one_thread_if_small(_labelled_rows(labels)):
                with context.progress("fitting the student", 0) as advance:
                    found = hold_out(labels, vectors, recipe, coverage=settings.objective in COVERING, advance=advance)
                student, fidelity = _shipped(context, found, vectors)
            student.save(folder)
            write_json(context.directory.file("fidelity.json"), fidelity.to_json())
    file = context.directory.file("fidelity.json")
    return Student.load(folder), FidelityReport.of_json(context.directory.read_json("fidelity.json"), str(file))


def _labelled_rows(labels: Mapping[str, LabelledPairs]) -> int:
    """Return how many rows of the longer axis have a label."""
    axes = ([getattr(part, axis) for part in labels.values()] for axis in ("target", "source"))
    return max(len(np.unique(np.concatenate(places))) for places in axes)


def share_of(budget: Budget, rows: int) -> float:
    """Return the share of the rows that a budget selects. Raises InfeasibleError for none or more than all."""
    return TOKENS_SHARE if budget.tokens is not None else budget.rows(rows) / rows


def _shipped(context: RunContext, found: HeldOut, vectors: Vectors) -> tuple[Student, FidelityReport]:
    """Return the student that the gate lets through, with all it needs to score alone, and its fidelity."""
    from nncift.evaluation.intervals import interval_of_mean_utility, interval_of_pairs

    settings = context.settings
    train_mean = float(found.quadrants["q1"].value.mean(dtype=np.float64))
    fidelity = measure(found.quadrants, found.predictions, train_mean, derive(settings.seed, "fidelity"))
    share = share_of(settings.budget, len(vectors.sources))
    gate = judged(found, str(settings.objective), share, settings.seed, enforced=settings.gate)
    used = found.shipped[gate.used].student
    held_out, residual = found.source_unseen
    scores = interval_of_mean_utility(held_out, residual[gate.used])
    pairs = interval_of_pairs(*((block, of[gate.used]) for block, of in found.pair_blocks))
    about = {"teacher": context.teacher.name, "model": settings.model, "interval": scores.note(), "used": gate.used}
    student = replace(
        used,
        encoder=context.directory.read_json("embeddings.json")["encoder"],
        targets=used.project_targets(vectors.targets),
        half_width=scores.half_width,
        about=about,
        probe=probe_of(context).describe() if context.features == "probe" else None,
    )
    return student, FidelityReport(
        fidelity=fidelity.student,
        baselines=fidelity.baselines,
        differences=fidelity.differences,
        # Where everything is labelled, more labels are no advice.
        verdicts=(
            *(() if context.whole and not gate.skills else gate.warnings()),
            *fidelity.verdicts(),
            *_of_a_part(found),
        ),
        resamples=fidelity.resamples,
        train_mean=train_mean,
        folds=found.folds,
        interval=scores.note(),
        pair_interval=pairs,
        gate=gate.record(),
        parameters=used.parameters,
        course=found.course,
        held_out=HeldOutPairs.of(found.quadrants["q4"].value, found.predictions[STUDENT]["q4"], settings.seed),
    )


def judged(found: HeldOut, objective: str, share: float, seed: int, *, enforced: bool = True) -> Gate:
    """Return which candidate selects. share: of the rows that is selected. seed, enforced: of the run."""
    from nncift.evaluation.gate import choose

    return choose(
        found.blocks,
        tuple(found.shipped),
        objective=objective,
        share=share,
        seed=derive(seed, "gate"),
        enforced=enforced,
    )


def _of_a_part(found: HeldOut) -> Iterator[str]:
    """Yield a sentence where the student has learned from a part of the labels."""
    if used := found.course.get("used"):
        yield (
            f"More rows are labelled than a student is worth: it has learned from {used['sources']:,} rows and "
            f"{used['targets']:,} targets, and is measured on some of these. Labels that exist are used as they are."
        )
