import numpy as np
import pytest

from nncift.core.amounts import Budget
from nncift.errors import InfeasibleError, UsageError


@pytest.mark.parametrize(
    ("budget", "n", "rows"),
    [
        ("30%", 600, 180),
        (" 30 % ", 600, 180),
        ("12.5%", 8, 1),
        (".5%", 1000, 5),
        ("100%", 7, 7),
        ("0.3", 600, 180),
        (".3", 600, 180),
        (0.3, 600, 180),
        ("1.0", 7, 7),
        (1.0, 7, 7),
        ("1", 7, 1),
        (1, 7, 1),
        ("5000", 5000, 5000),
        (np.int64(5), 9, 5),
        (np.float64(0.5), 9, 5),
        # Half a row rounds up, and three tenths are not the binary number just below.
        ("50%", 5, 3),
        (0.3, 15, 5),
        (0.1, 15, 2),
        ("30%", 3, 1),
        ("49%", 5, 2),
    ],
)
def test_rows_of_a_budget(budget: str | float, n: int, rows: int) -> None:
    assert Budget.parse(budget).rows(n) == rows


@pytest.mark.parametrize(
    "budget", ["", "many", "30 percent", "%", ".", "1e3", "3 0", "5k", "-2Mtok", "tok", "nan", "9" * 50]
)
def test_unreadable_budgets_show_examples(budget: str) -> None:
    with pytest.raises(UsageError, match=r"30%, 0\.3.*5000.*2Mtok"):
        Budget.parse(budget).rows(10)


@pytest.mark.parametrize("budget", [float("nan"), float("inf"), True, None])
def test_values_that_are_no_budget(budget: float) -> None:
    with pytest.raises(UsageError):
        Budget.parse(budget).rows(10)


@pytest.mark.parametrize(
    ("budget", "tokens"),
    [("2Mtok", 2_000_000), ("500k tokens", 500_000), ("100tok", 100), ("1.5Gtok", 1_500_000_000), ("7 token", 7)],
)
def test_tokens_of_a_budget(budget: str, tokens: int) -> None:
    assert Budget.parse(budget).tokens == tokens
    with pytest.raises(UsageError, match=r"counts tokens.*30%.*5000"):
        Budget.parse(budget).rows(10)


@pytest.mark.parametrize("budget", ["30%", 5000, 0.3])
def test_budgets_that_count_no_tokens(budget: str | float) -> None:
    assert Budget.parse(budget).tokens is None


def test_less_than_a_token_is_refused() -> None:
    with pytest.raises(InfeasibleError, match="less than one token"):
        Budget.parse("0.5tok")


@pytest.mark.parametrize(
    ("budget", "n", "says"),
    [
        ("0", 10, "1 to 10 rows"),
        (0, 10, "5% to 100%"),
        ("0%", 10, "at least one row"),
        (0.0, 10, "at least one row"),
        ("-5", 10, "at least one row"),
        ("-5%", 10, "at least one row"),
        ("101%", 10, "101 % of the pool"),
        ("1.5", 10, "150 % of the pool"),
        (1.5, 10, "150 % of the pool"),
        (50.0, 100, "without a decimal point: 50"),
        ("11", 10, "only 10 rows"),
        ("10%", 3, "0.3 rows, which rounds to none. Possible: 1 to 3 rows, or 16.67% to 100%"),
        ("30%", 0, "pool is empty"),
        ("3", 0, "pool is empty"),
        (0, 0, "pool is empty"),
    ],
)
def test_impossible_budgets_say_what_works(budget: str | float, n: int, says: str) -> None:
    with pytest.raises(InfeasibleError) as caught:
        Budget.parse(budget).rows(n)
    assert says in str(caught.value)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 13, 600, 12_345])
def test_the_smallest_share_that_a_message_names_works(n: int) -> None:
    with pytest.raises(InfeasibleError) as caught:
        Budget.parse("0%").rows(n)
    share = str(caught.value).split("rows, or ")[1].split(" to")[0]
    assert Budget.parse(share).rows(n) == 1
