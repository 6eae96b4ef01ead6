"""Budgets: from what a user writes (30%, 0.3, 5000, 2Mtok) to a number of rows or tokens."""

from __future__ import annotations

import re
from fractions import Fraction
from math import ceil, floor, isfinite
from numbers import Integral, Real

from nncift.errors import InfeasibleError, UsageError

_COUNT = re.compile(r"[+-]?[0-9]{1,18}")
_DECIMAL = re.compile(r"[+-]?([0-9]{1,18}\.[0-9]{0,18}|\.[0-9]{1,18})")
_PERCENT = re.compile(r"([+-]?(?:[0-9]{1,18}(?:\.[0-9]{0,18})?|\.[0-9]{1,18}))\s*%")
_TOKENS = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*([kmgbt]?)\s*tok(?:ens?)?", re.IGNORECASE)
_FACTOR = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9, "t": 10**12}


def parse_tokens(budget: str | int | float) -> int | None:
    """Return the tokens of a budget such as `2Mtok` or `500k tokens`; None for a budget that counts rows.

    Raises InfeasibleError for less than one token.
    """
    found = _TOKENS.fullmatch(budget.strip()) if isinstance(budget, str) else None
    if not found:
        return None
    tokens = floor(Fraction(found[1]) * _FACTOR[found[2].lower()])
    if tokens < 1:
        raise InfeasibleError(f"Cannot select with budget {budget}: it is less than one token.")
    return tokens


def parse_budget(budget: str | int | float, n: int) -> int:
    """Return the number of rows that a budget means for a pool of `n` rows, rounding shares half up.

    With % it is a share (`"30%"`); so is anything with a decimal point (`"0.3"`) and every Python float (`0.3`, `1.0`).
    Bare integers are counts (`5000`, `"5000"`).

    Raises UsageError for what cannot be read and for tokens (see `parse_tokens`), InfeasibleError for no row or more than
    there are.
    """
    if isinstance(budget, str):
        share, count = _read(budget.strip(), budget)
    elif isinstance(budget, Integral) and not isinstance(budget, bool):
        share, count = None, int(budget)
    elif isinstance(budget, Real) and not isinstance(budget, bool) and isfinite(budget):
        # The shortest decimal is what was typed: 0.3 means three tenths, not the binary number just below.
        share, count = Fraction(repr(float(budget))), 0
    else:
        raise _unreadable(budget)
    if n == 0:
        raise InfeasibleError(f"Cannot select with budget {budget}: the pool is empty.")
    if share is None:
        check_count(count, n, given=f"budget {budget}")
        return count
    return _rows(share, n, budget)


def check_count(k: int, n: int, given: str = "") -> None:
    """Raise InfeasibleError unless `k` rows can be chosen from `n`; nothing can be chosen only from nothing."""
    given = given or f"{k} rows"
    if k < 1 and not (k == 0 and n == 0):
        raise InfeasibleError(f"Cannot select with {given}: at least one row must be chosen. {_range(n)}")
    if k > n:
        raise InfeasibleError(f"Cannot select with {given}: the pool has only {n} rows. {_range(n)}")


def _read(text: str, given: str) -> tuple[Fraction | None, int]:
    """Return (share, 0) or (None, count) of a written budget."""
    if percent := _PERCENT.fullmatch(text):
        return Fraction(percent[1]) / 100, 0
    if _DECIMAL.fullmatch(text):
        return Fraction(text), 0
    if _COUNT.fullmatch(text):
        return None, int(text)
    if _TOKENS.fullmatch(text):
        raise UsageError(
            f"Budget {given!r} counts tokens, and a number of rows is needed here: give a share (30%) or a count (5000)."
        )
    raise _unreadable(given)


def _rows(share: Fraction, n: int, given: object) -> int:
    """Return the rows of a share, rounded half up."""
    if share <= 0:
        raise InfeasibleError(f"Cannot select with budget {given}: at least one row must be chosen. {_range(n)}")
    if share > 1:
        hint = f" For a count, write it without a decimal point: {int(share)}." if share.denominator == 1 else ""
        raise InfeasibleError(
            f"Cannot select with budget {given}: as a share it is {float(share * 100):.6g} % of the pool, "
            f"more than all of it. {_range(n)}{hint}"
        )
    rows = floor(share * n + Fraction(1, 2))
    if rows == 0:
        raise InfeasibleError(
            f"Cannot select with budget {given}: {float(share * 100):.4g} % of {n} rows is "
            f"{float(share * n):.2g} rows, which rounds to none. {_range(n)}"
        )
    return rows


def _range(n: int) -> str:
    """Return the smallest and the largest budget that a pool of `n` rows allows."""
    if n == 0:
        return "The pool is empty."
    digits = len(str(n)) + 1
    lowest = Fraction(ceil(Fraction(50, n) * 10**digits), 10**digits)
    return f"Possible: 1 to {n} rows, or {float(lowest):.{digits}f}".rstrip("0").rstrip(".") + "% to 100%."


def _unreadable(given: object) -> UsageError:
    return UsageError(
        f"Cannot read the budget {given!r}: expected a share of the rows (30%, 0.3), a number of rows "
        "(5000) or of tokens (2Mtok)."
    )
