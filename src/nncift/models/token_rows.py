"""Rows of token ids for a causal model: what is read, what is predicted, what they share, and how they lie in one batch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Row:
    """Token ids to be scored: `response` is predicted, `prompt` is read before it.

    scored: places of those tokens of the response that count, ascending; None = all. Others are turns between several responses.
    """

    prompt: Sequence[int]
    response: Sequence[int]
    scored: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)

    @property
    def counted(self) -> Sequence[int]:
        """Places of the response's tokens that count."""
        return range(len(self.response)) if self.scored is None else self.scored

    @property
    def places(self) -> npt.NDArray[np.int64]:
        """Where the model predicts the tokens that count, as places of prompt and response."""
        return np.asarray(self.counted, np.int64) + (len(self.prompt) - 1)

    @property
    def gold(self) -> Sequence[int]:
        """The tokens that count."""
        return self.response if self.scored is None else [self.response[place] for place in self.scored]

    def without(self, tokens: int) -> Row:
        """Return the row less so many tokens of its prompt's start, which are read in front of it."""
        return replace(self, prompt=self.prompt[tokens:])

    def behind(self, ids: Sequence[int]) -> Row:
        """Return the row with more in front of its prompt."""
        return replace(self, prompt=(*ids, *self.prompt))

    def record(self) -> list[list[int]]:
        """Return the row as JSON, which `Row(*record)` reads."""
        return [list(self.prompt), list(self.response), *([] if self.scored is None else [list(self.scored)])]


@dataclass(frozen=True)
class Reading:
    """What one pass over a row showed, float32.

    log_probabilities: of every response token that counts, `(n_response,)`. hidden: the last layer's states at every position of
    prompt and response, `(len(row), hidden size)`, as the model's head reads them. added: what some layers add to the states,
    `(n_layers, len(row), hidden size)`.
    """

    log_probabilities: npt.NDArray[np.float32]
    hidden: npt.NDArray[np.float32]
    added: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Batch:
    """Rows as tensors: padded ids `(n_rows, width)`, and per response token its row, where it is predicted, and itself."""

    ids: torch.Tensor
    rows: torch.Tensor
    positions: torch.Tensor
    gold: torch.Tensor


@dataclass
class Prefix:
    """Ids in front of every row of a call, with the model's cache over them (None where caching is not exact)."""

    ids: tuple[int, ...]
    cache: Any | None

    def repeated(self, rows: int) -> Any | None:
        """Return a cache that a pass over so many rows may grow; the prefix stays as it is.

        Plain keys and values are shared by all rows until the pass itself puts its own behind them; other kinds of layers
        are copied.
        """
        from transformers.cache_utils import DynamicLayer

        if self.cache is None:
            return None
        if any(type(layer) is not DynamicLayer for layer in getattr(self.cache, "layers", [None])):
            cache = copy.deepcopy(self.cache)
            cache.batch_repeat_interleave(rows)
            return cache
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        for layer in cache.layers:
            if layer.get_seq_length():
                layer.keys = layer.keys.expand(rows, -1, -1, -1)
                layer.values = layer.values.expand(rows, -1, -1, -1)
        return cache


@dataclass(frozen=True)
class Front:
    """What rows begin with, read once: its keys and values, and its states and additions as in `Reading`."""

    prefix: Prefix
    hidden: npt.NDArray[np.float32]
    added: npt.NDArray[np.float32]

    def before(self, reading: Reading) -> Reading:
        """Return the reading of a whole row from that of the rest of it."""
        hidden = np.concatenate([self.hidden, reading.hidden])
        added = np.concatenate([self.added, reading.added], axis=1) if len(reading.added) else reading.added
        return Reading(reading.log_probabilities, hidden, added)


def laid_out(rows: Sequence[Row], before: Sequence[int]) -> Batch:
    """Pad rows on the right, all behind the same ids, and find where each response token is predicted."""
    import torch

    sequences = [[*before, *row.prompt, *row.response] for row in rows]
    width = max(map(len, sequences))
    ids = torch.tensor([sequence + [0] * (width - len(sequence)) for sequence in sequences], dtype=torch.long)
    if any(len(sequence) == len(row.response) for sequence, row in zip(sequences, rows, strict=True)):
        raise ValueError("a row's response needs a token before it, which predicts its first one")
    at_row = np.repeat(np.arange(len(rows)), [len(row.counted) for row in rows])
    at = np.concatenate([row.places + len(before) for row in rows])
    gold = torch.tensor([token for row in rows for token in row.gold], dtype=torch.long)
    return Batch(ids, torch.from_numpy(at_row), torch.from_numpy(at), gold)


def split(flat: npt.NDArray[np.float32], rows: Sequence[Row]) -> list[npt.NDArray[np.float32]]:
    """Return the values of all response tokens, one row's behind the other's, row by row."""
    return np.split(flat, np.cumsum([len(row.counted) for row in rows])[:-1])


def log_softmax_at(logits: torch.Tensor, laid: Batch) -> torch.Tensor:
    """Return the log-probabilities of response tokens from logits of all positions `(n_rows, width, vocabulary)`."""
    rows, positions, gold = (part.to(logits.device) for part in (laid.rows, laid.positions, laid.gold))
    return gathered(logits[rows, positions], gold)


def gathered(logits: torch.Tensor, gold: torch.Tensor) -> torch.Tensor:
    """Return logit - logsumexp at the gold tokens, in float32. logits `(n, vocabulary)`, gold `(n,)`."""
    logits = logits.float()
    gold = gold.to(logits.device)
    return logits.gather(1, gold[:, None])[:, 0] - logits.logsumexp(dim=1)
