"""How much to label, as it is asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

from nncift.config import LabelSettings
from nncift.core.amounts import LabelAmount
from nncift.core.result_types import Record

FIRST = 0.5
"""Share of an active plan's training pairs that is scattered before anything is known."""


@dataclass(frozen=True)
class LabelBudget(Record):
    """How much to label.

    share: u, of each axis; or count: of pairs, or of rows where kind is rows; neither where `auto` decides. kind: block,
    scatter, active or rows. test_items, validation_items: upper bounds, a tenth and a fifteenth of a small pool.
    """

    share: float | None
    count: int | None
    kind: str = "scatter"
    test_items: int = 30
    validation_items: int = 20

    @classmethod
    def of(cls, settings: LabelSettings, amount: LabelAmount | None = None) -> Self:
        """Return how much the settings ask to label. amount: in the place of theirs."""
        amount = amount or settings.labels
        return cls(
            amount.share, amount.count, settings.plan or "scatter", settings.test_items, settings.validation_items
        )

    def __str__(self) -> str:
        """Return the budget as it is written: `5%` or `4000`."""
        return f"{100 * self.share:.10g}%" if self.share is not None else str(self.count or "auto")

    def size(self, targets: int, sources: int) -> int:
        """Return the number of labels to learn from: of pairs, or of source rows."""
        if self.kind != "rows":
            return self.pairs(targets, sources)
        return max(2, round(self.share * sources)) if self.share is not None else min(self.count or 0, sources)

    def sized(self, size: int, sources: int) -> Self:
        """Return the budget of so many labels; of rows as a share, unless a number was asked for."""
        if self.kind != "rows" or self.count is not None:
            return replace(self, share=None, count=size)
        return replace(self, share=size / sources, count=None)

    def pairs(self, targets: int, sources: int) -> int:
        """Return the number of training pairs that this budget stands for."""
        height, width = self.sides(targets, sources)
        return self.count if self.count is not None and self.kind != "block" else height * width

    def scattered(self, targets: int, sources: int) -> int:
        """Return the number of training pairs that are spread evenly; the rest of an active plan comes later."""
        pairs = self.pairs(targets, sources)
        return math.ceil(FIRST * pairs) if self.kind == "active" else pairs

    def sides(self, targets: int, sources: int) -> tuple[int, int]:
        """Return the sides of the block that this budget stands for, at least 2 by 2 where an axis has as many."""
        if self.share is not None:
            sides = round(self.share * targets), round(self.share * sources)
        else:
            height = math.sqrt((self.count or 0) * targets / sources)
            sides = round(height), round((self.count or 0) / max(height, 1))
        return min(targets, max(2, sides[0])), min(sources, max(2, sides[1]))
