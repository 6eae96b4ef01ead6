"""What a model reads while it is tuned: which rows stand in which optimiser step, decided before training begins.

Two ways to be fair to subsets of different size and length: the same number of optimiser steps of as many rows each, or the
same number of tokens. Small subsets are repeated, large ones may not be read to their end. The order of every pass over the
rows depends on the seed and the rows' ids alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from nncift.core.result_types import JsonObject
from nncift.core.seeds import shuffled
from nncift.errors import UsageError


@dataclass(frozen=True)
class BatchSchedule:
    """Ids of the rows of every optimiser step, and what they come to. rows: how many different ones there were to read."""

    updates: tuple[tuple[str, ...], ...]
    rows: int
    tokens: int

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return len(self.updates)

    @property
    def rows_read(self) -> int:
        """Rows read, each as often as it was read."""
        return sum(map(len, self.updates))

    @property
    def epochs(self) -> float:
        """Passes over the rows."""
        return self.rows_read / self.rows

    def to_json(self) -> JsonObject:
        """Return what is reported of a schedule."""
        return {"rows": self.rows, "steps": self.steps, "epochs": round(self.epochs, 4), "tokens": self.tokens}


@dataclass(frozen=True)
class Measure:
    """How much every arm trains: `steps` optimiser steps, or `tokens` tokens; the other is None."""

    steps: int | None = None
    tokens: int | None = None

    @classmethod
    def of(cls, how: str, lengths: Sequence[int], batch: int, epochs: float, steps: int | None) -> Measure:
        """Return the measure that gives these rows so many epochs, or so many steps where they are given.

        how: `steps` or `tokens`. lengths: tokens of each row of the subset that sets the measure.
        """
        taken = steps if steps is not None else max(1, ceil(epochs * len(lengths) / batch))
        if how == "steps":
            return cls(steps=taken)
        return cls(tokens=round(taken * batch * sum(lengths) / len(lengths)))


def schedule(lengths: Mapping[str, int], measure: Measure, batch: int, seed: int) -> BatchSchedule:
    """Return which rows every step reads, for a measure; lengths: tokens of each row by id, as the model reads them.

    With a measure of tokens the row that would go beyond it ends the schedule, so the tokens read are at most the measure and
    fall short of it by less than that row. Raises UsageError where there is no row, or not a single one fits.
    """
    if not lengths:
        raise UsageError("there is no row to train on")
    read: list[str] = []
    tokens = 0
    for item in _stream(lengths, seed):
        if measure.steps is not None and len(read) == measure.steps * batch:
            break
        if measure.tokens is not None and tokens + lengths[item] > measure.tokens:
            break
        read.append(item)
        tokens += lengths[item]
    if not read:
        raise UsageError(f"not one row fits into {measure.tokens} tokens of training; give more --epochs or --steps")
    updates = tuple(tuple(read[start : start + batch]) for start in range(0, len(read), batch))
    return BatchSchedule(updates, len(lengths), tokens)


def _stream(ids: Mapping[str, int], seed: int) -> Iterator[str]:
    epoch = 0
    while True:
        yield from shuffled(ids, seed, "tune", str(epoch))
        epoch += 1
