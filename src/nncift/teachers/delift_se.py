"""DELIFT-SE: cosine of the embeddings of whole examples (method.md 3.2). No language model takes part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from nncift.core.arrays import Floats
from nncift.data.examples import Examples, Rejection
from nncift.models.embedding_cache import EmbeddingCache
from nncift.models.encoders import Encoder, create
from nncift.models.response_reader import Prepared
from nncift.teachers import Kind, RowLabels

NO_SAVING = "the teacher costs what the student's input costs, so a student saves nothing: take the full matrix"


class Similarity:
    """The DELIFT-SE teacher: `utility[t, s]` in [-1, 1] from the embeddings that a student would read.

    encoder: a name as in `--encoder`, or an `Encoder`. Vectors come from the embedding cache where they are there
    already. width is known once `prepare` was called.
    """

    name = "delift-se"
    kind: Kind = "pairwise"
    # An encoder's passes are none of a language model.
    pass_weight, row_passes = 0, 1

    def __init__(self, encoder: str | Encoder = "minilm", *, device: str = "auto") -> None:
        self.encoder: Encoder = create(encoder, device=device) if isinstance(encoder, str) else encoder
        name = encoder if isinstance(encoder, str) else type(encoder).__name__
        self.options: Mapping[str, Any] = {"teacher": self.name, "encoder": name}
        self.width = 0
        self._texts: dict[str, str] = Prepared()

    @cached_property
    def _cache(self) -> EmbeddingCache:
        return EmbeddingCache(self.encoder)

    def prepare(self, examples: Examples) -> tuple[Rejection, ...]:
        """Make rows known; every text can be embedded."""
        self.width = int(self.encoder.describe()["dim"])
        self._texts.update((example.id, example.text) for example in examples)
        return ()

    def measure(self, ids: Sequence[str]) -> RowLabels:
        """Return embeddings of unit norm, `(n_rows, dim)`. tokens and passes: of what was not in the cache."""
        if not ids:
            return RowLabels(np.empty((0, self.width), np.float32), 0, 0)
        embedded = self._cache.embed([self._texts[item] for item in ids])
        return RowLabels(embedded.vectors, embedded.tokens, embedded.fresh)

    def utility(self, targets: Floats, sources: Floats) -> Floats:
        """Return the cosines `(n_targets, n_sources)` of embeddings."""
        return np.asarray(targets @ sources.T, np.float32)

    def describe(self) -> Mapping[str, Any]:
        """Return the encoder, and why no student is needed."""
        return {"teacher": self.name, "encoder": dict(self.encoder.describe()), "note": NO_SAVING}
