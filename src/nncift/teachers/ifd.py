"""IFD, instruction-following difficulty: how little the instruction helps with the response (arXiv 2308.12032).

`ifd[s] = loss(response | prompt) / loss(response alone)`, both the mean negative log-likelihood of a response token; the response
alone stands behind what documents begin with (`neutral_start`), and behind nothing of a chat. Of a row with several responses
that count, "alone" is all that stands from the first of them on.
Near 0, the prompt says it all; near 1, the model cannot use the prompt yet, which makes the row worth training on.
Above 1, the prompt misleads: prompt and response hardly belong together, and the paper sets such rows aside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal, Unpack

import numpy as np

from nncift.data.examples import Examples, Rejection
from nncift.errors import ResourceError, UsageError
from nncift.models.causal_lm import Row
from nncift.models.response_reader import AnyModel, AnyTokenizer, ModelSettings
from nncift.teachers import Kind, RowLabels
from nncift.teachers.model_teacher import ModelTeacher
from nncift.teachers.neutral import neutral_start

ABOVE_ONE = "above_one"


class Ifd(ModelTeacher):
    """The IFD teacher: `score[s]`, higher is better (harder). Needs two forward passes per row.

    above_one: what becomes of ratios above 1: `last` scores them 0, below every other row, as the paper's selection
    would have it; `keep` leaves the ratio. Settings: see `ModelSettings`.
    """

    name = "ifd"
    kind: Kind = "pointwise"
    row_passes = 2
    width = 1
    figures = (ABOVE_ONE,)

    def __init__(
        self,
        model: AnyModel,
        tokenizer: AnyTokenizer = None,
        *,
        above_one: Literal["last", "keep"] = "last",
        **settings: Unpack[ModelSettings],
    ) -> None:
        if above_one not in ("last", "keep"):
            raise UsageError(f"IFD's above_one is last or keep, not {above_one!r}")
        super().__init__(model, {"above_one": above_one}, tokenizer, **settings)
        self.above_one = above_one

    def prepare(self, examples: Examples) -> tuple[Rejection, ...]:
        """Tokenise rows; one that exceeds the context is unusable. Raises ResourceError without a first token."""
        if not self._start:
            raise ResourceError("ifd needs a tokenizer with a token that begins or ends a text, and this has neither")
        return super().prepare(examples)

    def measure(self, ids: Sequence[str]) -> RowLabels:
        """Return the difficulty of rows."""
        rows = [self.reader.rows[item] for item in ids]
        alone = self.reader.mean_losses(self._alone(rows))
        values = self.reader.mean_losses(rows) / np.maximum(alone, np.finfo(np.float32).tiny)
        self.reader.check_not_nan(ids, values)
        misled = {ABOVE_ONE: float((values > 1).sum())}
        if self.above_one == "last":
            values[values > 1] = 0.0
        return RowLabels(values[:, None].astype(np.float32), self.tokens_of(ids), 2 * len(rows), misled)

    def tokens_of(self, ids: Sequence[str]) -> int:
        """Return the tokens of rows, each read behind its prompt and behind a first token; what several begin with once."""
        rows = [self.reader.rows[item] for item in ids]
        return self.reader.tokens_read(rows) + self.reader.tokens_read(self._alone(rows))

    def _alone(self, rows: Sequence[Row]) -> list[Row]:
        return [replace(row, prompt=self._start) for row in rows]

    def warnings(self, means: Mapping[str, float]) -> tuple[str, ...]:
        """Return a sentence where most prompts do not help with their responses."""
        sentence = (
            f"IFD means little here: in {100 * means[ABOVE_ONE]:.0f} % of the measured rows the response is likelier without its "
            "prompt (ratio above 1). Either the model makes nothing of prompts, or prompts and responses do not belong together."
        )
        return (sentence,) if means[ABOVE_ONE] > 0.5 else ()

    def describe(self) -> Mapping[str, Any]:
        """Return what decides the values, for the run's fingerprint."""
        return {**super().describe(), "start": list(self._start)}

    @cached_property
    def _start(self) -> tuple[int, ...]:
        return neutral_start(self.reader.lm.tokenizer, self.reader.wording)
