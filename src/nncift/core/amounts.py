"""Amounts as users write them, read once: how much to select, to label and to spend.

Each keeps its text, which is what a settings file and `manifest.yaml` hold; everything else works with the numbers. A float
between 0 and 1 is a share (0.3 is `30%`), other numbers are what they are as text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor, isfinite
from numbers import Integral, Real
from typing import Any, ClassVar, Self

from nncift.errors import InfeasibleError, UsageError

LEAST = 4
"""Smallest number of labels that can be asked for."""

_COUNT = re.compile(r"[+-]?[0-9]{1,18}")
_DECIMAL = re.compile(r"[+-]?([0-9]{1,18}\.[0-9]{0,18}|\.[0-9]{1,18})")
_PERCENT = re.compile(r"([+-]?(?:[0-9]{1,18}(?:\.[0-9]{0,18})?|\.[0-9]{1,18}))\s*%")
_TOKENS = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*([kmgbt]?)\s*tok(?:ens?)?", re.IGNORECASE)
_FACTOR = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9, "t": 10**12}
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0}


@dataclass(frozen=True, repr=False)
class Amount:
    """An amount with its text. name, expected: what it is called and how it is written, for errors."""

    name: ClassVar[str]
    expected: ClassVar[str]

    text: str

    @classmethod
    def parse(cls, given: Any) -> Self:
        """Read what was given. Raises UsageError for what cannot be read, InfeasibleError for what can never be met."""
        if isinstance(given, cls):
            return given
        text = cls._as_text(given)
        try:
            if text is not None:
                return cls._read(text, text.strip())
        except ValueError:
            pass
        raise UsageError(f"{cls.name} {given!r} was given; expected {cls.expected}")

    @classmethod
    def _as_text(cls, given: Any) -> str | None:
        """Return what was given as a user would write it; None where it is neither text nor a number."""
        if isinstance(given, str):
            return given
        if isinstance(given, bool) or not isinstance(given, Real):
            return None
        if isinstance(given, Integral):
            return str(int(given))
        number = float(given)
        return f"{100 * number:.10g}%" if 0 < number <= 1 else repr(number)

    @classmethod
    def _read(cls, text: str, stripped: str) -> Self:
        """Read a text. Raises ValueError where it cannot be read."""
        raise NotImplementedError

    def __str__(self) -> str:
        """Return the amount as it was written."""
        return self.text

    def __repr__(self) -> str:
        """Return the amount as it was written, in quotes."""
        return repr(self.text)


@dataclass(frozen=True, repr=False)
class Budget(Amount):
    """How much is selected: a share of the rows, a number of rows, or a number of tokens; exactly one of them is given."""

    name = "--budget"
    expected = "a share of the rows (30%, 0.3), a number of rows (5000) or of tokens (2Mtok)"

    share: Fraction | None = None
    count: int | None = None
    tokens: int | None = None

    @classmethod
    def _read(cls, text: str, stripped: str) -> Self:
        if percent := _PERCENT.fullmatch(stripped):
            return cls(text, share=Fraction(percent[1]) / 100)
        if _DECIMAL.fullmatch(stripped):
            return cls(text, share=Fraction(stripped))
        if _COUNT.fullmatch(stripped):
            return cls(text, count=int(stripped))
        found = _TOKENS.fullmatch(stripped)
        if found is None:
            raise ValueError
        tokens = floor(Fraction(found[1]) * _FACTOR[found[2].lower()])
        if tokens < 1:
            raise InfeasibleError(f"Cannot select with budget {text}: it is less than one token.")
        return cls(text, tokens=tokens)

    def rows(self, n: int) -> int:
        """Return the number of rows of a pool of `n`, shares rounded half up.

        Raises UsageError for a budget of tokens, InfeasibleError for no row or more than there are.
        """
        if self.tokens is not None:
            raise UsageError(
                f"--budget {self} counts tokens, and a number of rows is needed here: give a share (30%) or a count (5000)"
            )
        if n == 0:
            raise InfeasibleError(f"Cannot select with budget {self}: the pool is empty.")
        if self.share is not None:
            return _rows(self.share, n, self.text)
        check_count(self.count or 0, n, given=f"budget {self}")
        return self.count or 0


@dataclass(frozen=True, repr=False)
class HoldoutAmount(Amount):
    """How many rows are set aside: a share of the pool, or a number of rows."""

    name = "--holdout"
    expected = "a share of the rows such as 10%, or a number of rows such as 500"

    share: Fraction | None = None
    count: int | None = None

    @classmethod
    def _read(cls, text: str, stripped: str) -> Self:
        found = Budget._read(text, stripped)
        if found.tokens is not None:
            raise ValueError
        if found.share is not None and not 0 < found.share < 1:
            raise InfeasibleError(f"--holdout {text}: the share must be above 0 % and below 100 %")
        return cls(text, found.share, found.count)

    def rows(self, n: int) -> int:
        """Return the number of rows of a pool of `n`, shares rounded half up. Raises InfeasibleError for none or all of them."""
        rows = self.count if self.share is None else floor(self.share * n + Fraction(1, 2))
        if rows is None or not 0 < rows < n:
            raise InfeasibleError(
                f"--holdout {self} was given, which is {rows} of {n} rows; at least one must be set aside and one left"
            )
        return rows


@dataclass(frozen=True, repr=False)
class LabelAmount(Amount):
    """How much is labelled: a share of each axis, a number of pairs or rows, or neither for `auto`."""

    name = "--labels"
    expected = "a share such as 5%, a number of pairs or rows such as 4000, or auto"

    share: float | None = None
    count: int | None = None

    @classmethod
    def _read(cls, text: str, stripped: str) -> Self:
        if stripped == "auto":
            return cls(stripped)
        share = _share(stripped)
        if share is None:
            count = int(stripped)
            if count < LEAST:
                raise InfeasibleError(f"{cls.name} {text}: at least {LEAST} labels are needed to learn anything")
            return cls(text, count=count)
        if not 0 < share <= 1:
            raise InfeasibleError(f"{cls.name} {text}: the share must be above 0 % and at most 100 %")
        return cls(text, share=share)

    @property
    def auto(self) -> bool:
        """Whether labels are added until held-out fidelity stops improving."""
        return self.share is None and self.count is None


@dataclass(frozen=True, repr=False)
class LabelBound(LabelAmount):
    """How far labels may grow: a share of each axis, or a number of pairs or rows."""

    name = "--max-labels"
    expected = "a share such as 10%, or a number of pairs or rows such as 20000"

    @classmethod
    def _read(cls, text: str, stripped: str) -> Self:
        if stripped == "auto":
            raise ValueError
        return super()._read(text, stripped)


@dataclass(frozen=True, repr=False)
class CostCap(Amount):
    """A cap on what labels, probe and embedding cost, as a share of training on the whole pool; it may be above 1."""

    name = "--cost"
    expected = "a share of training such as 10% or 0.1"

    share: float

    @classmethod
    def _read(cls, text: str, stripped: str) -> Self:
        share = _share(stripped)
        if share is None:
            raise ValueError
        if not (share > 0 and isfinite(share)):
            raise InfeasibleError(f"--cost {text}: the share must be above 0 %")
        return cls(text, share)


@dataclass(frozen=True, repr=False)
class ProbeShare(Amount):
    """How much of every row a probe reads, as a share of its tokens."""

    name = "--probe-share"
    expected = "a share of a row's tokens such as 50% or 0.5"

    share: float

    @classmethod
    def _read(cls, text: str, stripped: str) -> Self:
        share = 1.0 if stripped == "1" else _share(stripped)
        if share is None:
            raise ValueError
        if not 0 < share <= 1:
            raise InfeasibleError(f"--probe-share {text}: the share must be above 0 % and at most 100 %")
        return cls(text, share)


@dataclass(frozen=True, repr=False)
class TimeCap(Amount):
    """A cap on the seconds that labels, probe and embedding take."""

    name = "--time"
    expected = "a time such as 30m, 2h, 1h30m or 90s"

    seconds: float

    @classmethod
    def _as_text(cls, given: Any) -> str | None:
        # Half a second is no share.
        number = isinstance(given, Real) and not isinstance(given, bool)
        return f"{float(given):.10g}" if number else super()._as_text(given)

    @classmethod
    def _read(cls, text: str, stripped: str) -> Self:
        plain = stripped.lower().replace(" ", "")
        parts = re.findall(r"(\d+(?:\.\d+)?)(h|m|s)", plain)
        if re.fullmatch(r"\d+(?:\.\d+)?", plain):
            parts = [(plain, "s")]
        elif not parts or "".join(number + unit for number, unit in parts) != plain:
            raise ValueError
        seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
        if not (seconds > 0 and isfinite(seconds)):
            raise InfeasibleError(f"--time {text}: the time must be above 0")
        return cls(text, seconds)


def _share(text: str) -> float | None:
    """Return the share that `5%` or `0.05` stands for, None for a whole number. Raises ValueError."""
    if text.endswith("%"):
        return float(text[:-1]) / 100
    return float(text) if "." in text else None


def check_count(k: int, n: int, given: str = "") -> None:
    """Raise InfeasibleError unless `k` rows can be chosen from `n`; nothing can be chosen only from nothing."""
    given = given or f"{k} rows"
    if k < 1 and not (k == 0 and n == 0):
        raise InfeasibleError(f"Cannot select with {given}: at least one row must be chosen. {_range(n)}")
    if k > n:
        raise InfeasibleError(f"Cannot select with {given}: the pool has only {n} rows. {_range(n)}")


def _rows(share: Fraction, n: int, given: str) -> int:
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
