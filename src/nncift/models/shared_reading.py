"""Reading of many rows in one pass each, what they begin with read once: for probe, RDS, loss and IFD alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from nncift.core.arrays import Doubles
from nncift.models.batching import batches
from nncift.models.beginnings import Beginning, beginnings_of, tokens_once
from nncift.models.causal_lm import CausalLM, Reading, Row


def readings(
    lm: CausalLM, rows: Sequence[Row], batch_tokens: int, layers: Sequence[int] = (), *, scored: bool = True
) -> Iterator[tuple[int, Reading]]:
    """Yield the place of every row and what a pass shows of it; see `CausalLM.read`."""
    for part in parts_of(lm, rows):
        front = lm.front(part.ids, layers) if part.ids else None
        for places, rest in _batches(lm, rows, part, batch_tokens):
            yield from zip(places, lm.read(rest, layers, front, scored=scored), strict=True)


def mean_losses(lm: CausalLM, rows: Sequence[Row], batch_tokens: int) -> Doubles:
    """Return the mean negative log-likelihood of every row's response, in nats per token."""
    values = np.full(len(rows), np.nan)
    for part in parts_of(lm, rows):
        prefix = lm.prefix(part.ids)
        for places, rest in _batches(lm, rows, part, batch_tokens):
            found = lm.log_probabilities(prefix, rest)
            values[places] = [-np.mean(logs, dtype=np.float64) for logs in found]
    return values


def _batches(
    lm: CausalLM, rows: Sequence[Row], part: Beginning, batch_tokens: int
) -> Iterator[tuple[list[int], list[Row]]]:
    """Yield the places of the rows of each pass, and the rows without what they begin with."""
    rest = [rows[place].without(len(part.ids)) for place in part.places]
    for batch in batches([len(row) for row in rest], batch_tokens, len(part.ids), limit=lm.padding_limit):
        yield [part.places[index] for index in batch], [rest[index] for index in batch]


def tokens_read(lm: CausalLM, rows: Sequence[Row]) -> int:
    """Return the tokens that go through the model where rows are read together."""
    return tokens_once([len(row) for row in rows], parts_of(lm, rows))


def parts_of(lm: CausalLM, rows: Sequence[Row]) -> list[Beginning]:
    """Share rows out by what they begin with, where this model can read that once."""
    if not lm.shares_prefixes:
        return [Beginning((), tuple(range(len(rows))))] if rows else []
    return beginnings_of([row.prompt for row in rows])
