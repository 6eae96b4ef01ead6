"""RDS: cosine of what a language model's last layer makes of whole examples (RDS+ in arXiv 2503.01807).

A feature is the mean of the last hidden states with weights proportional to the position, 1 for the first token: in a
causal model, later tokens have read more. It is scaled to unit norm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np
import numpy.typing as npt

from nncift.data.examples import Examples, Rejection
from nncift.errors import DataError
from nncift.models.causal_lm import CausalLM, Row
from nncift.models.response_reader import ModelSettings, Reader, batches, too_long
from nncift.teachers import RowLabels
from nncift.teachers.teacher_cost import FORWARD

Floats = npt.NDArray[np.float32]


class Rds:
    """The RDS teacher: `utility[t, s]` in [-1, 1] from features of the model's hidden size. One forward pass per row.

    A row too long for the context is cut at its start, before the response. width is known once `prepare` was called.
    Settings: see `ModelSettings`.
    """

    name = "rds"
    kind: Literal["pairwise", "pointwise"] = "pairwise"
    pass_weight, row_passes = FORWARD, 1
    workspace: Path | None = None

    def __init__(
        self,
        model: str | CausalLM,
        **settings: Unpack[ModelSettings],
    ) -> None:
        self.reader = Reader(model, **settings)
        self.options: Mapping[str, Any] = {"teacher": self.name, **self.reader.options}
        self.width = 0
        self._ids: dict[str, tuple[int, ...]] = {}

    def prepare(self, examples: Examples) -> tuple[Rejection, ...]:
        """Load the model and tokenise rows; one whose response alone exceeds the context is unusable."""
        lm, wording = self.reader.lm, self.reader.wording
        self.width = lm.width
        rejected = []
        for example in examples:
            try:
                tokens = self.reader.tokens(example)
                room = lm.context - len(wording.bos) - len(tokens.response)
                if room < 1:
                    raise DataError(too_long(lm.context - room + 1, lm))
            except DataError as error:
                rejected.append(Rejection(example.source, example.line, str(error)))
            else:
                self._ids[example.id] = (*wording.bos, *tokens.prompt[-room:], *tokens.response)
        return tuple(rejected)

    def measure(self, ids: Sequence[str]) -> RowLabels:
        """Return features of unit norm, `(n_rows, hidden size)`."""
        rows = [self._ids[item] for item in ids]
        values = np.empty((len(rows), self.width), np.float32)
        for batch in batches([len(row) for row in rows], self.reader.batch_tokens):
            for index, reading in zip(
                batch, self.reader.lm.read([Row(rows[index], ()) for index in batch]), strict=True
            ):
                values[index] = _pooled(reading.hidden)
        self.reader.check_not_nan(ids, values)
        return RowLabels(values, self.tokens_of(ids), len(rows))

    def tokens_of(self, ids: Sequence[str]) -> int:
        """Return the tokens of rows, each read once."""
        return sum(len(self._ids[item]) for item in ids)

    def utility(self, targets: Floats, sources: Floats) -> Floats:
        """Return the cosines `(n_targets, n_sources)` of features."""
        return np.asarray(targets @ sources.T, np.float32)

    def notes(self) -> tuple[str, ...]:
        """Return what is to be told about the rows that were prepared."""
        return self.reader.notes()

    def describe(self) -> Mapping[str, Any]:
        """Return model and wording."""
        return {"teacher": self.name, **self.reader.describe()}


def _pooled(hidden: Floats) -> Floats:
    """Return the position-weighted mean of states `(n_tokens, hidden size)`, of unit norm."""
    mean = np.asarray(np.arange(1, len(hidden) + 1, dtype=np.float64) @ hidden, np.float64)
    length = float(np.linalg.norm(mean))
    return np.asarray(mean / length if length else mean, np.float32)
