import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import r2_score

from nncift.core.pairs import LabelledPairs
from nncift.evaluation.metrics import mse, number, r2, skill, spearman, spearman_by_target, topk_overlap


def ones(values: object) -> np.ndarray:
    return np.ones(len(np.asarray(values)))


def pairs_of(target: list[int], source: list[int], value: list[float], source_ids: str = "abcdefghij") -> LabelledPairs:
    return LabelledPairs(
        ("t0", "t1", "t2"), tuple(source_ids), np.array(target, "i4"), np.array(source, "i4"), np.array(value, "f4")
    )


def test_mse_and_r2_by_hand() -> None:
    label, guess = np.array([1.0, 2.0, 6.0]), np.array([1.0, 4.0, 5.0])
    assert mse(label, guess, ones(label)) == pytest.approx(5 / 3)
    # Against the training mean 4: squares 9 + 4 + 4 = 17, residuals 0 + 4 + 1 = 5.
    assert r2(label, guess, 4.0, ones(label)) == pytest.approx(1 - 5 / 17)


def test_a_constant_at_the_training_mean_has_r2_zero_on_any_pairs() -> None:
    label = np.array([3.0, 5.0, 9.0])
    assert r2(label, np.full(3, 1.0), 1.0, ones(label)) == pytest.approx(0)


def test_r2_agrees_with_scikit_learn_where_the_means_agree() -> None:
    rng = np.random.default_rng(0)
    label, guess = rng.normal(size=(2, 50))
    assert r2(label, guess, float(label.mean()), ones(label)) == pytest.approx(r2_score(label, guess))


@pytest.mark.parametrize("decimals", [0, 1, 6])
def test_spearman_agrees_with_scipy_with_and_without_ties(decimals: int) -> None:
    label, guess = np.random.default_rng(decimals).normal(size=(2, 200)).round(decimals)
    assert spearman(label, guess, ones(label)) == pytest.approx(stats.spearmanr(label, guess).statistic)


def test_weights_equal_explicit_copies_of_the_pairs() -> None:
    rng = np.random.default_rng(1)
    label, guess = rng.normal(size=(2, 60)).round(1)
    weights = rng.integers(0, 4, size=(60, 7))
    columns = weights.astype(np.float64)
    for column in range(7):
        y, p = np.repeat(label, weights[:, column]), np.repeat(guess, weights[:, column])
        assert mse(label, guess, columns)[column] == pytest.approx(np.mean((y - p) ** 2))
        assert r2(label, guess, 0.3, columns)[column] == pytest.approx(1 - sum((y - p) ** 2) / sum((y - 0.3) ** 2))
        assert spearman(label, guess, columns)[column] == pytest.approx(stats.spearmanr(y, p).statistic)
        assert spearman(label, guess, columns[:, column]) == pytest.approx(stats.spearmanr(y, p).statistic)


def test_a_constant_prediction_orders_nothing_and_scores_zero() -> None:
    label = np.array([1.0, 2.0, 3.0, 4.0])
    assert spearman(label, np.full(4, 0.1), ones(label)) == 0.0


def test_constant_labels_and_two_pairs_are_undefined() -> None:
    assert number(spearman(np.full(4, 0.1), np.arange(4.0), np.ones(4))) is None
    assert number(spearman(np.arange(2.0), np.arange(2.0), np.ones(2))) is None
    assert number(r2(np.full(3, 2.0), np.arange(3.0), 2.0, np.ones(3))) is None
    assert number(mse(np.empty(0), np.empty(0), np.empty(0))) is None


def test_spearman_by_target_averages_the_targets_that_can_be_ordered() -> None:
    # t0: perfect order (+1). t1: labels equal, left out. t2: two pairs, left out; then a constant prediction counts 0.
    target, source = [0, 0, 0, 1, 1, 1, 2, 2], [0, 1, 2, 0, 1, 2, 0, 1]
    pairs = pairs_of(target, source, [1, 2, 3, 5, 5, 5, 1, 2])
    guess = np.array([10.0, 20, 30, 1, 2, 3, 2, 1])
    assert spearman_by_target(pairs, guess) == pytest.approx(1.0)
    more = pairs_of([*target, 2], [*source, 2], [1, 2, 3, 5, 5, 5, 1, 2, 3])
    assert spearman_by_target(more, np.array([10.0, 20, 30, 1, 2, 3, 7, 7, 7])) == pytest.approx(0.5)
    assert spearman_by_target(pairs_of([0, 0], [0, 1], [1, 2]), np.zeros(2)) is None


def test_spearman_by_target_agrees_with_scipy_target_by_target() -> None:
    rng = np.random.default_rng(2)
    target = np.repeat(np.arange(3), 40)
    value, guess = rng.normal(size=(2, 120)).round(1)
    order = rng.permutation(120)
    pairs = pairs_of(target[order].tolist(), np.tile(np.arange(40), 3)[order].tolist(), value[order].tolist(), "x" * 40)
    expected = [stats.spearmanr(pairs.value[pairs.target == t], guess[order][pairs.target == t])[0] for t in range(3)]
    assert spearman_by_target(pairs, guess[order]) == pytest.approx(np.mean(expected))


def test_topk_overlap_by_hand() -> None:
    # t0 has 3 pairs, k = 1, the best source is found; t1 has 3 pairs and it is missed; t2 has one pair and is left out.
    pairs = pairs_of([0, 0, 0, 1, 1, 1, 2], [0, 1, 2, 0, 1, 2, 0], [3, 2, 1, 3, 2, 1, 9])
    assert topk_overlap(pairs, np.array([5.0, 4, 3, 1, 2, 3, 0])) == pytest.approx(0.5)


def test_topk_takes_a_tenth_of_the_targets_pairs() -> None:
    label = np.arange(30.0)
    guess = label.copy()
    guess[29] = -1
    pairs = pairs_of([0] * 30, list(range(30)), label.tolist(), "x" * 30)
    assert topk_overlap(pairs, guess) == pytest.approx(2 / 3)


def test_topk_ties_go_to_the_smaller_source_id_not_to_the_smaller_code() -> None:
    pairs = pairs_of([0, 0, 0], [0, 1, 2], [1, 5, 1], source_ids="cab")
    assert topk_overlap(pairs, np.zeros(3)) == 1.0
    assert topk_overlap(pairs_of([0, 0, 0], [0, 1, 2], [5, 1, 1], source_ids="cab"), np.zeros(3)) == 0.0


def test_skill_is_relative_to_chance_and_to_the_full_teacher() -> None:
    assert skill(7.0, 5.0, 9.0) == pytest.approx(0.5)
    assert skill(4.0, 5.0, 9.0) == pytest.approx(-0.25)
    assert skill(5.0, 5.0, 5.0) is None
    assert skill(float("nan"), 5.0, 9.0) is None
