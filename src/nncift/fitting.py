"""The student's stages: train it, measure it beside what is free, use the better one, and predict (method.md 2).

The gate: where a free similarity selects clearly better on held-out items than the student that was asked for, selection and
scores use that similarity, and the run says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from nncift import subtasks
from nncift.calculation import Calculate, here
from nncift.config import StudentSettings
from nncift.errors import ResourceError, UsageError
from nncift.files import rows_of, write_json
from nncift.labels import combine
from nncift.memory import free_memory
from nncift.pairs import LabelledPairs, Predicted, UtilityMatrix
from nncift.plan import FIRST
from nncift.seeds import derive
from nncift.stages import Work, probe_of
from nncift.student.free import free_students, tail_of
from nncift.student.model import Student, predict_all, with_known
from nncift.student.networks import Learned, Lesson, Predictor, network
from nncift.student.views import TEXT
from nncift.vectors import Vectors

QUADRANT_OF = {"q1": "train", "q2": "q2", "q3": "q3", "q4": "test"}
HELD_OUT = ("validation", "test")
STUDENT = "student"
FILES = ("student/student.json", "student/student.safetensors", "fidelity.json")
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Candidate:
    """A student over some items, of which only those are projected that a prediction is about."""

    student: Student
    vectors: Vectors

    @classmethod
    def of(cls, name: str, learned: Learned, vectors: Vectors) -> Candidate:
        """Return a student with what it learned."""
        return cls(Student(name, learned.weights, learned.mean, learned.scale, views=vectors.views), vectors)

    def predict(self, pairs: LabelledPairs) -> Floats:
        """Return predictions `(n_pairs,)`."""
        targets, target = np.unique(pairs.target, return_inverse=True)
        sources, source = np.unique(pairs.source, return_inverse=True)
        return self.student.net.pairs(
            self.student.project_targets(rows_of(self.vectors.targets, targets)),
            self.student.project_sources(rows_of(self.vectors.sources, sources)),
            target.astype(np.int32), source.astype(np.int32),
        )  # fmt: skip


def tailed(used: Candidate, lesson: Lesson, blocks: Sequence[LabelledPairs], plan: str) -> Student:
    """Return a student with the tail that coverage objectives see: as wide as its residuals on held-out pairs.

    An active plan has looked at near pairs, and its student knows what they hold: with one label there per target nothing is
    left to guess (docs/method.md, section 2).
    """
    near = (1 - FIRST) * len(lesson.train) / max(1, len(lesson.targets)) if plan == "active" else 0.0
    errors = [block.value - used.predict(block) for block in blocks if len(block)]
    spread = max(0.0, 1.0 - near) * float(np.std(np.concatenate(errors))) if errors else 0.0
    found = tail_of(lesson, spread) if lesson.targets.shape[1] and spread > 0 else None
    return used.student if found is None else replace(used.student, tail=found[0], tail_mean=found[1])


def refuse_unfit_student(settings: StudentSettings) -> None:
    """Raise UsageError for an unknown network, and for a recipe that it does not have."""
    recipes = network(settings.student).recipes
    if settings.recipe not in recipes:
        raise UsageError(
            f"--recipe {settings.recipe} is not one of the student {settings.student}, which has {', '.join(recipes)}; the "
            "published recipe belongs to --student paper"
        )


def fit_key(work: Work) -> str:
    """Set and return the fingerprint of the stage; those of labels and vectors are there."""
    given = [work.keys[name] for name in ("label", "embed", "probe") if name in work.keys]
    return work.key("fit", *given, work.settings.part(StudentSettings), work.settings.seed)


def fit_student(work: Work, vectors: Vectors, labels: dict[str, LabelledPairs]) -> tuple[Student, dict[str, Any]]:
    """Train the student, measure its fidelity beside the baselines, choose by the gate, and save."""
    settings, key = work.settings, fit_key(work)
    folder = work.directory.file("student")
    with work.directory.stage("fit", key, FILES) as stage:
        if not stage.done:
            lesson = Lesson(labels["train"], labels["validation"], vectors.targets, vectors.sources, vectors.views)
            with work.progress("fitting the student", 0) as advance:
                learned = network(settings.student).learn(
                    lesson,
                    recipe=settings.recipe,
                    seed=derive(settings.seed, "student"),
                    advance=lambda step: advance(1),
                )
            student, told = _measured(work, learned, lesson, vectors, labels)
            student.save(folder)
            write_json(work.directory.file("fidelity.json"), {**told, "course": dict(learned.course)})
    return Student.load(folder), work.directory.read_json("fidelity.json")


def predict(
    student: Student,
    vectors: Vectors,
    labels: dict[str, LabelledPairs],
    *,
    shared: bool,
    subtask_of: Mapping[str, str] | None = None,
    calculate: Calculate = here,
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
        return Predicted(subtasks.best_subtask(matrix, subtask_of), None)
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


def _measured(
    work: Work, learned: Learned, lesson: Lesson, vectors: Vectors, labels: dict[str, LabelledPairs]
) -> tuple[Student, dict[str, Any]]:
    """Return the student that the gate lets through, with all it needs to score alone, and its fidelity as JSON."""
    from nncift.evaluate.baselines import fit_baselines, predict_quadrants
    from nncift.evaluate.fidelity import measure
    from nncift.evaluate.gate import choose
    from nncift.evaluate.intervals import interval_of_mean_utility, interval_of_pairs

    settings = work.settings
    candidates = {STUDENT: Candidate.of(settings.student, learned, vectors)}
    # All are measured, as the baselines they are; only those that rise are candidates.
    rivals = {name: Candidate.of("towers", free, vectors) for name, free in free_students(lesson, rising=False).items()}
    candidates |= {name: rivals[name] for name in free_students(lesson)}
    # A pointwise teacher has seen and unseen rows, and no quadrants in between.
    quadrants = {name: labels[split].present() for name, split in QUADRANT_OF.items() if split in labels}
    wanted = vectors.targets if not vectors.targets.shape[1] else vectors.views.take(vectors.targets, TEXT)
    predictions = predict_quadrants(
        fit_baselines(labels["train"], labels["validation"], wanted, vectors.text), quadrants
    )
    predictions |= {
        name: {quadrant: candidate.predict(pairs) for quadrant, pairs in quadrants.items()}
        for name, candidate in (candidates | rivals).items()
    }
    train_mean = float(quadrants["q1"].value.mean(dtype=np.float64))
    fidelity = measure(quadrants, predictions, train_mean, derive(settings.seed, "fidelity"))
    blocks = [labels[name].present() for name in HELD_OUT]
    gate = choose(
        blocks, {name: [of.predict(block) for block in blocks] for name, of in candidates.items()},
        derive(settings.seed, "gate"), enforced=settings.gate,
    )  # fmt: skip
    used = candidates[gate.used]
    held_out = combine(labels, HELD_OUT).present()
    scores = interval_of_mean_utility(held_out, used.predict(held_out))
    pairs = interval_of_pairs(*((block, used.predict(block)) for block in blocks))
    encoder = work.directory.read_json("embeddings.json")["encoder"]
    about = {"teacher": work.teacher.name, "model": settings.model, "interval": scores.note(), "used": gate.used}
    # The published recipe stays what it is.
    as_it_is = settings.recipe == "paper" or gate.used != STUDENT
    whole = replace(
        used.student if as_it_is else tailed(used, lesson, blocks, str(settings.plan)),
        encoder=encoder, targets=used.student.project_targets(vectors.targets), half_width=scores.half_width, about=about,
        probe=probe_of(work).describe() if settings.features == "probe" else None,
    )  # fmt: skip
    told = {
        **fidelity.to_json(), "train_mean": train_mean, "interval": scores.note(), "pair_interval": pairs.to_json(),
        "gate": gate.to_json(), "parameters": used.student.parameters,
    }  # fmt: skip
    told["verdicts"] = [*gate.warnings(), *told["verdicts"]]
    return whole, told
