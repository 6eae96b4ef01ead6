"""The rival students `landmark` and `ranker` (docs/method.md, section 8) against their formulas."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from nncift.core.arrays import Doubles, Floats
from nncift.models.views import unit
from nncift.student.landmark_regression import RIDGE, fit_landmarks
from nncift.student.model import Student
from nncift.student.networks import FittedStudent, TrainingData
from nncift.student.networks.ranker import Ranker
from nncift.student.rank_training import fit_ranker

Make = Callable[..., TrainingData]
Draw = Callable[..., np.ndarray]


def whole_block(training_data: Make, values: Floats, x: Floats, targets: int, sources: int) -> TrainingData:
    """Return training data with a label for every pair of the first rows of both axes."""
    made = training_data(values, x)
    t, s = (part.ravel().astype(np.int32) for part in np.indices((targets, sources)))
    pairs = replace(made.train, target=t, source=s, value=values[t, s].astype(np.float32))
    return replace(made, train=pairs, validation=pairs.take(np.arange(0)))


def predicted(name: str, learned: FittedStudent, data: TrainingData) -> Floats:
    student = Student(name, learned.weights, learned.mean, learned.scale, views=data.views)
    return student.predict_block(student.project_targets(data.targets), student.project_sources(data.sources))


def smoother(x: Floats, count: int, ridge: float) -> Doubles:
    """Return `K_EL (K_LL + r I)^-1`, `(n, count)`, by explicit matrices."""
    u = unit(x).astype(np.float64)
    apart = ((u[:, None] - u[None, :count]) ** 2).sum(axis=2)
    width = np.median(apart[:count][np.triu_indices(count, 1)])
    kernel = np.exp(-apart / (2 * width))
    return np.asarray(kernel @ np.linalg.inv(kernel[:count] + ridge * np.eye(count)))


def test_landmarks_are_the_published_formula_along_both_axes(training_data: Make, vectors: Draw) -> None:
    x = vectors(30)
    values = np.random.default_rng(1).normal(size=(30, 30)).astype(np.float32)
    data = whole_block(training_data, values, x, 18, 20)
    learned = fit_landmarks(data, 0)
    block = values[:18, :20].astype(np.float64)
    targets, sources = smoother(x, 18, RIDGE), smoother(x, 20, RIDGE)
    expected = block.mean() + targets @ (block - block.mean()) @ sources.T
    assert predicted("landmark", learned, data) == pytest.approx(expected, abs=2e-3)


def test_targets_with_labels_of_their_own_are_not_smoothed(training_data: Make, vectors: Draw) -> None:
    x = vectors(20)
    values = np.random.default_rng(1).normal(size=(20, 20)).astype(np.float32)
    data = whole_block(training_data, values, x, 20, 12)
    block = values[:, :12].astype(np.float64)
    found = predicted("landmark", fit_landmarks(data, 0), data)
    alone = block.mean() + (block - block.mean()) @ smoother(x, 12, RIDGE).T
    assert found == pytest.approx(alone, abs=0.02 * np.abs(alone).max())


def test_scattered_pairs_are_learned_under_the_product_of_both_kernels(training_data: Make, vectors: Draw) -> None:
    x = vectors(24)
    random = np.random.default_rng(3)
    values = random.normal(size=(24, 24)).astype(np.float32)
    data = training_data(values, x)
    t, s = (part.astype(np.int32) for part in np.nonzero(random.random((24, 24)) < 0.3))
    pairs = replace(data.train, target=t, source=s, value=values[t, s])
    data = replace(data, train=pairs, validation=pairs.take(np.arange(0)))
    u = unit(x).astype(np.float64)
    kernels = []
    for rows in (np.unique(t), np.unique(s)):
        apart = ((u[:, None] - u[None]) ** 2).sum(axis=2)
        width = np.median(apart[np.ix_(rows, rows)][np.triu_indices(len(rows), 1)])
        kernels.append(np.exp(-apart / (2 * width)))
    product = kernels[0][np.ix_(t, t)] * kernels[1][np.ix_(s, s)]
    value = values[t, s].astype(np.float64)
    weights = np.linalg.solve(product + RIDGE * np.eye(len(t)), value - value.mean())
    expected = value.mean() + (kernels[0][:, t] * weights) @ kernels[1][:, s].T
    found = predicted("landmark", fit_landmarks(data, 0), data)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.999
    assert found == pytest.approx(expected, abs=0.2 * value.std())


def test_landmarks_of_a_pointwise_teacher(training_data: Make, vectors: Draw) -> None:
    x = vectors(36)
    data = training_data(np.sin(3 * x[:, 0]).astype(np.float32), x, pointwise=True)
    learned = fit_landmarks(data, 0)
    known = data.train
    value = known.value.astype(np.float64)
    assert known.source.tolist() == list(range(len(known)))
    expected = value.mean() + smoother(x, len(known), RIDGE) @ (value - value.mean())
    assert predicted("landmark", learned, data)[0] == pytest.approx(expected, abs=5e-3)


def bilinear(x: Floats) -> Floats:
    random = np.random.default_rng(2)
    a, b = (random.normal(size=(x.shape[1], 2)) for _ in range(2))
    return np.asarray((x @ a) @ (x @ b).T, np.float32)


def ranks(values: Floats) -> Floats:
    return np.asarray(values.argsort(axis=1).argsort(axis=1), np.float32)


def test_a_ranker_learns_the_order_of_unseen_sources_within_targets(training_data: Make, vectors: Draw) -> None:
    x = vectors(60)
    values = bilinear(x)
    # What all sources of a target have in common is not in the loss.
    shifted = values + 5 * np.random.default_rng(4).normal(size=(60, 1)).astype(np.float32)
    data = training_data(shifted, x)
    found = predicted("ranker", fit_ranker(data, seed=0), data)
    unseen = slice(50, 60)
    truth, order = ranks(values), ranks(found)
    rows = [np.corrcoef(truth[t, unseen], order[t, unseen])[0, 1] for t in range(60)]
    assert np.mean(rows) > 0.8


def test_a_ranker_is_in_the_units_of_the_labels(training_data: Make, vectors: Draw) -> None:
    x = vectors(60)
    values = 3 + 0.01 * bilinear(x)
    data = training_data(values, x)
    found = predicted("ranker", fit_ranker(data, seed=0), data)[:40, 50:]
    truth = values[:40, 50:]
    assert np.polyfit(found.ravel(), truth.ravel(), 1)[0] == pytest.approx(1, abs=0.3)
    assert float(found.mean()) == pytest.approx(float(truth.mean()), abs=0.5 * float(truth.std()))


def test_a_ranker_is_fitted_again_with_what_earlier_fits_settled(training_data: Make, vectors: Draw) -> None:
    x = vectors(48)
    data = training_data(bilinear(x), x)
    courses = [{"steps": steps, "slope": 0.5} for steps in (25, 50, 400)]
    nothing = data.validation.take(np.arange(0))
    learned = Ranker.refit(replace(data, validation=nothing), courses=courses, advance=lambda step: None)
    assert learned is not None
    assert learned.course == {"steps": 50, "slope": 0.5}
