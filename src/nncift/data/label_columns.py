"""Label columns: columns beside the content that sort rows into a few groups, such as `category` or `source`."""

from __future__ import annotations

from collections import Counter
from typing import Any

MOST_VALUES = 50
LONGEST = 60
CONTENT = frozenset(
    "messages conversations instruction input output history prompt completion response system id tools images videos "
    "audios text chosen rejected".split()
)
"""Columns that are what a row says, or its name."""


class LabelColumns:
    """Counts the values of every column that may be a label; a column with too many or too long values drops out."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = {}
        self._out: set[str] = set(CONTENT)
        self._rows = 0

    def add(self, row: dict[str, Any]) -> None:
        """Count one row."""
        self._rows += 1
        for column, value in row.items():
            if column in self._out or value is None:
                continue
            text = label(value)
            if text is None:
                self._drop(column)
                continue
            counts = self._counts.setdefault(column, Counter())
            counts[text] += 1
            if len(counts) > MOST_VALUES:
                self._drop(column)

    def counts(self) -> dict[str, dict[str, int]]:
        """Return column to value to rows, for columns with at least two values that repeat."""
        return {
            column: dict(counts.most_common())
            for column, counts in sorted(self._counts.items())
            if 2 <= len(counts) <= max(2, self._rows // 2)
        }

    def _drop(self, column: str) -> None:
        self._out.add(column)
        self._counts.pop(column, None)


def label(value: Any) -> str | None:
    """Return a value as a label, None where it is none: a long text, an object, a fraction."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    return value.strip() if isinstance(value, str) and value.strip() and len(value) <= LONGEST else None
