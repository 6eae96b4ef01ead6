"""How much to label, as it is asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nncift.errors import InfeasibleError, UsageError

FIRST = 0.5
"""Share of an active plan's training pairs that is scattered before anything is known."""


LEAST = 4
"""Smallest number of labels that can be asked for."""


@dataclass(frozen=True)
class LabelBudget:
    """How much to label.

    share: u, of each axis; or count: of pairs. kind: block, scatter or active. test_items, validation_items: upper bounds,
    a tenth and a fifteenth of a small pool.
    """

    share: float | None
    count: int | None
    kind: str = "scatter"
    test_items: int = 30
    validation_items: int = 20

    def pairs(self, targets: int, sources: int) -> int:
        """Return the number of training pairs that this wish stands for."""
        height, width = self.sides(targets, sources)
        return self.count if self.count is not None and self.kind != "block" else height * width

    def scattered(self, targets: int, sources: int) -> int:
        """Return the number of training pairs that are spread evenly; the rest of an active plan comes later."""
        pairs = self.pairs(targets, sources)
        return math.ceil(FIRST * pairs) if self.kind == "active" else pairs

    def sides(self, targets: int, sources: int) -> tuple[int, int]:
        """Return the sides of the block that this wish stands for, at least 2 by 2."""
        if self.share is not None:
            sides = round(self.share * targets), round(self.share * sources)
        else:
            height = math.sqrt((self.count or 0) * targets / sources)
            sides = round(height), round((self.count or 0) / max(height, 1))
        return max(2, sides[0]), max(2, sides[1])


def parse_labels(text: str) -> tuple[float | None, int | None]:
    """Read `5%` and `0.05` as a share of each axis, `4000` as a number of pairs. Raises UsageError or InfeasibleError."""
    stripped = text.strip()
    try:
        if stripped.endswith("%") or "." in stripped:
            share = float(stripped[:-1]) / 100 if stripped.endswith("%") else float(stripped)
            if not 0 < share <= 1:
                raise InfeasibleError(f"--labels {text}: the share must be above 0 % and at most 100 %")
            return share, None
        count = int(stripped)
    except ValueError as error:
        raise UsageError(f"--labels {text!r} was given; expected a share such as 5% or a number of pairs") from error
    if count < LEAST:
        raise InfeasibleError(f"--labels {text}: at least {LEAST} pairs are needed to learn anything")
    return None, count
