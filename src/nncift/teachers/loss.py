"""Loss: how surprised the model is by a response."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import numpy as np

from nncift.models.response_reader import AnyModel, AnyTokenizer, ModelSettings
from nncift.teachers import Kind, RowLabels
from nncift.teachers.model_teacher import ModelTeacher


class Loss(ModelTeacher):
    """Mean negative log-likelihood of a response given its prompt, in nats per token; `score[s]`, at least 0.

    Higher is better as for every teacher: what the model does not know yet comes first. The end-of-sequence token
    counts. Needs one forward pass per row. Settings: see `ModelSettings`.
    """

    name = "loss"
    kind: Kind = "pointwise"
    width = 1

    def __init__(self, model: AnyModel, tokenizer: AnyTokenizer = None, **settings: Unpack[ModelSettings]) -> None:
        super().__init__(model, tokenizer=tokenizer, **settings)

    def measure(self, ids: Sequence[str]) -> RowLabels:
        """Return the losses of rows."""
        values = self.reader.mean_losses([self.reader.rows[item] for item in ids])
        self.reader.check_not_nan(ids, values)
        return RowLabels(values[:, None].astype(np.float32), self.tokens_of(ids), len(ids))

    def tokens_of(self, ids: Sequence[str]) -> int:
        """Return the tokens of rows, what several begin with once."""
        return self.reader.tokens_read([self.reader.rows[item] for item in ids])
