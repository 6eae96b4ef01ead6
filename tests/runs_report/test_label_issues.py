"""Rows that look wrong, found by hand-made figures."""

import numpy as np
import pytest

from nncift.runs.report.label_issues import outliers

pytestmark = pytest.mark.usefixtures("hastened")


def test_outliers_lie_below_the_lower_quartile_by_more_than_one_and_a_half_ranges() -> None:
    # Quartiles of 0..10 are 2.5 and 7.5: the bound is 2.5 - 1.5 * 5 = -5.
    values = np.array([*range(11), -5.0], float)
    low, high = np.quantile(values, [0.25, 0.75])
    assert outliers(values) == []
    values[11] = low - 1.5 * (high - low) - 4
    assert outliers(values) == [11]


def test_the_lowest_come_first_and_what_is_no_number_is_none() -> None:
    values = np.array([5.0, 5.1, 5.2, 5.3, 5.0, -9.0, np.nan, -20.0, 5.1, 5.2, 5.1])
    assert outliers(values) == [7, 5]


@pytest.mark.parametrize("values", [[], [1.0, -9.0], [np.nan] * 5])
def test_few_values_have_no_outliers(values: list[float]) -> None:
    assert outliers(np.array(values, float)) == []
