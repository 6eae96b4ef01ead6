"""ICA, in-context attribution: how much a target in the context helps the model with a source (arXiv 2510.14459).

`utility[t, s] = loss(s) - loss(s | t in front)`, both the mean negative log-likelihood of a response token: DELIFT with the roles
exchanged, and with log-probabilities. A source that a target makes easier teaches what the target needs. One example stands in
front for each pair; with `in_front=k`, k targets stand in front of every source at once, which costs two passes a source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self, Unpack

import numpy as np

from nncift.core.arrays import Doubles, Floats
from nncift.core.fingerprints import fingerprint
from nncift.core.seeds import shuffled
from nncift.data.examples import Examples
from nncift.errors import DataError, UsageError
from nncift.models.batching import batches
from nncift.models.causal_lm import Row
from nncift.models.response_reader import AnyModel, AnyTokenizer, ModelSettings
from nncift.teachers import Chunk, ChunkLabels, Kind, RowLabels
from nncift.teachers.in_context import InContextTeacher
from nncift.teachers.kept_rows import InWorkspace, Kept, contents, on_record, put


class Ica(InWorkspace, InContextTeacher):
    """The ICA teacher: a target in front for each pair, or with `in_front=k` k targets at once.

    seed: draws the k targets from the target set. workspace: a folder that remembers which they were. Settings: see
    `ModelSettings`. Making an `Ica` gives an `IcaOfPairs` or an `IcaOfSet`.
    """

    name = "ica"
    kind: Kind = "pairwise"

    def __new__(cls, *given: Any, in_front: int | None = None, **settings: Any) -> Self:
        """Choose the form by what stands in front."""
        form: type[Any] = cls if cls is not Ica else IcaOfPairs if in_front is None else IcaOfSet
        made: Self = super().__new__(form)
        return made

    def __init__(
        self,
        model: AnyModel,
        tokenizer: AnyTokenizer = None,
        *,
        in_front: int | None = None,
        seed: int = 0,
        workspace: Path | None = None,
        **settings: Unpack[ModelSettings],
    ) -> None:
        if in_front is not None and (not isinstance(in_front, int) or in_front < 1):
            raise UsageError(f"ica's in_front is a number of targets, at least 1, not {in_front!r}")
        super().__init__(model, {} if in_front is None else {"in_front": in_front}, tokenizer, **settings)
        self.in_front, self.seed, self.workspace = in_front, seed, workspace

    def alone(self, ids: Sequence[str]) -> Doubles:
        """Return the losses of rows without an example, `(n,)`."""
        return self.reader.mean_losses([self._alone(item) for item in ids])

    def _alone(self, item: str) -> Row:
        row = self.reader.rows[item]
        return row.behind(self.wording.bos)


class IcaOfPairs(Ica):
    """One target in front for each pair: a pass for it, and one for each source alone in every chunk that it leads."""

    relative = False
    chunk_passes = 1

    def label(self, chunk: Chunk) -> ChunkLabels:
        """Return by how much each target in front lowers the source's loss, in nats a token; NaN where a pair cannot fit."""
        values = np.full(len(chunk.targets), np.nan, np.float32)
        pairs, shortened = self._pairs(chunk)
        if not pairs or chunk.source is None:
            return ChunkLabels(values, 0, shortened)
        alone = self.alone([chunk.source])
        self.reader.check_not_nan([chunk.source], alone, "source")
        values[list(pairs)] = alone - self.reader.mean_losses(list(pairs.values()))
        named = [chunk.targets[index] for index in pairs]
        self.reader.check_not_nan(named, values[list(pairs)], "target", f" in front of source {chunk.source!r}")
        return ChunkLabels(values, self._read_tokens(chunk.source, pairs), shortened)

    def chunk_tokens(self, chunk: Chunk) -> int:
        """Return the tokens that `label` reads for a chunk: every pair whole, and the source alone."""
        pairs, _ = self._pairs(chunk)
        return self._read_tokens(chunk.source, pairs) if pairs and chunk.source is not None else 0

    def _read_tokens(self, source: str, pairs: Mapping[int, Row]) -> int:
        return len(self._alone(source)) + sum(map(len, pairs.values()))

    def _pairs(self, chunk: Chunk) -> tuple[dict[int, Row], bool]:
        """Return the pairs of a chunk that fit, by place, and whether a target in front lost its prompt's start."""
        if chunk.source is None:
            raise UsageError("ica compares a source with itself behind each target; a chunk without a source was given")
        behind, pairs, shortened = self._behind[chunk.source], dict[int, Row](), False
        for index, target in enumerate(chunk.targets):
            try:
                block = self.wording.block(self._examples[target], self.block_tokens)
            except DataError:
                # The row alone is worded, or it would have been rejected; its turns cannot be cut to fit.
                shortened = True
                continue
            shortened = shortened or block.shortened
            row = behind.behind((*self.wording.bos, *block.ids))
            if len(row) <= self.lm.context:
                pairs[index] = row
        return pairs, shortened


class IcaOfSet(Ica):
    """k targets in front at once: one number for each source, the same for every target, for two passes.

    The k targets are drawn from the target set by the seed, and each may take an equal share of half of the context: its prompt
    loses its start where it is longer. They are read once and their keys and values serve all sources.
    """

    row_passes = 2
    width = 1
    needs_targets = True

    def __init__(self, *given: Any, **settings: Any) -> None:
        super().__init__(*given, **settings)
        self._set: Kept | None = None

    def aim(self, targets: Examples) -> None:
        """Draw the targets that stand in front. Raises UsageError where no conversation of them fits half of the context."""
        drawn = shuffled(targets.ids, self.seed, "ica", "in front")
        known = [item for item in drawn if item in self.reader.rows][: self.in_front]
        self._set = put(
            self._in_workspace("in-front.json"), self._key, self._worded([self._examples[item] for item in known])
        )
        vars(self).pop("_front", None)

    def _worded(self, rows: Sequence[Any]) -> dict[str, Row]:
        """Return the blocks that fit, one behind the other, by id; each as tokens of a prompt."""
        share, room, found = self.block_tokens // max(1, len(rows)), self.block_tokens, dict[str, Row]()
        for row in rows:
            try:
                block = self.wording.block(row, share, first=not found)
            except DataError:
                continue
            if len(block.ids) <= room:
                found[row.id] = Row(block.ids, ())
                room -= len(block.ids)
        if not found:
            raise UsageError(
                f"none of {len(rows)} targets fits into half of the model's context, {self.block_tokens} tokens, to "
                "stand in front of sources; give shorter ones, or leave in_front out"
            )
        return found

    def notes(self) -> tuple[str, ...]:
        """Return sentences on rows, and how many targets stand in front where they are fewer than were asked for."""
        fewer = () if self._set is None or len(self._set) == self.in_front else self._said(len(self._set))
        return (*super().notes(), *fewer)

    def _said(self, shown: int) -> tuple[str, ...]:
        return (
            f"{shown} of {self.in_front} targets asked for by in_front stand in front of every source: no more fit.",
        )

    def measure(self, ids: Sequence[str]) -> RowLabels:
        """Return by how much the targets in front lower each source's loss, `(n, 1)`; NaN where they do not fit together."""
        front = self._front
        values = np.full((len(ids), 1), np.nan, np.float32)
        fitting = [place for place, item in enumerate(ids) if len(front) + len(self._behind[item]) <= self.lm.context]
        some = [ids[place] for place in fitting]
        if some:
            values[fitting, 0] = self.alone(some) - self._shown([self._behind[item] for item in some])
            self.reader.check_not_nan(some, values[fitting], "source", " behind the targets")
        return RowLabels(values, self.tokens_of(some), 2 * len(some))

    def _shown(self, rows: Sequence[Row]) -> Doubles:
        """Return the losses of rows behind the targets, `(n,)`."""
        values, prefix = np.full(len(rows), np.nan), self.lm.prefix(self._front)
        again = () if prefix.cache is not None else self._front
        lengths, limit = [len(again) + len(row) for row in rows], self.lm.padding_limit
        for batch in batches(lengths, self.reader.batch_tokens, len(self._front), limit=limit):
            logs = self.lm.log_probabilities(prefix, [rows[index] for index in batch])
            for index, own in zip(batch, logs, strict=True):
                values[index] = -np.mean(own, dtype=np.float64)
        return values

    def tokens_of(self, ids: Sequence[str]) -> int:
        """Return the tokens of rows, each read alone and behind the targets, whose keys and values are there already."""
        again = 0 if self.lm.caches_prefixes else len(self._front)
        return sum(len(self._alone(item)) + again + len(self._behind[item]) for item in ids)

    def utility(self, targets: Floats, sources: Floats) -> Floats:
        """Return each source's number for every target, `(n_targets, n_sources)`."""
        return np.repeat(np.asarray(sources[:, :1].T, np.float32), len(targets), axis=0)

    def describe(self) -> Mapping[str, Any]:
        """Return what decides the values, the targets in front among it."""
        return {**super().describe(), "seed": self.seed, "in_front_of_sources": contents(self._targets())}

    @cached_property
    def _front(self) -> tuple[int, ...]:
        found = self._targets()
        if found is None:
            raise UsageError(
                "ica with in_front is about a target set, and was given none; give --target, or call aim()"
            )
        return (*self.wording.bos, *(token for row in found.values() for token in row.prompt))

    def _targets(self) -> Kept | None:
        if self._set is None:
            self._set = on_record(self._in_workspace("in-front.json"), lambda: self._key)
        return self._set

    @property
    def _key(self) -> str:
        return fingerprint(dict(super().describe()), self.seed)
