"""RDS: cosine of what a language model's last layer makes of whole examples (RDS+ in arXiv 2503.01807).

A feature is the mean of the last hidden states with weights proportional to the position, 1 for the first token: in a
causal model, later tokens have read more. It is scaled to unit norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import numpy as np

from nncift.core.arrays import Floats
from nncift.data.examples import Example, Examples, Rejection
from nncift.models.causal_lm import Row
from nncift.models.response_reader import AnyModel, AnyTokenizer, ModelSettings
from nncift.models.shared_reading import readings
from nncift.teachers import Kind, RowLabels
from nncift.teachers.model_teacher import ModelTeacher


class Rds(ModelTeacher):
    """The RDS teacher: `utility[t, s]` in [-1, 1] from features of the model's hidden size. One forward pass per row.

    A row too long for the context is cut at its start, before the response. width is known once `prepare` was called.
    subtask: a column of the target rows that names each row's subtask, by which they take turns. Settings: see `ModelSettings`.
    """

    name = "rds"
    kind: Kind = "pairwise"

    def __init__(
        self,
        model: AnyModel,
        tokenizer: AnyTokenizer = None,
        *,
        subtask: str | None = None,
        **settings: Unpack[ModelSettings],
    ) -> None:
        super().__init__(model, {} if subtask is None else {"subtask": subtask}, tokenizer, **settings)
        self.width, self.subtask = 0, subtask

    def prepare(self, examples: Examples) -> tuple[Rejection, ...]:
        """Load the model and tokenise rows; one whose response alone exceeds the context is unusable."""
        self.width = self.lm.width
        return self.reader.prepare(examples, self._read)

    def _read(self, example: Example) -> Row:
        tokens, bos = self.reader.tokens(example), self.wording.bos
        self.reader.check_fits(len(bos) + 1 + len(tokens.response))
        room = self.lm.context - len(bos) - len(tokens.response)
        return Row((*bos, *tokens.prompt[-room:], *tokens.response), ())

    def measure(self, ids: Sequence[str]) -> RowLabels:
        """Return features of unit norm, `(n_rows, hidden size)`."""
        rows = [self.reader.rows[item] for item in ids]
        values = np.empty((len(rows), self.width), np.float32)
        for index, reading in readings(self.lm, rows, self.reader.batch_tokens):
            values[index] = _pooled(reading.hidden)
        self.reader.check_not_nan(ids, values)
        return RowLabels(values, self.tokens_of(ids), len(rows))

    def tokens_of(self, ids: Sequence[str]) -> int:
        """Return the tokens of rows, what several begin with once."""
        return self.reader.tokens_read([self.reader.rows[item] for item in ids])

    def utility(self, targets: Floats, sources: Floats) -> Floats:
        """Return the cosines `(n_targets, n_sources)` of features."""
        return np.asarray(targets @ sources.T, np.float32)

    def subtask_utility(self, targets: Floats, sources: Floats, ids: Sequence[str]) -> Floats:
        """Return the cosines: every target keeps its own, and subtasks take turns, or means are taken of them, at selection."""
        return self.utility(targets, sources)


def _pooled(hidden: Floats) -> Floats:
    """Return the position-weighted mean of states `(n_tokens, hidden size)`, of unit norm."""
    mean = np.asarray(np.arange(1, len(hidden) + 1, dtype=np.float64) @ hidden, np.float64)
    length = float(np.linalg.norm(mean))
    return np.asarray(mean / length if length else mean, np.float32)
