"""The linear datamodelling score by hand, and its interval and ceiling by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from nncift.finetune.lds import agreements, ceiling, forecasts, mean_of, rank_correlations


def test_a_forecast_is_the_sum_over_the_rows_of_a_half() -> None:
    values = np.array([[1.0, 2.0, 4.0], [0.0, -1.0, 3.0]])
    members = np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    assert forecasts(values, members).tolist() == [[3.0, 6.0], [-1.0, 2.0]]


def test_a_missing_pair_speaks_for_no_half() -> None:
    values = np.array([[1.0, np.nan, 3.0], [np.nan, np.nan, np.nan]])
    assert forecasts(values, np.eye(3)).tolist() == [[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]


def test_correlations_are_those_of_scipy() -> None:
    random = np.random.default_rng(0)
    first, second = random.normal(size=(4, 30)), random.integers(5, size=(4, 30)).astype(float)
    expected = [spearmanr(a, b).statistic for a, b in zip(first, second, strict=True)]
    assert rank_correlations(first, second) == pytest.approx(expected)


def test_what_differs_by_rounding_alone_has_no_correlation() -> None:
    flat = np.full((1, 5), 0.3) + np.arange(5) * 1e-17
    assert np.isnan(rank_correlations(flat, np.arange(5.0)[None])).all()


def test_utilities_that_are_additive_are_foreseen_and_others_are_not() -> None:
    random = np.random.default_rng(1)
    true, wrong = random.normal(size=(20, 40)), random.normal(size=(20, 40))
    members = np.stack([random.permutation(np.repeat([0.0, 1.0], 20)) for _ in range(60)])
    losses = -(members @ true.T) + random.normal(scale=0.5, size=(60, 20))
    found = agreements({"true": true, "wrong": wrong}, members, losses, against=("wrong",))
    assert found["true"].lds.mean is not None
    assert found["true"].lds.mean > 0.9
    assert abs(found["wrong"].lds.mean or 0.0) < 0.15
    gap = found["true"].differences["wrong"]
    assert gap.interval is not None
    assert gap.interval[0] > 0.7
    assert not found["wrong"].differences


def test_the_ceiling_is_what_the_truth_reaches_against_noisy_trainings() -> None:
    random = np.random.default_rng(2)
    signal = random.normal(size=(400, 8))
    noisy = signal + random.normal(size=(2, 400, 8))
    mean = noisy.mean(0)
    reached = float(np.mean([spearmanr(signal[:, t], mean[:, t]).statistic for t in range(8)]))
    assert ceiling(noisy) == pytest.approx(reached, abs=0.03)
    assert ceiling(noisy[:1]) is None


def test_a_mean_over_targets_covers_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(3)
    inside = 0
    for trial in range(200):
        bounds = mean_of(random.normal(0.2, 0.3, size=32), trial).interval
        assert bounds is not None
        inside += bounds[0] <= 0.2 <= bounds[1]
    assert 178 <= inside <= 199


def test_the_interval_over_halves_covers_chance_that_all_targets_share() -> None:
    random = np.random.default_rng(4)
    narrow = wide = 0
    for _ in range(40):
        members = np.stack([random.permutation(np.repeat([0.0, 1.0], 15)) for _ in range(24)])
        # One estimate for all targets and one outcome: over targets alone nothing seems left to chance.
        losses = random.normal(size=(24, 1)) + 0.3 * random.normal(size=(24, 12))
        values = np.repeat(random.normal(size=(1, 30)), 12, axis=0)
        one = agreements({"noise": values}, members, losses)["noise"].lds
        assert one.interval is not None
        assert one.wide is not None
        narrow += one.interval[0] <= 0 <= one.interval[1]
        wide += one.wide[0] <= 0 <= one.wide[1]
    assert narrow <= 20
    assert wide >= 36


@pytest.mark.parametrize(("values", "targets"), [([np.nan, np.nan], 0), ([0.5, np.nan], 1)])
def test_too_few_targets_give_no_interval(values: list[float], targets: int) -> None:
    found = mean_of(np.array(values), 0)
    assert found.targets == targets
    assert found.interval is None
