"""Two-sided ridge regression on a block of labels."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from nncift.models.views import unit
from nncift.student.block_ridge import CONSTANT, PENALTIES, Labels, _Fit, solve_block
from nncift.student.item_features import ItemFeatures
from nncift.student.model import Student
from nncift.student.networks import TrainingData, network

Make = Callable[..., TrainingData]


def full(training_data: Make, values: np.ndarray, x: np.ndarray, views: str = "text") -> tuple[TrainingData, Labels]:
    whole = training_data(values, x, views)
    n = len(x)
    t, s = (part.ravel().astype(np.int32) for part in np.indices((n, n)))
    keep = t != s
    pairs = replace(whole.train, target=t[keep], source=s[keep], value=values[t[keep], s[keep]].astype(np.float32))
    whole = replace(whole, train=pairs, validation=pairs.take(np.arange(0)))
    labels = Labels.of(whole.train)
    assert labels is not None
    return whole, labels


def predicted(whole: TrainingData, labels: Labels, powers: int = 6) -> np.ndarray:
    learned = solve_block(whole, labels, powers)
    student = Student(
        "product" if powers > 1 else "towers", learned.weights, learned.mean, learned.scale, views=whole.views
    )
    return student.predict_block(student.project_targets(whole.targets), student.project_sources(whole.sources))


def bilinear(x: np.ndarray, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    a, b = (random.normal(size=(x.shape[1], 3)) for _ in range(2))
    return 0.3 + (x @ a) @ (x @ b).T + (x @ random.normal(size=x.shape[1]))[None, :]


def test_the_network_is_the_two_sided_regression_of_the_formula(
    training_data: Make, vectors: Callable[..., np.ndarray]
) -> None:
    x = vectors(30)
    values = bilinear(x) + 0.1 * np.random.default_rng(2).normal(size=(30, 30))
    whole, labels = full(training_data, values, x)
    mean, scale = float(np.nanmean(labels.value)), float(np.nanstd(labels.value))
    features = ItemFeatures.of(whole)
    fit = _Fit.of(features, whole, labels, mean, scale)
    penalty = solve_block(whole, labels, 1).course["penalty"]
    # By explicit matrices: K (K + p I)^-1 on both sides of what the line leaves.
    u = unit(x)
    kernel = u @ u.T + CONSTANT
    hat = kernel @ np.linalg.inv(kernel + penalty * np.eye(30))
    line = fit.offset + fit.slopes["text"] * (u @ u.T)
    expected = mean + scale * (line + hat @ fit.rest @ hat.T)
    # All rows are labelled here: what either side leaves of a row's own labels comes on top.
    for axis, rest in (("target", fit.rest), ("source", fit.rest.T)):
        own = fit.own_penalty(axis, penalty)
        if own is not None:
            left = (rest - hat @ rest) @ np.linalg.inv(kernel + own * np.eye(30)) @ kernel
            expected += scale * (left if axis == "target" else left.T)
    found = predicted(whole, labels, powers=1)
    curves, shift = fit.curves(penalty, 1)
    expected += scale * (shift + curves["text"][0] * (u @ u.T))
    assert found == pytest.approx(expected, abs=2e-3 * scale)


def test_predictions_without_a_row_are_those_of_a_fit_without_it(
    training_data: Make, vectors: Callable[..., np.ndarray]
) -> None:
    x = vectors(12)
    whole, labels = full(training_data, bilinear(x), x)
    fit = _Fit.of(ItemFeatures.of(whole), whole, labels, 0.0, 1.0)
    u = unit(x).astype(float)
    kernel, penalty = u @ u.T + CONSTANT, 0.4

    def without(row: int) -> np.ndarray:
        others = np.delete(np.arange(12), row)
        part = kernel[np.ix_(others, others)] + penalty * np.eye(11)
        weights = np.zeros(12)
        weights[others] = np.linalg.solve(part, kernel[others, row])
        return weights

    by_row = np.stack([without(row) for row in range(12)])
    assert fit.left_out(penalty) == pytest.approx(by_row @ fit.rest @ by_row.T, abs=1e-6)


def test_what_is_bilinear_is_learned_on_rows_that_were_never_measured(
    training_data: Make, vectors: Callable[..., np.ndarray]
) -> None:
    x = vectors(90)
    values = bilinear(x)
    whole, _ = full(training_data, values, x)
    inside = (whole.train.target < 60) & (whole.train.source < 60)
    seen = replace(whole, train=whole.train.take(inside))
    labels = Labels.of(seen.train)
    assert labels is not None
    found = predicted(seen, labels)[60:, 60:]
    truth = values[60:, 60:]
    off = ~np.eye(30, dtype=bool)
    assert 1 - np.mean((found - truth)[off] ** 2) / truth[off].var() > 0.9


def test_noise_takes_the_strongest_penalty_and_equal_labels_give_that_number(
    training_data: Make, vectors: Callable[..., np.ndarray]
) -> None:
    x = vectors(40)
    whole, labels = full(training_data, np.random.default_rng(3).normal(size=(40, 40)), x)
    assert solve_block(whole, labels, 6).course["penalty"] >= PENALTIES[-3]
    whole, labels = full(training_data, np.full((40, 40), 0.25), x)
    assert predicted(whole, labels) == pytest.approx(np.full((40, 40), 0.25), abs=1e-5)


def test_missing_pairs_are_filled_and_too_many_are_no_block(
    training_data: Make, vectors: Callable[..., np.ndarray]
) -> None:
    x = vectors(40)
    values = bilinear(x)
    whole, labels = full(training_data, values, x)
    whole_fit = predicted(whole, labels)
    keep = np.random.default_rng(1).random(len(whole.train)) > 0.05
    some = Labels.of(whole.train.take(keep))
    assert some is not None
    close = predicted(whole, some)
    assert np.abs(close - whole_fit).mean() < 0.05 * values.std()
    assert Labels.of(whole.train.take(np.arange(0, len(whole.train), 2))) is None


@pytest.mark.parametrize("name", ["product", "towers"])
def test_bilinear_networks_learn_blocks_this_way_and_need_no_validation_pairs(
    name: str, training_data: Make, vectors: Callable[..., np.ndarray]
) -> None:
    x = vectors(30)
    whole, _ = full(training_data, bilinear(x), x)
    learned = network(name).learn(whole, recipe="default", seed=0, advance=lambda step: None)
    assert learned.course["start"] == "lines"
    assert tuple(learned.course["penalties"]) == PENALTIES


def test_all_views_of_a_probe_are_read(training_data: Make) -> None:
    whole = training_data(views="probe")
    n = len(whole.sources)
    stats = whole.views.take(whole.sources, "stats").astype(float)
    values = np.tile(stats[:, 0], (n, 1)) * 0.3
    whole, labels = full(training_data, values, whole.sources, "probe")
    found = predicted(whole, labels)
    off = ~np.eye(n, dtype=bool)
    assert np.corrcoef(found[off], values[off])[0, 1] > 0.9


def test_pairs_with_one_labelled_row_are_predicted_from_its_own_labels(
    training_data: Make, vectors: Callable[..., np.ndarray]
) -> None:
    x = vectors(60)
    random = np.random.default_rng(6)
    # Each target weighs the sources in its own way, of which its vector tells nothing.
    values = (random.normal(size=(60, 6)) @ x.T).astype(np.float32)
    whole = training_data(values, x)
    t, s = (part.ravel().astype(np.int32) for part in np.indices((40, 40)))
    pairs = replace(whole.train, target=t, source=s, value=values[t, s])
    whole = replace(whole, train=pairs, validation=pairs.take(np.arange(0)))
    labels = Labels.of(whole.train)
    assert labels is not None
    found = predicted(whole, labels)
    truth = values[:40, 40:]
    assert np.mean((found[:40, 40:] - truth) ** 2) < 0.1 * truth.var()
    assert np.mean((found[40:, 40:] - values[40:, 40:]) ** 2) > 0.5 * truth.var()


def test_a_labelled_row_is_known_by_its_vector_and_no_other_is(
    training_data: Make, vectors: Callable[..., np.ndarray]
) -> None:
    x = vectors(24)
    whole, labels = full(training_data, bilinear(x) + np.random.default_rng(3).normal(size=(24, 24)), x)
    learned = solve_block(whole, labels, 6)
    student = Student("product", learned.weights, learned.mean, learned.scale, views=whole.views)
    rank = learned.weights["target_rest"].shape[1]
    inner = learned.weights["target_weight"].shape[1]
    at = slice(inner, inner + rank)
    again = unit(x + np.random.default_rng(1).normal(scale=1e-6, size=x.shape).astype(np.float32))
    assert np.array_equal(student.project_targets(again)[:, at], learned.weights["target_rest"])
    others = unit(x + np.float32(0.01))
    assert not student.project_targets(others)[:, at].any()
