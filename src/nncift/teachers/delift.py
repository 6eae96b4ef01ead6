"""DELIFT: how much an example in the context helps the model with a target (method.md 3.1; arXiv 2411.04425).

`d(t | context) = sqrt(mean over response tokens of (1 - p)^2)` with p the teacher-forced probability of each token, and
`utility[t, s] = d(t | no example) - d(t | s in front)`, in [-1, 1]. Forward passes only.
"""

from __future__ import annotations

from typing import Literal, Unpack

import numpy as np

from nncift.core.arrays import Floats
from nncift.errors import DataError, UsageError
from nncift.models.batching import batches
from nncift.models.beginnings import common_start
from nncift.models.prompt_format import Block
from nncift.models.response_reader import AnyModel, AnyTokenizer, ModelSettings
from nncift.teachers import Chunk, ChunkLabels, Kind
from nncift.teachers.in_context import InContextTeacher

Variant = Literal["probability", "logprob"]


class Delift(InContextTeacher):
    """The DELIFT teacher on a Hugging Face causal language model.

    model: a local folder or hub name, or a loaded `CausalLM`. variant: `probability` (the paper's distance) or
    `logprob` (mean log-probability gain). Settings: see `ModelSettings`.
    """

    name = "delift"
    kind: Kind = "pairwise"
    relative = True

    def __init__(
        self,
        model: AnyModel,
        tokenizer: AnyTokenizer = None,
        *,
        variant: Variant = "probability",
        **settings: Unpack[ModelSettings],
    ) -> None:
        if variant not in ("probability", "logprob"):
            raise UsageError(f"DELIFT's variant is probability or logprob, not {variant!r}")
        super().__init__(model, {"variant": variant}, tokenizer, **settings)
        self.variant = variant

    def label(self, chunk: Chunk) -> ChunkLabels:
        """Return d of every target of the chunk, behind its source or without one; NaN where a pair cannot fit."""
        known = self.reader.rows if chunk.source is None else self._behind
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
            common = common_start([rows[index].prompt for index in fitting])
            front, rest = (*ids, *common), {index: rows[index].without(len(common)) for index in fitting}
            # A sequence without an example has its first token in every row: a prefix of one token saves nothing.
            alone = not block.ids and not common
            prefix = self.lm.prefix(() if alone else front)
            again = 0 if prefix.cache is not None else len(prefix.ids)
            tokens += len(prefix.ids) - again
            lengths, limit = [len(rest[index]) for index in fitting], self.lm.padding_limit
            for places in batches(lengths, self.reader.batch_tokens, len(front), limit=limit):
                batch = [fitting[place] for place in places]
                scored = [rest[index].behind(ids) if alone else rest[index] for index in batch]
                tokens += sum(map(len, scored)) + again * len(scored)
                for index, logs in zip(batch, self.lm.log_probabilities(prefix, scored), strict=True):
                    values[index] = self._distance(logs)
            behind = f" behind example {chunk.source!r}" if chunk.source else ""
            self.reader.check_not_nan([chunk.targets[index] for index in fitting], values[fitting], "target", behind)
        return ChunkLabels(values, tokens, block.shortened)

    def chunk_tokens(self, chunk: Chunk) -> int:
        """Return the tokens that `label` reads for a chunk: what its rows share once where the model caches it."""
        known, front = (self.reader.rows if chunk.source is None else self._behind), self.wording.bos
        if chunk.source is not None:
            try:
                front = (*front, *self.wording.block(self._examples[chunk.source], self.block_tokens).ids)
            except DataError:
                return 0
        rows = [known[target] for target in chunk.targets]
        fitting = [row for row in rows if len(front) + len(row) <= self.lm.context]
        common = len(common_start([row.prompt for row in fitting]))
        if chunk.source is None and not common:
            return sum(len(front) + len(row) for row in fitting)
        rest = sum(len(row) - common for row in fitting)
        times = 1 if self.lm.caches_prefixes else len(fitting)
        return (times * (len(front) + common) if fitting else 0) + rest

    def _distance(self, logs: Floats) -> float:
        if self.variant == "logprob":
            return -float(np.mean(logs, dtype=np.float64))
        return float(np.sqrt(np.mean((1.0 - np.exp(logs.astype(np.float64))) ** 2)))
