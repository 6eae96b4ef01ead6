"""What all teachers share that read rows with a language model: its settings, the model, its wording, the rows' tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from nncift.data.examples import Example, Examples, Rejection
from nncift.errors import DataError, ResourceError, UsageError
from nncift.models.causal_lm import CausalLM, Row
from nncift.models.prompt_format import PromptFormat, Tokens
from nncift.models.row_remarks import Remarks


class ModelSettings(TypedDict, total=False):
    """Settings that every teacher with a language model takes, by keyword; what is left out has `Reader`'s default.

    template: see `PromptFormat`. context: cap on the tokens of a sequence. device, dtype, trust_remote_code: see
    `CausalLM.load`. batch_tokens: tokens of one forward pass, padding included; rounding depends on it.
    """

    template: str | None
    context: int | None
    device: str
    dtype: str
    batch_tokens: int
    trust_remote_code: bool


class Reader:
    """A language model, loaded on first use, with the rows that it reads and how it reads them (method.md 3.1).

    model: a local folder or hub name, or a loaded `CausalLM`. Other parameters: see `ModelSettings`.
    """

    def __init__(
        self,
        model: str | CausalLM,
        *,
        template: str | None = None,
        context: int | None = None,
        device: str = "auto",
        dtype: str = "auto",
        batch_tokens: int = 2048,
        trust_remote_code: bool = False,
    ) -> None:
        if batch_tokens < 1:
            raise UsageError(f"batch_tokens is at least 1, not {batch_tokens}")
        self.source, self.device = model, device
        self._template = template
        self._loading: dict[str, Any] = {
            "device": device,
            "dtype": dtype,
            "context": context,
            "trust_remote_code": trust_remote_code,
        }
        self.options: Mapping[str, Any] = {
            "model": model.name if isinstance(model, CausalLM) else str(model),
            "template": template,
            "context": context,
            "dtype": dtype,
            "trust_remote_code": trust_remote_code,
        }
        self.batch_tokens = batch_tokens
        self.rows: dict[str, Row] = {}
        self._remarks = Remarks()

    @property
    def lent(self) -> bool:
        """Whether the model belongs to somebody else, who expects it back as it was."""
        return isinstance(self.source, CausalLM)

    @cached_property
    def lm(self) -> CausalLM:
        """The language model, loaded on first use."""
        if isinstance(self.source, CausalLM):
            return self.source
        return CausalLM.load(self.source, **self._loading)

    @cached_property
    def wording(self) -> PromptFormat:
        """How examples read to this model."""
        return PromptFormat(self.lm.tokenizer, self._template)

    def prepare(self, examples: Examples) -> tuple[Rejection, ...]:
        """Tokenise examples into `rows`, whole, each from the start of a sequence; return those that cannot be read."""
        rejected = []
        for example in examples:
            try:
                tokens = self.tokens(example)
                row = Row((*self.wording.bos, *tokens.prompt), tokens.response)
                if not row.prompt or not row.response:
                    raise DataError("no tokens: its prompt or its response is empty under this template")
                if len(row) > self.lm.context:
                    raise DataError(too_long(len(row), self.lm))
            except DataError as error:
                rejected.append(Rejection(example.source, example.line, str(error)))
            else:
                self.rows[example.id] = row
        return tuple(rejected)

    def tokens(self, example: Example) -> Tokens:
        """Tokenise an example as it reads alone, and remember what `notes` tells. Raises DataError where it cannot be worded."""
        tokens = self.wording.tokens(example)
        self._remarks.add(example, tokens)
        return tokens

    def notes(self) -> tuple[str, ...]:
        """Return what is to be told about the rows that were tokenised."""
        return self._remarks.notes()

    def mean_losses(self, rows: Sequence[Row]) -> npt.NDArray[np.float64]:
        """Return the mean negative log-likelihood of every row's response, in nats per token."""
        values = np.full(len(rows), np.nan)
        start = self.lm.prefix(())
        for batch in batches([len(row) for row in rows], self.batch_tokens):
            for index, logs in zip(batch, self.lm.log_probabilities(start, [rows[i] for i in batch]), strict=True):
                values[index] = -np.mean(logs, dtype=np.float64)
        return values

    def check_not_nan(self, ids: Sequence[str], values: npt.NDArray[np.floating[Any]]) -> None:
        """Raise ResourceError where the model gave no number for a row. values: `(n_rows, ...)`."""
        bad = ~np.isfinite(values.reshape(len(ids), -1)).all(axis=1) if len(ids) else np.zeros(0, bool)
        if bad.any():
            raise ResourceError(
                f"the model {self.lm.name!r} gave no number for row {ids[int(bad.argmax())]!r}; its weights may be "
                "damaged, or the precision too low: try --dtype float32"
            )

    def describe(self) -> dict[str, Any]:
        """Return model, precision, wording, context and batch size."""
        return {
            "model": self.lm.fingerprint,
            "dtype": str(next(self.lm.model.parameters()).dtype),
            "wording": self.wording.describe(),
            "context": self.lm.context,
            "batch_tokens": self.batch_tokens,
        }


def too_long(needed: int, lm: CausalLM) -> str:
    """Return the reason for setting aside a row that needs more tokens than the model's context holds."""
    return f"too long: needs {needed} tokens, and the model's context holds {lm.context}"


def batches(lengths: Sequence[int], batch_tokens: int, before: int = 0) -> list[list[int]]:
    """Cut positions, sorted by length, into batches of at most `batch_tokens` padded tokens, at least one row each.

    before: tokens of a shared prefix, whose keys and values are held once per row: long ones make batches smaller.
    """
    found: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda position: (lengths[position], position)):
        size, width = len(found[-1]) + 1 if found else 1, lengths[index]
        if not found or size * width > batch_tokens or size * (width + before) > 8 * batch_tokens:
            found.append([])
        found[-1].append(index)
    return found
