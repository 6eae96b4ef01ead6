"""How a test item reads to the model: examples in front, where there are any, and then its own prompt (method.md 3.1)."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from nncift.data.examples import Example
from nncift.errors import DataError
from nncift.models.batching import batches
from nncift.models.causal_lm import CausalLM, Row
from nncift.models.prompt_format import PromptFormat
from nncift.models.response_reader import too_long

Key = TypeVar("Key")

InFrontOf = Mapping[str, Sequence[Example]]
"""Test id -> the examples in front of it, the last one closest to the prompt; an id that is missing has none."""


class Prompts:
    """Test items as rows of tokens for one model; an example that stands in front of many items is tokenised once.

    With a chat template, an item and the examples in front of it are one conversation.
    """

    def __init__(self, lm: CausalLM, wording: PromptFormat, before: InFrontOf | None = None) -> None:
        self.lm, self.wording = lm, wording
        self._before: InFrontOf = before or {}
        self._blocks: dict[tuple[Example, bool], tuple[int, ...]] = {}

    def row(self, example: Example, room: int = 0) -> Row:
        """Return an item whole, its examples in front, with at least `room` tokens of the context left behind its prompt.

        With room for an answer, all turns before the last response are its prompt.
        Raises DataError where the item cannot be worded, or is too long: nothing is cut here (see `few_shot`).
        """
        shown = self._before.get(example.id, ())
        tokens = self.wording.tokens(example.with_last_alone() if room else example, behind=bool(shown))
        front = [token for place, one in enumerate(shown) for token in self._block(one, first=not place)]
        row = tokens.row((*self.wording.bos, *front))
        if not row.prompt or not row.response:
            raise DataError("no tokens: its prompt or its response is empty under this template")
        needed = len(row.prompt) + (room or len(row.response))
        if needed > self.lm.context:
            raise DataError(too_long(needed, self.lm))
        return row

    def _block(self, example: Example, *, first: bool) -> tuple[int, ...]:
        key = example, first
        if key not in self._blocks:
            self._blocks[key] = self.wording.block(example, sys.maxsize, first=first).ids
        return self._blocks[key]


def log_probabilities(lm: CausalLM, rows: Mapping[Key, Row], batch_tokens: int) -> dict[Key, npt.NDArray[np.float32]]:
    """Return the log-probabilities of every row's response tokens, `(n_response,)` each, many rows to a pass."""
    keys, start = list(rows), lm.prefix(())
    found: dict[Key, npt.NDArray[np.float32]] = {}
    for batch in batches([len(rows[key]) for key in keys], batch_tokens):
        here = [keys[index] for index in batch]
        found.update(zip(here, lm.log_probabilities(start, [rows[key] for key in here]), strict=True))
    return found


def reason(error: DataError) -> str:
    """Return an error's message on one line, as the reason of a failure."""
    return " ".join(str(error).split())
