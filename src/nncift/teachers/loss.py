"""Loss: how surprised the model is by a response."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np

from nncift.data.examples import Examples, Rejection
from nncift.models.causal_lm import CausalLM
from nncift.models.response_reader import ModelSettings, Reader
from nncift.teachers import RowLabels
from nncift.teachers.teacher_cost import FORWARD


class Loss:
    """Mean negative log-likelihood of a response given its prompt, in nats per token; `score[s]`, at least 0.

    Higher is better as for every teacher: what the model does not know yet comes first. The end-of-sequence token
    counts. Needs one forward pass per row. Settings: see `ModelSettings`.
    """

    name = "loss"
    kind: Literal["pairwise", "pointwise"] = "pointwise"
    pass_weight, row_passes = FORWARD, 1
    width = 1
    workspace: Path | None = None

    def __init__(
        self,
        model: str | CausalLM,
        **settings: Unpack[ModelSettings],
    ) -> None:
        self.reader = Reader(model, **settings)
        self.options: Mapping[str, Any] = {"teacher": self.name, **self.reader.options}

    def prepare(self, examples: Examples) -> tuple[Rejection, ...]:
        """Tokenise rows; one whose prompt and response exceed the context is unusable."""
        return self.reader.prepare(examples)

    def measure(self, ids: Sequence[str]) -> RowLabels:
        """Return the losses of rows."""
        rows = [self.reader.rows[item] for item in ids]
        values = self.reader.mean_losses(rows)
        self.reader.check_not_nan(ids, values)
        return RowLabels(values[:, None].astype(np.float32), self.tokens_of(ids), len(rows))

    def tokens_of(self, ids: Sequence[str]) -> int:
        """Return the tokens of rows, each read once."""
        return sum(len(self.reader.rows[item]) for item in ids)

    def notes(self) -> tuple[str, ...]:
        """Return what is to be told about the rows that were prepared."""
        return self.reader.notes()

    def describe(self) -> Mapping[str, Any]:
        """Return model and wording."""
        return {"teacher": self.name, **self.reader.describe()}
