"""Candidates for selection: the student that was asked for, alone and with a similarity on top, another, and what is free.

Which of them a run selects by is decided on labels that none of them has seen (`evaluate.gate`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nncift.core.arrays import Floats
from nncift.core.pairs import LabelledPairs
from nncift.labels.vectors import Vectors
from nncift.storage.vector_store import rows_of
from nncift.student.free_similarity import free_students, tail_of
from nncift.student.model import Student
from nncift.student.networks import FittedStudent, TrainingData

STUDENT = "student"
OTHER = "landmark"
"""The student that is fitted beside `product`: where a few rows are most of the value, it finds them (docs/results)."""

WIDTHS = (0.5, 1.0)
"""Sizes of the similarity on top that are tried, in units of the residuals' standard deviation on held-out pairs."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A student over some items, of which only those are projected that a prediction is about."""

    student: Student
    vectors: Vectors

    @classmethod
    def of(cls, name: str, learned: FittedStudent, vectors: Vectors) -> Candidate:
        """Return a student with what it learned."""
        return cls(Student(name, learned.weights, learned.mean, learned.scale, views=vectors.views), vectors)

    def predict(self, pairs: LabelledPairs) -> Floats:
        """Return predictions `(n_pairs,)` of utilities."""
        return self._pairs(self.student, pairs)

    def covered(self, pairs: LabelledPairs) -> Floats:
        """Return `(n_pairs,)` values as coverage objectives see them: with the similarity on top, where there is one."""
        return self._pairs(self.student.for_coverage(), pairs)

    def _pairs(self, student: Student, pairs: LabelledPairs) -> Floats:
        targets, target = np.unique(pairs.target, return_inverse=True)
        sources, source = np.unique(pairs.source, return_inverse=True)
        return student.net.pairs(
            student.project_targets(rows_of(self.vectors.targets, targets)),
            student.project_sources(rows_of(self.vectors.sources, sources)),
            target.astype(np.int32),
            source.astype(np.int32),
        )


def free_candidates(training_data: TrainingData, vectors: Vectors, *, rising: bool = True) -> dict[str, Candidate]:
    """Return similarities with a slope from the labels, by name. rising: see `free.free_lines`."""
    return {
        name: Candidate.of("towers", learned, vectors)
        for name, learned in free_students(training_data, rising=rising).items()
    }


def with_similarity(
    used: Candidate, training_data: TrainingData, blocks: Sequence[LabelledPairs], widths: Sequence[float] = WIDTHS
) -> dict[str, Candidate]:
    """Return candidates that add similarity to a student's values for coverage, as wide as its residuals on held-out pairs.

    blocks: the held-out pairs. Regression takes spread away from the highest values, and near neighbours share it
    (docs/method.md, section 2). None where similarity predicts nothing.
    """
    errors = [block.value - used.predict(block) for block in blocks if len(block)]
    spread = float(np.std(np.concatenate(errors))) if errors else 0.0
    found = {}
    for width in widths:
        tail = tail_of(training_data, width * spread) if training_data.targets.shape[1] and spread > 0 else None
        if tail is not None:
            found[name_of(width)] = replace(used, student=replace(used.student, tail=tail[0], tail_mean=tail[1]))
    return found


def name_of(width: float) -> str:
    """Return the name of the candidate with so much similarity on top."""
    return f"{STUDENT} + {width:g} similarity"


def is_student(name: str) -> bool:
    """Tell whether a candidate is the student that was asked for, with or without similarity on top."""
    return name.split(" + ")[0] == STUDENT


def is_free(name: str) -> bool:
    """Tell whether a candidate needs no label but for its slope."""
    return not is_student(name) and name != OTHER


def values_of(candidates: Mapping[str, Candidate], pairs: LabelledPairs, *, coverage: bool) -> dict[str, Floats]:
    """Return what selection sees of some pairs, by candidate. coverage: the objective is one of coverage."""
    return {name: (of.covered(pairs) if coverage else of.predict(pairs)) for name, of in candidates.items()}
