"""Training in closed form against an independent solver, and what it does with signals that are known."""

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.linear_model import Ridge

from nncift.core.pairs import LabelledPairs
from nncift.errors import DataError
from nncift.models.views import Views
from nncift.student.item_components import describe
from nncift.student.model import Student
from nncift.student.networks import FittedStudent, TrainingData
from nncift.student.ridge import CURVES, PENALTIES, UNVALIDATED
from nncift.student.ridge import solve_pairs as solve

Make = Callable[..., TrainingData]
Draw = Callable[..., np.ndarray]
POWERS = {"towers": 1, "product": 6}


def predict(name: str, learned: FittedStudent, training_data: TrainingData, pairs: LabelledPairs) -> np.ndarray:
    student = Student(name, learned.weights, learned.mean, learned.scale, views=training_data.views)
    targets, sources = student.project_targets(training_data.targets), student.project_sources(training_data.sources)
    return student.predict_pairs(pairs, targets, sources)


def unseen(training_data: TrainingData, value: np.ndarray) -> LabelledPairs:
    """Return all pairs of the last sixth of the rows, which no lesson holds."""
    n = len(value)
    rows = np.arange(5 * n // 6, n, dtype=np.int32)
    t, s = np.repeat(rows, len(rows)), np.tile(rows, len(rows))
    t, s = t[t != s], s[t != s]
    return LabelledPairs(
        training_data.train.target_ids, training_data.train.source_ids, t, s, value[t, s].astype(np.float32)
    )


def explicit(training_data: TrainingData, pairs: LabelledPairs, powers: int) -> np.ndarray:
    """Return the features of pairs, written out in double precision."""
    items = describe(training_data)
    rows = []
    for t, s in zip(pairs.target, pairs.source, strict=True):
        a, b = items.target[t].astype(float), items.source[s].astype(float)
        row = [*a, *b, *np.outer(a, b).ravel()]
        for view in training_data.views.similar:
            cosine = float(items.target_alike[view][t].astype(float) @ items.source_alike[view][s])
            row += [CURVES * cosine, *(CURVES * max(cosine, 0.0) ** e for e in (2, 4, 8, 16, 32)[: powers - 1])]
        rows.append(row)
    return np.array(rows)


def by_scikit_learn(
    training_data: TrainingData, learned: FittedStudent, powers: int, pairs: LabelledPairs
) -> np.ndarray:
    """Return what scikit-learn's ridge predicts under the same penalty, from the same start."""
    train = training_data.train
    items = describe(training_data)

    def cosine(of: LabelledPairs) -> Any:
        return (items.target_alike["text"][of.target].astype(float) * items.source_alike["text"][of.source]).sum(axis=1)

    line = np.polyfit(cosine(train), train.value.astype(float), 1)
    start: dict[str, Callable[[LabelledPairs], Any]] = {
        "cosine": lambda of: np.polyval(line, cosine(of)),
        "mean": lambda of: np.full(len(of), learned.mean),
    }
    begin = start[str(learned.course["start"])]
    solver: Any = Ridge(alpha=float(learned.course["penalty"]) * len(train) / 1e4)
    solver.fit(explicit(training_data, train, powers), train.value - begin(train))
    return np.asarray(begin(pairs) + solver.predict(explicit(training_data, pairs, powers)))


def bilinear(x: np.ndarray, noise: float, seed: int = 1) -> np.ndarray:
    random = np.random.default_rng(seed)
    own = random.normal(size=(x.shape[1], x.shape[1]))
    value = x @ own @ x.T + (x @ random.normal(size=x.shape[1]))[:, None]
    return np.asarray(value + noise * value.std() * random.normal(size=value.shape))


@pytest.mark.parametrize("side", ["features", "pairs"])
@pytest.mark.parametrize("name", POWERS)
def test_the_solution_is_that_of_an_independent_solver(
    name: str, side: str, training_data: Make, vectors: Draw
) -> None:
    x = vectors(60)
    value = bilinear(x, 0.5)
    whole = training_data(value, x)
    if side == "pairs":
        picked = np.random.default_rng(2).permutation(len(whole.train))[:40]
        whole = replace(whole, train=whole.train.take(picked))
    learned = solve(whole, powers=POWERS[name])
    found = predict(name, learned, whole, unseen(whole, value))
    expected = by_scikit_learn(whole, learned, POWERS[name], unseen(whole, value))
    assert found == pytest.approx(expected, abs=2e-3 * learned.scale)


@pytest.mark.parametrize("name", POWERS)
def test_the_same_pairs_twice_change_nothing_though_they_are_solved_from_the_other_side(
    name: str, training_data: Make, vectors: Draw
) -> None:
    x = vectors(60)
    value = bilinear(x, 0.5)
    whole = training_data(value, x)
    count = explicit(whole, whole.train.take(np.arange(1)), POWERS[name]).shape[1]
    picked = np.random.default_rng(2).permutation(len(whole.train))[: count - 5]
    once = replace(whole, train=whole.train.take(picked))
    twice = replace(whole, train=whole.train.take(np.tile(picked, 2)))
    assert len(once.train) < count < len(twice.train)
    found = [predict(name, solve(of, powers=POWERS[name]), of, unseen(whole, value)) for of in (once, twice)]
    assert found[0] == pytest.approx(found[1], abs=2e-3 * value.std())


@pytest.mark.parametrize("name", POWERS)
def test_a_planted_bilinear_signal_is_learned_for_unseen_items(name: str, training_data: Make, vectors: Draw) -> None:
    x = vectors(90)
    value = bilinear(x, 0.3)
    whole = training_data(value, x)
    truth = bilinear(x, 0.0)
    test = unseen(whole, truth)
    found = predict(name, solve(whole, powers=POWERS[name]), whole, test)
    assert 1 - np.mean((found - test.value) ** 2) / np.var(test.value) > 0.95


def test_near_duplicates_are_singled_out_by_powers_alone(training_data: Make, vectors: Draw) -> None:
    random = np.random.default_rng(0)
    x = np.repeat(vectors(30, seed=4), 3, axis=0) + 0.03 * random.normal(size=(90, 6)).astype(np.float32)
    x = random.permutation(x).astype(np.float32)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    value = (unit @ unit.T > 0.95).astype(float)
    whole = training_data(value, x)
    test = unseen(whole, value)
    left = {
        name: np.mean((predict(name, solve(whole, powers=k), whole, test) - test.value) ** 2)
        for name, k in POWERS.items()
    }
    assert left["product"] < 0.5 * left["towers"]


def test_noise_beside_similarity_leaves_similarity(training_data: Make, vectors: Draw) -> None:
    random, x = np.random.default_rng(7), vectors(90)
    cosine = x @ x.T
    value = 0.3 * cosine + random.normal(size=cosine.shape)
    whole = training_data(value, x)
    learned = solve(whole, powers=6)
    assert learned.course["start"] == "cosine"
    assert float(learned.course["penalty"]) >= 10
    test = unseen(whole, cosine)
    assert spearmanr(predict("product", learned, whole, test), test.value).statistic > 0.9


def test_where_alike_rows_hurt_the_start_is_the_mean(training_data: Make, vectors: Draw) -> None:
    x = vectors(60)
    whole = training_data(0.2 - 0.3 * (x @ x.T), x)
    learned = solve(whole, powers=1)
    assert learned.course["start"] == "mean"
    test = unseen(whole, 0.2 - 0.3 * (x @ x.T))
    assert predict("towers", learned, whole, test) == pytest.approx(test.value, abs=0.01)


def test_the_penalty_is_the_one_with_the_smallest_validation_error(training_data: Make, vectors: Draw) -> None:
    x = vectors(60)
    whole = training_data(bilinear(x, 1.0), x)
    learned = solve(whole, powers=6)
    errors = learned.course["validation_mse"]
    assert learned.course["penalty"] == PENALTIES[int(np.argmin(errors))]
    found = predict("product", learned, whole, whole.validation)
    assert np.mean((found - whole.validation.value) ** 2) == pytest.approx(min(errors), rel=1e-3)
    alone = solve(replace(whole, validation=whole.validation.take(np.arange(0))), powers=6)
    assert (alone.course["penalty"], alone.course["validation_mse"]) == (UNVALIDATED, [])


def test_a_pointwise_score_that_is_linear_is_learned(training_data: Make, vectors: Draw) -> None:
    x = vectors(90)
    score = 2 + x @ np.array([1.0, -2, 0.5, 0, 0, 3])
    whole = training_data(score, x, pointwise=True)
    rows = np.arange(75, 90, dtype=np.int32)
    test = LabelledPairs(
        ("score",), whole.train.source_ids, np.zeros(15, np.int32), rows, score[rows].astype(np.float32)
    )
    found = predict("product", solve(whole, powers=6), whole, test)
    assert found == pytest.approx(score[rows], abs=0.05 * score.std())


@pytest.mark.parametrize("views", ["text", "probe"])
def test_the_same_lesson_gives_the_same_bytes(views: str, training_data: Make) -> None:
    one, two = (solve(training_data(views=views), powers=6).weights for _ in range(2))
    assert all(one[name].tobytes() == two[name].tobytes() for name in one)


def test_pairs_without_a_value_are_left_out(training_data: Make) -> None:
    whole = training_data()
    holes = np.arange(len(whole.train)) % 3 == 0
    value = np.where(holes, np.nan, whole.train.value).astype(np.float32)
    one = solve(replace(whole, train=replace(whole.train, value=value)), powers=6)
    two = solve(replace(whole, train=whole.train.take(~holes)), powers=6)
    assert all((one.weights[name] == two.weights[name]).all() for name in one.weights)
    with pytest.raises(DataError, match="no training pair has a label"):
        solve(replace(whole, train=replace(whole.train, value=np.full(len(holes), np.nan, np.float32))), powers=6)


@pytest.mark.parametrize("what", ["labels", "vectors"])
def test_equal_labels_and_equal_vectors_are_learned_without_dividing_by_nothing(what: str, training_data: Make) -> None:
    whole = (
        training_data(np.full((36, 36), 0.25))
        if what == "labels"
        else training_data(x=np.tile(np.array([1, 0, 0, 0, 0, 0], np.float32), (36, 1)))
    )
    learned = solve(whole, powers=6)
    found = predict("product", learned, whole, whole.validation)
    assert found == pytest.approx(np.full(len(found), learned.mean), abs=0.02 if what == "vectors" else 1e-5)


def test_memory_is_linear_in_pairs(vectors: Draw) -> None:
    x, random = vectors(200), np.random.default_rng(0)
    ids = tuple(map(str, range(200)))

    def peak(count: int) -> int:
        t, s = random.integers(200, size=(2, count)).astype(np.int32)
        pairs = LabelledPairs(ids, ids, t, s, random.normal(size=count).astype(np.float32))
        tracemalloc.start()
        solve(TrainingData(pairs, pairs.take(np.arange(50)), x, x, Views.of({"text": 6})), powers=6)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    # A table of pairs by pairs would take 1.6 GB for these.
    assert peak(20_000) < 40_000_000
