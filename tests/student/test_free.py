"""Free students: similarity with a slope, and nothing else."""

from collections.abc import Callable

import numpy as np
import pytest

from nncift.core.pairs import LabelledPairs
from nncift.student.free_similarity import free_students
from nncift.student.model import Student
from nncift.student.networks import Learned, Lesson

Make = Callable[..., Lesson]
Draw = Callable[..., np.ndarray]


def cosine(lesson: Lesson, view: str, centred: bool) -> np.ndarray:
    part = lesson.views.take(lesson.sources, view).astype(float)
    part = part - part.mean(axis=0) if centred else part
    part /= np.linalg.norm(part, axis=1, keepdims=True)
    return np.asarray(part @ part.T)


def predict(learned: Learned, lesson: Lesson, pairs: LabelledPairs) -> np.ndarray:
    student = Student("towers", learned.weights, learned.mean, learned.scale, views=lesson.views)
    return student.predict_pairs(
        pairs, student.project_targets(lesson.targets), student.project_sources(lesson.sources)
    )


def test_each_is_the_least_squares_line_through_its_cosine(lesson: Make) -> None:
    whole = lesson(views="probe")
    train, test = whole.train, whole.validation
    table = {"cosine": cosine(whole, "text", False), "hidden": cosine(whole, "hidden", True),
             "output": cosine(whole, "output", False)}  # fmt: skip
    table["sum"] = np.sum([part / part[train.target, train.source].std() for part in table.values()], axis=0)
    found = free_students(whole, rising=False)
    assert set(found) == set(table)
    for name, part in table.items():
        line = np.polyfit(part[train.target, train.source], train.value, 1)
        expected = np.polyval(line, part[test.target, test.source])
        assert predict(found[name], whole, test) == pytest.approx(expected, abs=1e-5), name


def test_what_falls_is_no_candidate(lesson: Make, vectors: Draw) -> None:
    x = vectors(36)
    assert set(free_students(lesson(x @ x.T, x))) == {"cosine"}
    assert free_students(lesson(-(x @ x.T), x)) == {}
    assert set(free_students(lesson(-(x @ x.T), x), rising=False)) == {"cosine"}


def test_a_pointwise_teacher_has_none(lesson: Make) -> None:
    assert free_students(lesson(pointwise=True), rising=False) == {}
