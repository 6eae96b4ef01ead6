"""DELIFT: how much an example in the context helps the model with a target (method.md 3.1; arXiv 2411.04425).

`d(t | context) = sqrt(mean over response tokens of (1 - p)^2)` with p the teacher-forced probability of each token, and
`utility[t, s] = d(t | no example) - d(t | s in front)`, in [-1, 1]. Forward passes only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any, Literal, Unpack

import numpy as np
import numpy.typing as npt

from nncift.data.examples import Example, Examples, Rejection
from nncift.errors import DataError, ResourceError, UsageError
from nncift.models.causal_lm import CausalLM, Row
from nncift.models.prompt_format import Block, PromptFormat
from nncift.models.response_reader import ModelSettings, Reader, batches
from nncift.teachers import Chunk, ChunkLabels
from nncift.teachers.teacher_cost import FORWARD

Variant = Literal["probability", "logprob"]


class Delift:
    """The DELIFT teacher on a Hugging Face causal language model.

    model: a local folder or hub name, or a loaded `CausalLM`. variant: `probability` (the paper's distance) or
    `logprob` (mean log-probability gain). Settings: see `ModelSettings`.
    """

    name = "delift"
    kind: Literal["pairwise", "pointwise"] = "pairwise"
    pass_weight = FORWARD
    relative = True

    def __init__(
        self,
        model: str | CausalLM,
        *,
        variant: Variant = "probability",
        **settings: Unpack[ModelSettings],
    ) -> None:
        if variant not in ("probability", "logprob"):
            raise UsageError(f"DELIFT's variant is probability or logprob, not {variant!r}")
        self.reader = Reader(model, **settings)
        self.options: Mapping[str, Any] = {"teacher": self.name, "variant": variant, **self.reader.options}
        self.variant = variant
        self._examples: dict[str, Example] = {}
        self._targets: dict[str, Row] = {}
        self._behind: dict[str, Row] = {}
        self._joined: dict[tuple[str, str], str] = {}

    @property
    def lm(self) -> CausalLM:
        """The language model, loaded on first use."""
        return self.reader.lm

    @property
    def wording(self) -> PromptFormat:
        """How examples read to this model."""
        return self.reader.wording

    @property
    def block_tokens(self) -> int:
        """The length to which an example in front is cut: half of the context, the same for every pair."""
        return self.lm.context // 2

    def prepare(self, examples: Examples) -> tuple[Rejection, ...]:
        """Tokenise targets, alone and behind an example; a row whose prompt and response exceed the context alone is unusable."""
        rejected = []
        room = self.lm.context - len(self.wording.bos)
        for example in examples:
            try:
                tokens, behind = self.reader.tokens(example), self.wording.tokens(example, behind=True)
                joined = self.wording.joined(example)
                if not (self.wording.bos or tokens.prompt) or not tokens.response:
                    raise DataError("no tokens: its prompt or its response is empty under this template")
                if len(tokens) > room:
                    needed = len(tokens) + len(self.wording.bos)
                    raise DataError(f"too long: needs {needed} tokens, and the model's context holds {self.lm.context}")
            except DataError as error:
                rejected.append(Rejection(example.source, example.line, " ".join(str(error).split())))
                continue
            self._examples[example.id] = example
            self._targets[example.id] = Row(tokens.prompt, tokens.response)
            self._behind[example.id] = Row(behind.prompt, tokens.response)
            for role, reason in (("in front of a target", joined), ("behind an example", behind.joined)):
                if reason is not None:
                    self._joined[role, example.id] = reason
        return tuple(rejected)

    def notes(self) -> tuple[str, ...]:
        """Return sentences on rows, also on those that are no part of one conversation with the other row of their pairs."""
        counts = Counter((role, reason) for (role, _), reason in self._joined.items())
        joined = tuple(
            f"{rows} of {len(self._targets)} rows are joined plainly {role}, not as one conversation: {reason}."
            for (role, reason), rows in sorted(counts.items())
        )
        return (*joined, *self.reader.notes())

    def label(self, chunk: Chunk) -> ChunkLabels:
        """Return d of every target of the chunk, behind its source or without one; NaN where a pair cannot fit."""
        known = self._targets if chunk.source is None else self._behind
        rows = [known[target] for target in chunk.targets]
        values = np.full(len(rows), np.nan, dtype=np.float32)
        block = Block((), shortened=False)
        if chunk.source is not None:
            try:
                block = self.wording.block(self._examples[chunk.source], self.block_tokens)
            except DataError:
                # The row alone is worded, or it would have been rejected; its turns cannot be cut to fit.
                return ChunkLabels(values, 0, shortened=True)
        ids = (*self.wording.bos, *block.ids)
        fitting = [index for index, row in enumerate(rows) if len(ids) + len(row) <= self.lm.context]
        tokens = 0
        if fitting:
            common = _common_start([rows[index].prompt for index in fitting])
            front, rest = (*ids, *common), {index: rows[index].without(len(common)) for index in fitting}
            # A sequence without an example has its first token in every row: a prefix of one token saves nothing.
            alone = not block.ids and not common
            prefix = self.lm.prefix(() if alone else front)
            again = 0 if prefix.cache is not None else len(prefix.ids)
            tokens += len(prefix.ids) - again
            for places in batches([len(rest[index]) for index in fitting], self.reader.batch_tokens, len(front)):
                batch = [fitting[place] for place in places]
                scored = [_behind(ids, rest[index]) if alone else rest[index] for index in batch]
                tokens += sum(map(len, scored)) + again * len(scored)
                for index, logs in zip(batch, self.lm.log_probabilities(prefix, scored), strict=True):
                    values[index] = self._distance(logs)
            self._check_no_nan(chunk, fitting, values)
        return ChunkLabels(values, tokens, block.shortened)

    def describe(self) -> Mapping[str, Any]:
        """Return model, wording and variant."""
        return {"teacher": self.name, "variant": self.variant, **self.reader.describe()}

    def _distance(self, logs: npt.NDArray[np.float32]) -> float:
        if self.variant == "logprob":
            return -float(np.mean(logs, dtype=np.float64))
        return float(np.sqrt(np.mean((1.0 - np.exp(logs.astype(np.float64))) ** 2)))

    def _check_no_nan(self, chunk: Chunk, fitting: Sequence[int], values: npt.NDArray[np.float32]) -> None:
        for index in fitting:
            if not np.isfinite(values[index]):
                behind = f" behind example {chunk.source!r}" if chunk.source else ""
                raise ResourceError(
                    f"the model {self.lm.name!r} gave no number for target {chunk.targets[index]!r}{behind}; its weights "
                    "may be damaged, or the precision too low: try --dtype float32"
                )


def _behind(ids: Sequence[int], row: Row) -> Row:
    return Row((*ids, *row.prompt), row.response)


def _common_start(prompts: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Return the tokens that several prompts begin with, such as a template's; each keeps one that predicts its response."""
    if len(prompts) < 2:
        return ()
    found = takewhile(lambda column: len(set(column)) == 1, zip(*(prompt[:-1] for prompt in prompts), strict=False))
    return tuple(column[0] for column in found)
