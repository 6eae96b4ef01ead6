"""What teachers share that read rows with a language model; each adds how its values are computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

from nncift.data.examples import Examples, Rejection
from nncift.models.causal_lm import CausalLM
from nncift.models.prompt_format import PromptFormat
from nncift.models.response_reader import AnyModel, AnyTokenizer, ModelSettings, Reader, loaded
from nncift.teachers import Kind


class ModelTeacher:
    """A teacher on a Hugging Face causal language model.

    model: a local folder or hub name, a loaded `CausalLM`, or a loaded model of transformers with its tokenizer. own: the
    teacher's own settings, for the manifest and for `describe`. Settings: see `ModelSettings`. A subclass sets `name` and
    `kind`, computes values in `label` or `measure`, and declares what passes cost where it is not one forward pass for each
    (`abilities`).
    """

    name: str
    kind: Kind

    def __init__(
        self,
        model: AnyModel,
        own: Mapping[str, Any] | None = None,
        tokenizer: AnyTokenizer = None,
        **settings: Unpack[ModelSettings],
    ) -> None:
        self.reader = Reader(loaded(model, tokenizer, settings.get("context")), **settings)
        self.own = dict(own or {})
        self.options: Mapping[str, Any] = {"teacher": self.name, **self.own, **self.reader.options}

    @property
    def lm(self) -> CausalLM:
        """The language model, loaded on first use."""
        return self.reader.lm

    @property
    def wording(self) -> PromptFormat:
        """How examples read to this model."""
        return self.reader.wording

    def language_model(self) -> CausalLM:
        """Return the language model, loaded on first use."""
        return self.lm

    def prepare(self, examples: Examples) -> tuple[Rejection, ...]:
        """Tokenise rows; one whose prompt and response exceed the context is unusable."""
        return self.reader.prepare(examples)

    def row_tokens(self, item: str) -> int | None:
        """Return the tokens of a prepared row that reads alone; None for a teacher that reads rows in other words."""
        row = self.reader.rows.get(item)
        return None if row is None else len(row)

    def notes(self) -> tuple[str, ...]:
        """Return sentences about the rows that were prepared."""
        return self.reader.notes()

    def describe(self) -> Mapping[str, Any]:
        """Return what decides the values: the teacher's own settings, the model's fingerprint, the wording, the precision."""
        return {"teacher": self.name, **self.own, **self.reader.describe()}
