"""Tables: numbers over seeds, and rows as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Spread:
    """A figure over seeds: mean, standard deviation between seeds (None for one seed), and how many there are."""

    mean: float
    deviation: float | None
    seeds: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """Return the spread of the values that there are; None where there is none."""
        known = [float(value) for value in values if value is not None]
        if not known:
            return None
        deviation = float(np.std(known, ddof=1)) if len(known) > 1 else None
        return cls(float(np.mean(known)), deviation, len(known))

    def text(self) -> str:
        """Return `mean ± deviation`."""
        return f"{self.mean:.2f}" + ("" if self.deviation is None else f" ± {self.deviation:.2f}")


Cell = Spread | str | float | int | None
Table = Sequence[Sequence[Cell]]
"""Rows of a table, its head first."""


def markdown(table: Table, left: int = 1) -> str:
    """Return a table; all but the first columns are set to the right."""
    head, *rows = [f"| {' | '.join(_text(cell) for cell in row)} |" for row in table]
    sides = ["---" if place < left else "---:" for place in range(len(table[0]))]
    return "\n".join([head, f"|{'|'.join(sides)}|", *rows]) + "\n"


def as_csv(records: Sequence[Mapping[str, Any]]) -> str:
    """Return records as CSV, one line each; nested names are joined by dots. What only some have is empty in the others."""
    flat = [_flat(record) for record in records]
    names = list(dict.fromkeys(name for record in flat for name in record))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def _text(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, Spread):
        return cell.text()
    if isinstance(cell, str):
        return cell.replace("|", "\\|").replace("\n", " ")
    return f"{cell:,}" if isinstance(cell, int) else f"{cell:,.2f}"


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            found |= _flat(inner, f"{prefix}{name}.")
        elif isinstance(inner, list) and inner and isinstance(inner[0], Mapping):
            for step in inner:
                at = f"{step['budget']:g}" if "budget" in step else str(inner.index(step))
                found |= _flat({key: of for key, of in step.items() if key != "budget"}, f"{prefix}{name}.{at}.")
        else:
            found[f"{prefix}{name}"] = " ".join(map(str, inner)) if isinstance(inner, list) else inner
    return found
