"""What a regression on scattered pairs leaves of a target's own labels, learned for that target alone."""

from __future__ import annotations

import numpy as np
import pytest

from nncift.core.arrays import Floats
from nncift.core.pairs import LabelledPairs
from nncift.models.views import TEXT, Views
from nncift.student.networks import FittedStudent, TrainingData, network
from nncift.student.own_rows import PENALTIES, OwnTargets

ROWS, DIM, LABELLED, PAIRS = 60, 24, 40, 700
IDS = tuple(f"row-{row:02d}" for row in range(ROWS))
OWN = tuple(f"target_{name}" for name in ("keys", "rest", "rest_weight", "rest_bias"))


@pytest.fixture
def drawn() -> tuple[TrainingData, Floats]:
    """Return labels that only say which target they are of, and all utilities; the last rows have no labels."""
    random = np.random.default_rng(3)
    vectors = random.normal(size=(ROWS, DIM)).astype(np.float32)
    utility = np.repeat(random.normal(size=(ROWS, 1)), ROWS, axis=1).astype(np.float32)
    codes = random.permutation(LABELLED * LABELLED)[:PAIRS]
    t, s = (codes // LABELLED).astype(np.int32), (codes % LABELLED).astype(np.int32)
    t, s = t[t != s], s[t != s]
    return given(t, s, utility[t, s], vectors), utility


def given(t: np.ndarray, s: np.ndarray, values: Floats, vectors: Floats) -> TrainingData:
    train = LabelledPairs(IDS, IDS, t, s, values)
    return TrainingData(train, train.take(np.arange(0)), vectors, vectors, Views.of({TEXT: DIM}))


def learned(data: TrainingData) -> FittedStudent:
    return network("product").learn(data, recipe="default", seed=0, advance=lambda step: None)


def predicted(fitted: FittedStudent, data: TrainingData, *, without: tuple[str, ...] = ()) -> Floats:
    weights = {name: of for name, of in fitted.weights.items() if name not in without}
    made = network("product")(weights, fitted.mean, fitted.scale, data.views)
    return made.block(made.project_targets(data.targets), made.project_sources(data.sources))


@pytest.fixture
def own() -> OwnTargets:
    """Return three targets with 1, 4 and 7 labels."""
    random = np.random.default_rng(0)
    return OwnTargets(np.arange(3), np.array([1, 5, 12]), random.normal(size=12), random.normal(size=(12, 3)))


def parts(own: OwnTargets) -> list[slice]:
    return [slice(start, end) for start, end in zip([0, 1, 5], own.ends.tolist(), strict=True)]


def solved(own: OwnTargets, rows: np.ndarray, penalty: float) -> np.ndarray:
    x = own.components[rows]
    return np.asarray(np.linalg.solve(x.T @ x + penalty * np.eye(3), x.T @ own.rest[rows]))


def test_functions_are_those_of_a_regression_for_each_target(own: OwnTargets) -> None:
    every = np.arange(12)
    expected = np.stack([solved(own, every[part], 0.7) for part in parts(own)])
    np.testing.assert_allclose(own.functions(0.7), expected, atol=1e-10)


def test_the_penalty_is_that_which_predicts_left_out_labels_best(own: OwnTargets) -> None:
    errors = []
    for penalty in PENALTIES:
        total = 0.0
        for part in parts(own):
            rows = np.arange(12)[part]
            for row in rows:
                total += (own.rest[row] - own.components[row] @ solved(own, rows[rows != row], penalty)) ** 2
        errors.append(total)
    none = float((own.rest**2).sum())
    expected = PENALTIES[int(np.argmin(errors))] if min(errors) < none else None
    assert own.best_penalty() == expected


def test_effects_of_targets_are_known_where_they_have_labels(drawn: tuple[TrainingData, Floats]) -> None:
    data, utility = drawn
    left = np.ones((ROWS, ROWS), bool)
    left[data.train.target, data.train.source] = False
    left[LABELLED:] = False
    fitted = learned(data)
    found = [
        1 - np.var((predicted(fitted, data, without=without) - utility)[left]) / np.var(utility[left])
        for without in ((), OWN)
    ]
    assert found[0] > 0.85
    assert found[1] < 0.6


def test_a_target_without_labels_has_nothing_of_its_own(drawn: tuple[TrainingData, Floats]) -> None:
    data, _ = drawn
    fitted = learned(data)
    whole, plain = predicted(fitted, data), predicted(fitted, data, without=OWN)
    np.testing.assert_allclose(whole[LABELLED:], plain[LABELLED:], atol=1e-5)
    assert np.abs(whole - plain)[:LABELLED].max() > 0.5


def test_labels_that_say_nothing_of_their_targets_leave_none() -> None:
    random = np.random.default_rng(5)
    vectors = random.normal(size=(ROWS, DIM)).astype(np.float32)
    t, s = (random.integers(ROWS, size=90).astype(np.int32) for _ in range(2))
    fitted = learned(given(t, s, random.normal(size=90).astype(np.float32), vectors))
    assert "target_keys" not in fitted.weights
