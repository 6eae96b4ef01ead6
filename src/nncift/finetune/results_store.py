"""Cells: one arm, tuned once and judged. Each is a file of its own, so that a killed tune goes on where it was.

A cell's file holds what is the same whenever it is computed; what it cost stands in a file beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nncift.core.arrays import Doubles
from nncift.core.texts import parsed_file
from nncift.finetune.test_set import Scores
from nncift.storage.atomic import write_json


@dataclass(frozen=True)
class Cell:
    """Where a cell stands: how its rows serve, rows of the budget, arm, seed; None where the cell has no such thing.

    rate: the learning rate, where several are compared.
    """

    how: str
    budget: int | None
    arm: str
    seed: int | None
    rate: float | None = None

    @property
    def name(self) -> str:
        """Name of its files."""
        rate = None if self.rate is None else f"{self.rate:g}"
        parts = (self.how, self.budget, self.arm, self.seed, rate)
        return "-".join(str(part) for part in parts if part is not None)


@dataclass(frozen=True)
class Outcome:
    """What came of a cell. facts: rows, steps, epochs, tokens and training loss. cost: seconds of training and of judging."""

    scores: Scores
    facts: Mapping[str, Any]
    cost: Mapping[str, float]


class Cells:
    """The cells in a folder. ids: of the test rows, in the order of all values."""

    def __init__(self, folder: Path, ids: tuple[str, ...]) -> None:
        self._folder, self._ids = folder, ids
        for part in ("cells", "costs"):
            (folder / part).mkdir(parents=True, exist_ok=True)

    def load(self, cell: Cell, key: str) -> Outcome | None:
        """Return a cell that was computed under the same fingerprint; None where there is none, or no whole one."""
        try:
            record = parsed_file(self._place(cell))
            if record["key"] != key or tuple(record["ids"]) != self._ids:
                return None
            values = {name: np.array(found, np.float64) for name, found in record["values"].items()}
            scores = Scores(values, np.array(record["tokens"], np.int64), record["answers"], record["failures"])
            cost = parsed_file(self._place(cell, "costs"))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return Outcome(scores, record["facts"], cost)

    def kept(self, cell: Cell, key: str, compute: Callable[[], Outcome]) -> Outcome:
        """Return a cell as it is stored under a fingerprint, or compute and store it."""
        found = self.load(cell, key)
        if found is None:
            found = compute()
            self.store(cell, key, found)
        return found

    def store(self, cell: Cell, key: str, outcome: Outcome) -> None:
        """Write a cell; its own file comes last, and is what counts."""
        scores = outcome.scores
        write_json(self._place(cell, "costs"), dict(outcome.cost))
        record = {
            "key": key,
            "how": cell.how,
            "budget": cell.budget,
            "arm": cell.arm,
            "seed": cell.seed,
            "learning_rate": cell.rate,
            "facts": dict(outcome.facts),
            "ids": list(self._ids),
            "values": {name: _numbers(values) for name, values in scores.values.items()},
            "tokens": scores.tokens.tolist(),
            "answers": list(scores.answers),
            "failures": dict(scores.failures),
        }
        write_json(self._place(cell), record)

    def _place(self, cell: Cell, part: str = "cells") -> Path:
        return self._folder / part / f"{cell.name}.json"


def _numbers(values: Doubles) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
