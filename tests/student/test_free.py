"""Free students: similarity with a slope, and nothing else."""

from collections.abc import Callable

import numpy as np
import pytest

from nncift.core.pairs import LabelledPairs
from nncift.student.free_similarity import free_students
from nncift.student.model import Student
from nncift.student.networks import FittedStudent, TrainingData

Make = Callable[..., TrainingData]
Draw = Callable[..., np.ndarray]


def cosine(training_data: TrainingData, view: str, centred: bool) -> np.ndarray:
    part = training_data.views.take(training_data.sources, view).astype(float)
    part = part - part.mean(axis=0) if centred else part
    part /= np.linalg.norm(part, axis=1, keepdims=True)
    return np.asarray(part @ part.T)


def predict(learned: FittedStudent, training_data: TrainingData, pairs: LabelledPairs) -> np.ndarray:
    student = Student("towers", learned.weights, learned.mean, learned.scale, views=training_data.views)
    return student.predict_pairs(
        pairs, student.project_targets(training_data.targets), student.project_sources(training_data.sources)
    )


def test_each_is_the_least_squares_line_through_its_cosine(training_data: Make) -> None:
    whole = training_data(views="probe")
    train, test = whole.train, whole.validation
    table = {
        "cosine": cosine(whole, "text", False),
        "hidden": cosine(whole, "hidden", True),
        "output": cosine(whole, "output", False),
    }
    table["sum"] = np.sum([part / part[train.target, train.source].std() for part in table.values()], axis=0)
    found = free_students(whole, rising=False)
    assert set(found) == set(table)
    for name, part in table.items():
        line = np.polyfit(part[train.target, train.source], train.value, 1)
        expected = np.polyval(line, part[test.target, test.source])
        assert predict(found[name], whole, test) == pytest.approx(expected, abs=1e-5), name


def test_what_falls_is_no_candidate(training_data: Make, vectors: Draw) -> None:
    x = vectors(36)
    assert set(free_students(training_data(x @ x.T, x))) == {"cosine"}
    assert free_students(training_data(-(x @ x.T), x)) == {}
    assert set(free_students(training_data(-(x @ x.T), x), rising=False)) == {"cosine"}


def test_a_pointwise_teacher_has_none(training_data: Make) -> None:
    assert free_students(training_data(pointwise=True), rising=False) == {}
