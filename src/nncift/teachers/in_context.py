"""What teachers share that put one row in front of another: rows worded alone and behind an example (method.md 3.1)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Unpack

from nncift.data.examples import Example, Examples, Rejection
from nncift.errors import DataError
from nncift.models.causal_lm import Row
from nncift.models.response_reader import NO_TOKENS, AnyModel, AnyTokenizer, ModelSettings, Prepared
from nncift.teachers.model_teacher import ModelTeacher


class InContextTeacher(ModelTeacher):
    """A teacher that reads rows alone and behind examples, as one conversation where the chat template allows it."""

    def __init__(
        self,
        model: AnyModel,
        own: Mapping[str, Any] | None = None,
        tokenizer: AnyTokenizer = None,
        **settings: Unpack[ModelSettings],
    ) -> None:
        super().__init__(model, own, tokenizer, **settings)
        self._examples: dict[str, Example] = Prepared()
        self._behind: dict[str, Row] = Prepared()
        self._joined: dict[tuple[str, str], str] = {}

    @property
    def block_tokens(self) -> int:
        """The length to which an example in front is cut: half of the context, the same for every pair."""
        return self.lm.context // 2

    def prepare(self, examples: Examples) -> tuple[Rejection, ...]:
        """Tokenise targets, alone and behind an example; a row whose prompt and response exceed the context alone is unusable."""
        return self.reader.prepare(examples, self._read)

    def _read(self, example: Example) -> Row:
        tokens, behind = self.reader.tokens(example), self.wording.tokens(example, behind=True)
        joined = self.wording.joined(example)
        if not (self.wording.bos or tokens.prompt) or not tokens.response:
            raise DataError(NO_TOKENS)
        self.reader.check_fits(len(self.wording.bos) + len(tokens))
        self._examples[example.id] = example
        self._behind[example.id] = replace(tokens, prompt=behind.prompt).row()
        for role, reason in (("in front of a target", joined), ("behind an example", behind.joined)):
            if reason is not None:
                self._joined[role, example.id] = reason
        return tokens.row()

    def row_tokens(self, item: str) -> int | None:
        """Return the tokens of a prepared row that reads alone."""
        found = super().row_tokens(item)
        return None if found is None else len(self.wording.bos) + found

    def notes(self) -> tuple[str, ...]:
        """Return sentences on rows, also on those that are no part of one conversation with the other row of their pairs."""
        counts = Counter((role, reason) for (role, _), reason in self._joined.items())
        joined = tuple(
            f"{rows} of {len(self.reader.rows)} rows are joined plainly {role}, not as one conversation: {reason}."
            for (role, reason), rows in sorted(counts.items())
        )
        return (*joined, *super().notes())
