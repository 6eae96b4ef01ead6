import numpy as np
import pytest
from scipy import stats

from nncift.core.pairs import LabelledPairs
from nncift.errors import UsageError
from nncift.evaluation.intervals import interval_of_mean_utility, interval_of_pairs


def held_out(rows: np.ndarray) -> LabelledPairs:
    """Label rows `(n_sources, n_targets)`."""
    source, target = np.divmod(np.arange(rows.size), rows.shape[1])
    ids = tuple(f"t{i}" for i in range(rows.shape[1])), tuple(f"s{i}" for i in range(rows.shape[0]))
    return LabelledPairs(*ids, target.astype(np.int32), source.astype(np.int32), rows.ravel().astype(np.float32))


def test_the_rank_by_hand() -> None:
    # 19 rows of two targets with mean residuals -1, 2, -3 .. -19: rank ceil(20 * 0.9) = 18 of 19 is the second largest in size.
    residual = np.arange(1.0, 20.0) * np.where(np.arange(19) % 2, 1, -1)
    found = interval_of_mean_utility(held_out(np.stack([residual, residual], axis=1)), np.zeros(38))
    assert found.half_width == pytest.approx(18)
    assert found.items == 19
    assert found.note() == "90% interval for new rows from 19 held-out rows."


def test_the_noise_of_few_targets_is_taken_off_as_far_as_the_data_can_tell() -> None:
    # Each row's two labels lie 0.5 off its mean, on either side for ten rows: squares of 0.25 for 40 pairs, 19 of them free.
    residual = np.arange(1.0, 21.0) * np.where(np.arange(20) % 2, 1, -1)
    side = np.where(np.arange(20) % 4 < 2, 0.5, -0.5)
    rows = np.stack([residual + side, residual - side], axis=1)
    found = interval_of_mean_utility(held_out(rows), np.zeros(40))
    allowed = np.var(residual, ddof=1) / (10 / 19 / 2) / stats.f.ppf(0.1, 19, 19)
    mean = float(residual.mean())
    size = np.sort(np.abs(mean + (residual - mean) * np.sqrt(1 - 1 / allowed)))
    assert found.half_width == pytest.approx(size[18])


def test_what_a_target_adds_to_all_rows_is_no_noise() -> None:
    residual = np.arange(1.0, 20.0) * np.where(np.arange(19) % 2, 1, -1)
    rows = np.stack([residual + 0.5, residual - 0.5], axis=1)
    assert interval_of_mean_utility(held_out(rows), np.zeros(38)).half_width == pytest.approx(18)


@pytest.mark.parametrize("signal", [0.05, 0.5, 5.0])
@pytest.mark.parametrize(("rows", "targets"), [(10, 5), (50, 30)])
def test_no_interval_is_narrower_than_the_data_can_tell(rows: int, targets: int, signal: float) -> None:
    # A row's own residual, of the size of the signal, is seen through what each of its labels scatters, of size 1.
    rng = np.random.default_rng([rows, round(100 * signal)])
    covered = []
    for _ in range(300):
        labels = signal * rng.normal(size=rows)[:, None] + rng.normal(size=(rows, targets))
        found = interval_of_mean_utility(held_out(labels), np.zeros(labels.size))
        assert found.half_width is not None
        covered.append(2 * stats.norm.cdf(found.half_width / signal) - 1)
    assert np.mean(covered) >= 0.89
    # Where rows differ by less than the noise of their means, an interval is wider than they need.
    assert np.mean(covered) <= (0.93 if signal > 1 else 1.0)
    assert np.mean(np.array(covered) < 0.5) <= 0.02


def test_a_bias_on_new_rows_is_covered() -> None:
    # All rows are missed by 1.5, and nothing else: an interval of no width would cover none of them.
    assert interval_of_mean_utility(held_out(np.full((20, 3), 1.5)), np.zeros(60)).half_width == 1.5


def test_nine_rows_are_the_fewest_for_ninety_percent() -> None:
    rows = np.arange(1.0, 10.0)[:, None]
    assert interval_of_mean_utility(held_out(rows), np.zeros(9)).half_width == 9.0
    few = interval_of_mean_utility(held_out(rows[:8]), np.zeros(8))
    assert few.half_width is None
    assert few.note() == "No 90% interval for new rows: 8 held-out rows were labelled, and it takes 9."


def test_missing_labels_and_nothing_at_all() -> None:
    # Eleven rows with residuals 0..10 over their two labels that are there, and rank 11 of 11.
    rows = np.repeat(np.arange(12.0)[:, None] + 0.5, 3, axis=1)
    rows[:, 1] = np.nan
    rows[11] = np.nan
    found = interval_of_mean_utility(held_out(rows), np.full(36, 0.5))
    assert (found.half_width, found.items) == (10.0, 11)
    assert interval_of_mean_utility(held_out(np.empty((0, 1))), np.empty(0)).half_width is None


def test_coverage_of_new_rows_is_what_was_asked_for() -> None:
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(400):
        effect = rng.standard_t(3, size=60)
        labels = effect[:, None] + 0.1 * rng.normal(size=(60, 5))
        found = interval_of_mean_utility(held_out(labels[:30]), np.zeros(150))
        assert found.half_width is not None
        covered.append(np.mean(np.abs(labels[30:].mean(axis=1)) <= found.half_width))
    assert 0.89 <= np.mean(covered) <= 0.93


def test_wrong_input_is_refused() -> None:
    with pytest.raises(UsageError, match="level"):
        interval_of_mean_utility(held_out(np.ones((2, 2))), np.ones(4), level=90)
    with pytest.raises(UsageError, match="one for each pair"):
        interval_of_mean_utility(held_out(np.ones((2, 2))), np.ones(3))


def test_new_rows_are_covered_over_all_targets_and_not_only_the_held_out_ones() -> None:
    # A label is the row's own effect, the target's, and noise; the run's targets are many, and their effects cancel out.
    rng = np.random.default_rng(1)
    covered = []
    for _ in range(300):
        row, target = rng.normal(size=400), rng.normal(size=20)
        labels = row[:80, None] + target[None] + 2 * rng.normal(size=(80, 20))
        found = interval_of_mean_utility(held_out(labels), np.zeros(labels.size))
        assert found.half_width is not None
        covered.append(np.mean(np.abs(row[80:]) <= found.half_width))
    assert 0.89 <= np.mean(covered) <= 0.95


def crossed(rng: np.random.Generator, n: int) -> LabelledPairs:
    """Return labels of n by n items with effects of both."""
    return held_out(rng.normal(size=n)[:, None] + rng.normal(size=n)[None] + rng.normal(size=(n, n)))


def test_new_pairs_are_covered_as_often_as_was_asked_for() -> None:
    rng = np.random.default_rng(2)
    covered, record = [], []
    for _ in range(150):
        blocks = [(pairs, np.zeros(len(pairs))) for pairs in (crossed(rng, 40), crossed(rng, 60))]
        found = interval_of_pairs(*blocks)
        assert found.half_width is not None
        assert found.coverage is not None
        covered.append(np.mean(np.abs(crossed(rng, 50).value) <= found.half_width))
        record.append(found.coverage)
    assert 0.87 <= np.mean(covered) <= 0.93
    assert 0.87 <= np.mean(record) <= 0.93


def test_the_coverage_that_is_told_is_that_of_the_validation_pairs_interval_on_the_test_pairs() -> None:
    # Nine validation items, all errors different: rank ceil(10 * 0.9) = 9 of 9, the largest error, 81.
    validation = held_out(np.arange(1.0, 82).reshape(9, 9))
    test = held_out(np.full((9, 9), 81.0) + np.arange(9)[None])
    found = interval_of_pairs((validation, np.zeros(81)), (test, np.zeros(81)))
    assert found.coverage == pytest.approx(1 / 9)
    assert found.items == 18


def test_few_items_have_no_interval_however_many_pairs() -> None:
    wide = held_out(np.random.default_rng(0).normal(size=(3, 500)))
    found = interval_of_pairs((wide, np.zeros(len(wide))), (wide, np.zeros(len(wide))))
    assert (found.half_width, found.coverage, found.items) == (None, None, 6)
