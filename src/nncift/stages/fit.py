"""The student's stages: train it, measure it beside what is free, use the better one, and predict (method.md 2).

Fidelity and selection skill are measured on labels that the student has not seen; then it is fitted again on all of them. The
gate: where another candidate selects clearly better on those labels, selection and scores use that, and the run says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from nncift.config import StudentSettings
from nncift.core.memory import free_memory
from nncift.core.pairs import LabelledPairs, Predicted, UtilityMatrix
from nncift.core.parallel import ParallelMap, serial_map
from nncift.core.seeds import derive
from nncift.errors import ResourceError, UsageError
from nncift.evaluation.cross_fit import HeldOut, Recipe, hold_out
from nncift.evaluation.gate import Gate
from nncift.labels.pair_labels import combine
from nncift.labels.vectors import Vectors
from nncift.selection import COVERING
from nncift.selection.budget import parse_budget, parse_tokens
from nncift.selection.topk import best_subtask
from nncift.stages import RunContext, probe_of
from nncift.storage.atomic import write_json
from nncift.student.model import Student, predict_all, with_known
from nncift.student.networks import Predictor, network

FILES = ("student/student.json", "student/student.safetensors", "fidelity.json")
TOKENS_SHARE = 0.3
"""Share of the rows that a selection is judged at where the budget counts tokens."""


def check_student(settings: StudentSettings) -> None:
    """Raise UsageError for an unknown network, and for a recipe that it does not have."""
    recipes = network(settings.student).recipes
    if settings.recipe not in recipes:
        raise UsageError(
            f"--recipe {settings.recipe} is not one of the student {settings.student}, which has {', '.join(recipes)}; the "
            "published recipe belongs to --student paper"
        )


def fit_key(context: RunContext) -> str:
    """Set and return the fingerprint of the stage; those of labels and vectors are there."""
    given = [context.keys[name] for name in ("label", "embed", "probe") if name in context.keys]
    settings = context.settings
    # Another budget or objective keeps the student that was chosen for the first: choosing again repeats nothing.
    return context.key("fit", *given, settings.part(StudentSettings), settings.seed)


def fit_student(
    context: RunContext, vectors: Vectors, labels: dict[str, LabelledPairs]
) -> tuple[Student, dict[str, Any]]:
    """Train the student, measure its fidelity beside the baselines, choose by the gate, and save."""
    settings, key = context.settings, fit_key(context)
    folder = context.directory.file("student")
    with context.directory.stage("fit", key, FILES) as stage:
        if not stage.done:
            recipe = Recipe(settings.student, settings.recipe, settings.seed)
            with context.progress("fitting the student", 0) as advance:
                found = hold_out(labels, vectors, recipe, coverage=settings.objective in COVERING, advance=advance)
            student, fidelity = _shipped(context, found, vectors)
            student.save(folder)
            write_json(context.directory.file("fidelity.json"), {**fidelity, "course": dict(found.course)})
    return Student.load(folder), context.directory.read_json("fidelity.json")


def share_of(budget: str, rows: int) -> float:
    """Return the share of the rows that a budget selects. Raises UsageError or InfeasibleError for one that cannot be read."""
    return TOKENS_SHARE if parse_tokens(budget) is not None else parse_budget(budget, rows) / rows


def predict(
    student: Student,
    vectors: Vectors,
    labels: dict[str, LabelledPairs],
    *,
    shared: bool,
    subtask_of: Mapping[str, str] | None = None,
    calculate: ParallelMap = serial_map,
    held: bool = True,
) -> Predicted:
    """Return the hybrid matrix: known labels exact, the rest predicted, the diagonal masked (method.md 1).

    A student `for_coverage` adds its tail to what is predicted. subtask_of: each target's subtask; then what is left is one
    target, the subtask that a source helps most. held: this process holds the matrix, which one that only does parts of it does
    not. Raises ResourceError where it does not fit in memory.
    """
    needed = 4 * len(vectors.targets) * len(vectors.sources) * 2
    free = free_memory() if held else None
    if free is not None and needed > free:
        raise ResourceError(
            f"selecting from {len(vectors.sources)} rows takes {needed / 1e6:,.0f} MB of memory for the matrix and its working "
            f"copy, and {free / 1e6:,.0f} MB are free; use --neighbours 64, --limit, or a machine with more memory"
        )
    # Subtasks are told apart by what a source does for them, not by what it may be the best for.
    used = student if subtask_of is None else replace(student, covers=False)
    known = combine(labels)
    values = predict_all(used, vectors.targets, vectors.sources, calculate)
    matrix = with_known(values, known, shared=shared)
    if subtask_of is not None:
        return Predicted(best_subtask(matrix, subtask_of), None)
    tail = used.tail_net if used.covers else None
    score = None if tail is None else _mean_without_tail(matrix, tail, vectors, known, shared=shared)
    return Predicted(matrix, score)


def _mean_without_tail(
    matrix: UtilityMatrix, tail: Predictor, vectors: Vectors, known: LabelledPairs, *, shared: bool
) -> npt.NDArray[np.float64]:
    """Return the mean utility of each source, `(n_sources,)`, from a matrix whose predicted values hold a tail too.

    A tail is an inner product of projections, so its sum over targets is one with their sum; known and masked pairs hold none.
    """
    targets, sources = tail.project_targets(vectors.targets), tail.project_sources(vectors.sources)
    total = tail.block(targets.mean(axis=0, dtype=np.float64)[None].astype(np.float32), sources)[0] * float(
        len(targets)
    )
    count = np.full(len(sources), len(targets)) - np.bincount(
        known.source[~np.isfinite(known.value)], minlength=len(sources)
    )
    without = [(known.target, known.source)]
    if shared:
        itself = np.arange(len(sources), dtype=np.int32)
        without.append((itself, itself))
        count -= 1
    for target, source in without:
        total = total - np.bincount(source, tail.pairs(targets, sources, target, source), len(sources))
    added = np.divide(total, count, out=np.zeros(len(sources)), where=count > 0)
    return np.asarray(matrix.mean_per_source() - added, np.float64)


def _shipped(context: RunContext, found: HeldOut, vectors: Vectors) -> tuple[Student, dict[str, Any]]:
    """Return the student that the gate lets through, with all it needs to score alone, and its fidelity as JSON."""
    from nncift.evaluation.fidelity import measure
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
        probe=probe_of(context).describe() if settings.features == "probe" else None,
    )
    record = {
        **fidelity.to_json(),
        "train_mean": train_mean,
        "folds": found.folds,
        "interval": scores.note(),
        "pair_interval": pairs.to_json(),
        "gate": gate.to_json(),
        "parameters": used.parameters,
    }
    record["verdicts"] = [*gate.warnings(), *record["verdicts"]]
    return student, record


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
