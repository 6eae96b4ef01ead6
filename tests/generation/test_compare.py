from __future__ import annotations

import numpy as np
import pytest

from nncift.errors import UsageError
from nncift.generation.paired_comparison import UNDECIDED, compare, mean_interval


def test_differences_by_hand() -> None:
    found = compare([[10, 20, 30, 40, 50], [10, 24, 30, 40, 50]], [[8, 22, 30, 40, 44], [12, 20, 30, 40, 54]])
    # seed 1: (2 - 2 + 0 + 0 + 6) / 5 = 1.2; seed 2: (-2 + 4 + 0 + 0 - 4) / 5 = -0.4
    assert found.difference == pytest.approx(0.4)
    assert found.mean_absolute == pytest.approx(0.8)
    assert found.relative == pytest.approx(0.4 / 30)
    assert found.relative_mean_absolute == pytest.approx(0.8 / 30)
    # items' means over seeds: 0, 1, 0, 0, 1
    assert (found.wins, found.ties, found.losses) == (2, 3, 0)


def test_lower_is_better_turns_wins_and_verdict_around() -> None:
    one = np.tile(np.arange(20.0), (3, 1))
    found = compare(one, one + 1 + np.arange(60).reshape(3, 20) % 3, higher_is_better=False)
    assert (found.wins, found.losses) == (20, 0)
    assert (found.difference or 0) < 0
    assert found.verdict == "better"


def test_items_that_failed_in_any_seed_are_left_out_and_counted() -> None:
    one = [[1.0, 2, 3, 4, 5, np.nan], [1.0, 2, 3, 4, 5, 6]]
    other = [[1, 2, np.nan, 4, 5, 6], [1, 2, np.nan, 4, 5, 6]]
    found = compare(one, other)
    assert (found.items, found.left_out) == (4, 2)
    assert found.interval is None
    assert found.verdict == UNDECIDED


def test_an_arm_without_seeds_is_held_against_each() -> None:
    random = np.random.default_rng(0)
    one, base = random.normal(size=(3, 12)), random.normal(size=12)
    assert compare(one, base) == compare(one, np.tile(base, (3, 1)))
    assert compare(one, base).seeds == 3


def test_tables_of_other_items_are_refused() -> None:
    with pytest.raises(UsageError, match=r"\(2, 5\) and \(2, 4\)"):
        compare(np.zeros((2, 5)), np.zeros((2, 4)))


def test_tables_that_never_differ_have_no_interval() -> None:
    base = np.random.default_rng(2).normal(size=(3, 20))
    found = compare(base, base)
    assert found.interval is None
    assert found.relative_interval is None
    assert (found.difference, found.verdict) == (0.0, UNDECIDED)
    assert found.ties == 20


@pytest.mark.parametrize(
    ("seeds", "of_seeds", "of_items", "noise"),
    [(3, 0.0, 1.0, 1.0), (3, 0.3, 1.0, 1.0), (5, 1.0, 0.3, 0.5), (3, 0.0, 0.5, 1.0), (10, 0.3, 1.0, 2.0)],
)
def test_intervals_hold_the_truth_as_often_as_they_say(
    seeds: int, of_seeds: float, of_items: float, noise: float
) -> None:
    random, held, trials, items = np.random.default_rng(7), 0, 500, 60
    for trial in range(trials):
        table = of_seeds * random.normal(size=(seeds, 1)) + of_items * random.exponential(size=(1, items)) - of_items
        interval = mean_interval(table + noise * random.normal(size=(seeds, items)), resamples=300, seed=trial)
        assert interval is not None
        held += interval[0] <= 0 <= interval[1]
    assert 0.90 <= held / trials <= 0.98, held / trials
