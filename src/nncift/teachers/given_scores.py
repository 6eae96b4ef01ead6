"""Teachers without a model, for comparison: length of the response, chance, and a user's own scores."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nncift.core.seeds import derive
from nncift.data.examples import Example, Examples, Rejection
from nncift.errors import DataError, UsageError
from nncift.models.response_reader import Prepared
from nncift.teachers import Kind, RowLabels


class _Simple(ABC):
    """What these teachers share: a row's score is known when the row is, and costs nothing."""

    name: str
    kind: Kind = "pointwise"
    pass_weight = row_passes = 0
    width = 1

    def __init__(self, **settings: Any) -> None:
        self.options: Mapping[str, Any] = {"teacher": self.name, **settings}
        self._scores: dict[str, float] = Prepared()

    def prepare(self, examples: Examples) -> tuple[Rejection, ...]:
        """Score rows, and return those that have no score."""
        rejected = []
        for example in examples:
            try:
                self._scores[example.id] = self._score(example)
            except DataError as error:
                rejected.append(Rejection(example.source, example.line, str(error)))
        return tuple(rejected)

    def measure(self, ids: Sequence[str]) -> RowLabels:
        """Return the scores of rows."""
        return RowLabels(np.array([[self._scores[item]] for item in ids], np.float32).reshape(len(ids), 1), 0, 0)

    def describe(self) -> Mapping[str, Any]:
        """Return the settings; the rows decide the rest."""
        return dict(self.options)

    @abstractmethod
    def _score(self, example: Example) -> float: ...


class Length(_Simple):
    """Longer responses first: `score[s]` is the number of characters that are learned from, which no tokenizer decides."""

    name = "length"

    def __init__(self) -> None:
        super().__init__()

    def _score(self, example: Example) -> float:
        return float(len(example.learned_text))


class Random(_Simple):
    """Chance: `score[s]` uniform in [0, 1), from the seed and the row's id alone: new rows change no other's."""

    name = "random"

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self._seed = seed

    def _score(self, example: Example) -> float:
        # 24 bits are what float32 holds without rounding up to 1.
        return (derive(self._seed, "teacher", self.name, example.id) >> 39) / 2**24


class Column(_Simple):
    """A user's own scores: `score[s]` is what the row holds in `column`, higher is better.

    Accepted: a number, a bool (true is 1), and text that holds a number, since conversions leave such. A row without
    one is rejected. Scores are kept in float32: 7 digits.
    """

    def __init__(self, column: str) -> None:
        if not column:
            raise UsageError("the teacher column needs the name of a column: column:quality")
        self.name = f"column:{column}"
        super().__init__()
        self._column = column

    def _score(self, example: Example) -> float:
        row = example.row
        if self._column not in row:
            raise DataError(f"no column {self._column!r}")
        return _number(row[self._column], self._column)


def _number(value: Any, column: str) -> float:
    reason = f"no number in column {column!r}"
    try:
        number = float(value.strip() if isinstance(value, str) else value)
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"{reason}: {str(value)[:60]!r}") from None
    if not math.isfinite(number) or abs(number) > float(np.finfo(np.float32).max):
        raise DataError(f"{reason}: {number}")
    return number
