"""Quotas: how few and how many of the chosen rows a group may have, a group being the rows that share a column's value."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil, floor

from nncift.core.texts import some
from nncift.errors import InfeasibleError, UsageError

_AMOUNT = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)(%?)")
_EXAMPLE = "COLUMN:min=5%,max=40% or COLUMN=VALUE:min=100"


@dataclass(frozen=True)
class QuotaAmount:
    """A share of the selected rows, or a number of them."""

    value: Fraction
    is_share: bool
    text: str

    def rows(self, k: int) -> Fraction:
        """Return how many of `k` rows this is."""
        return self.value * k if self.is_share else self.value


@dataclass(frozen=True)
class QuotaBound:
    """One `--quota`: for one value of a column, or for each where `value` is None."""

    column: str
    value: str | None
    least: QuotaAmount | None
    most: QuotaAmount | None

    @classmethod
    def parse(cls, text: str) -> QuotaBound:
        """Read `COLUMN:min=5%,max=40%` or `COLUMN=VALUE:min=100`. Raises UsageError."""
        head, colon, tail = text.rpartition(":")
        column, equals, value = head.partition("=")
        bounds: dict[str, QuotaAmount] = {}
        for part in tail.split(","):
            name, _, amount = part.partition("=")
            found = _AMOUNT.fullmatch(amount.strip())
            if not colon or not column or name.strip() not in ("min", "max") or name.strip() in bounds or not found:
                raise UsageError(f"--quota {text!r} was given; expected {_EXAMPLE}")
            share = bool(found[2])
            bounds[name.strip()] = QuotaAmount(Fraction(found[1]) / (100 if share else 1), share, amount.strip())
        return cls(column, value if equals else None, bounds.get("min"), bounds.get("max"))


@dataclass(frozen=True)
class Quota:
    """Bounds over one column. group: the column's value of every row, as text."""

    column: str
    limits: tuple[QuotaBound, ...]
    group: Mapping[str, str] = field(repr=False)

    def bounds(self, name: str, k: int) -> tuple[int, int]:
        """Return the fewest and the most of `k` rows that the group of this name may have; the last bound for it counts."""
        least, most = Fraction(0), Fraction(k)
        for bound in sorted(self.limits, key=lambda bound: bound.value is not None):
            if bound.value in (None, name):
                least = bound.least.rows(k) if bound.least else least
                most = bound.most.rows(k) if bound.most else most
        return ceil(least), min(floor(most), k)

    def check(self, free: Sequence[str], k: int, include: AbstractSet[str]) -> None:
        """Raise InfeasibleError, naming the conflict, unless `k` of the rows `free` with all of `include` can keep this."""
        there, owed = Counter(self.group[item] for item in free), Counter(self.group[item] for item in include)
        if unknown := sorted({bound.value for bound in self.limits if bound.value is not None} - set(there)):
            raise UsageError(
                f"--quota names {self.column}={unknown[0]}, and no row has it; there are {some(sorted(there))}"
            )
        needed = possible = 0
        for name in sorted(there):
            least, most = self.bounds(name, k)
            if least > there[name]:
                raise InfeasibleError(
                    f"The quota asks for at least {least} of {k} rows with {self.column} {name}, and there are {there[name]}; "
                    "lower its min or the budget"
                )
            if least > most or owed[name] > most:
                what = f"{owed[name]} rows of it must be chosen" if owed[name] > most else f"its minimum is {least}"
                raise InfeasibleError(f"The quota allows {most} of {k} rows with {self.column} {name}, and {what}")
            needed += max(least, owed[name])
            possible += min(most, there[name])
        if needed > k:
            raise InfeasibleError(
                f"The quotas over {self.column} and the rows that must be chosen ask for {needed} rows together, and the "
                f"budget is {k}"
            )
        if possible < k:
            raise InfeasibleError(
                f"The quotas over {self.column} allow {possible} rows together, and the budget is {k}; raise a max or lower "
                "the budget"
            )


def one_column(texts: Sequence[str]) -> tuple[QuotaBound, ...]:
    """Read all `--quota` of a selection. Raises UsageError where they are over several columns."""
    limits = tuple(QuotaBound.parse(text) for text in texts)
    if len({bound.column for bound in limits}) > 1:
        names = ", ".join(dict.fromkeys(bound.column for bound in limits))
        raise UsageError(f"quotas over several columns were given ({names}); give them over one")
    return limits
