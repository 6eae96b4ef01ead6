from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pytest

from nncift.core.pairs import UtilityMatrix
from nncift.selection import select

NAN = float("nan")


def matrix(rows: npt.ArrayLike, sources: Iterable[str]) -> UtilityMatrix:
    values = np.asfortranarray(np.array(rows, dtype=np.float32))
    return UtilityMatrix(tuple(f"t{i}" for i in range(len(values))), tuple(sources), values)


def test_highest_means_first_and_missing_values_do_not_count_as_zero() -> None:
    # Means: a -1.5, b 2 (one value), c 0.5, d none.
    utility = matrix([[-1, NAN, 1, NAN], [-2, 2, 0, NAN]], "abcd")
    subset = select(utility, 2, "topk")
    assert subset.ids == ("b", "c")
    assert subset.gains.tolist() == [2, 0.5]
    assert subset.value == subset.upper_bound == 2.5
    assert subset.final_gain["a"] == -1.5
    assert (
        subset.reasons["a"] == "Not chosen: place 3 with mean utility -1.5, the last chosen row has mean utility 0.5."
    )


def test_rows_without_any_utility_go_last_and_say_so() -> None:
    subset = select(matrix([[NAN, -5.0, NAN]], "bca"), 2, "topk")
    assert subset.ids == ("c", "a")
    assert np.isnan(subset.gains[1])
    assert subset.value == -5
    assert subset.reasons["a"] == "Chosen at rank 2 of 2: no utility known for any target over 1 targets."


def test_equal_means_go_by_id() -> None:
    assert select(matrix([[1, 1, 1], [1, 1, 1]], "cab"), 3, "topk").ids == ("a", "b", "c")


@pytest.mark.parametrize("seed", [0, 1])
def test_the_order_of_columns_changes_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, names = rng.integers(0, 3, size=(4, 20)), [f"s{i:02d}" for i in range(20)]
    order = rng.permutation(20)
    there = select(matrix(values, names), 7, "topk")
    back = select(matrix(values[:, order], [names[i] for i in order]), 7, "topk")
    assert there.ids == back.ids
