"""What all teachers share that read rows with a language model: its settings, the model, its wording, the rows' tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

import numpy as np
import numpy.typing as npt

from nncift.core.arrays import Doubles
from nncift.core.result_types import JsonObject
from nncift.data.examples import Example, Examples, Rejection
from nncift.errors import DataError, ResourceError, UsageError
from nncift.models.causal_lm import CausalLM, Row
from nncift.models.loading import ModelSource
from nncift.models.prompt_format import PromptFormat, Remarks, Tokens
from nncift.models.shared_reading import mean_losses, tokens_read

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    AnyModel = str | ModelSource | CausalLM | PreTrainedModel
    AnyTokenizer = PreTrainedTokenizerBase | None
else:
    # transformers takes seconds to import.
    AnyModel = AnyTokenizer = Any

BATCH_TOKENS = 2048
Held = TypeVar("Held")
AnyFloats = npt.NDArray[np.floating[Any]]
NO_TOKENS = "no tokens: its prompt or its response is empty under this template"


class Prepared(dict[str, Held]):
    """What is held of the rows that were prepared, by id. Raises UsageError for another id, which a set-aside row is too."""

    def __missing__(self, item: str) -> Held:
        raise UsageError(f"row {item!r} cannot be measured: it was never prepared, or it was rejected")


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


def parted(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings that every teacher with a language model takes, and a teacher's own."""
    shared = {name: value for name, value in settings.items() if name in ModelSettings.__annotations__}
    return shared, {name: value for name, value in settings.items() if name not in shared}


def loaded(model: AnyModel, tokenizer: AnyTokenizer, context: int | None = None) -> str | CausalLM:
    """Return what a `Reader` takes: a name, or a loaded model. context: as in `CausalLM.of`.

    Raises UsageError for a loaded model without its tokenizer, and for a tokenizer beside a name.
    """
    if isinstance(model, str | ModelSource | CausalLM):
        if tokenizer is not None:
            raise UsageError("a tokenizer goes with a model that is loaded; a name or a `CausalLM` has its own")
        return model  # type: ignore[return-value]
    if tokenizer is None:
        raise UsageError("a model that is loaded needs its tokenizer: Less(model, tokenizer)")
    return CausalLM.of(model, tokenizer, context=context)


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
        batch_tokens: int = BATCH_TOKENS,
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
        self.rows: dict[str, Row] = Prepared()
        self._remarks = Remarks()

    @property
    def borrowed(self) -> bool:
        """Whether the model belongs to the caller, who expects it back as it was."""
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

    def prepare(self, examples: Examples, read: Callable[[Example], Row] | None = None) -> tuple[Rejection, ...]:
        """Tokenise examples into `rows` and return those that cannot be read.

        read: gives a row or raises DataError; by default rows are whole, each from the start of a sequence.
        """
        rejected = []
        for example in examples:
            try:
                self.rows[example.id] = (read or self.whole)(example)
            except DataError as error:
                rejected.append(Rejection(example.source, example.line, " ".join(str(error).split())))
        return tuple(rejected)

    def whole(self, example: Example) -> Row:
        """Return an example as a sequence of its own. Raises DataError where it has no tokens, or more than the context holds."""
        tokens = self.tokens(example)
        row = tokens.row(self.wording.bos)
        if not row.prompt or not row.response:
            raise DataError(NO_TOKENS)
        self.check_fits(len(row))
        return row

    def check_fits(self, needed: int) -> None:
        """Raise DataError for a row that needs more tokens than the model's context holds."""
        if needed > self.lm.context:
            raise DataError(too_long(needed, self.lm))

    def tokens(self, example: Example) -> Tokens:
        """Tokenise an example as it reads alone, and remember what `notes` tells. Raises DataError where it cannot be worded."""
        tokens = self.wording.tokens(example)
        self._remarks.add(example, tokens)
        return tokens

    def notes(self) -> tuple[str, ...]:
        """Return sentences about the rows that were tokenised."""
        return self._remarks.notes()

    def mean_losses(self, rows: Sequence[Row]) -> Doubles:
        """Return the mean negative log-likelihood of every row's response, in nats per token."""
        return mean_losses(self.lm, rows, self.batch_tokens)

    def tokens_read(self, rows: Sequence[Row]) -> int:
        """Return the tokens that go through the model where rows are read together: what several begin with once."""
        return tokens_read(self.lm, rows)

    def check_not_nan(self, ids: Sequence[str], values: AnyFloats, what: str = "row", behind: str = "") -> None:
        """Raise ResourceError where the model gave no number for a row. values: `(n_rows, ...)`; behind: ends the row's name."""
        bad = ~np.isfinite(values.reshape(len(ids), -1)).all(axis=1) if len(ids) else np.zeros(0, bool)
        if bad.any():
            raise ResourceError(
                f"the model {self.lm.name!r} gave no number for {what} {ids[int(bad.argmax())]!r}{behind}; its weights may be "
                "damaged, or the precision too low: try --dtype float32"
            )

    def describe(self) -> JsonObject:
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
