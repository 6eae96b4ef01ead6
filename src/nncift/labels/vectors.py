"""The vectors that a student reads, on both axes: embeddings, and beside them what a probe found (docs/cli.md, files).

`embeddings.npy` holds all rows' embeddings, `probe.npy` their probe features where `--features probe` was asked for; the JSON
files beside them say which row lies where.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nncift.core.arrays import Floats
from nncift.labels.plan import SCORE
from nncift.models.encoders import full_name
from nncift.models.views import TEXT, Views
from nncift.storage.vector_store import VectorFile

EMBEDDINGS, PROBE = "embeddings", "probe"


@dataclass(frozen=True)
class Vectors:
    """Vectors of both axes, `(n_targets, dim)` and `(n_sources, dim)`; a pointwise teacher's target has dim 0.

    views: what they consist of, the embedding first. truncated: rows longer than the encoder reads.
    """

    targets: Floats
    sources: Floats
    views: Views
    truncated: int = 0

    @property
    def text(self) -> Floats:
        """Embeddings of the sources, of unit norm."""
        return self.views.take(self.sources, TEXT)


class VectorFiles:
    """The vectors of a run's rows, by id. Raises DataError where a file is missing or damaged."""

    def __init__(self, run: Path) -> None:
        text = VectorFile(run, EMBEDDINGS)
        self.truncated = int(text.about("truncated"))
        self._files, views = [text], {TEXT: text.vectors.shape[1]}
        if (run / f"{PROBE}.json").exists():
            probe = VectorFile(run, PROBE)
            self._files.append(probe)
            views |= probe.about("views")
        self.views = Views.of(views, full_name(text.about("encoder")))

    def of(self, ids: Sequence[str]) -> Floats:
        """Return the vectors of rows, `(n, dim)`; where the rows lie in the file in this order, they are mapped and read-only.

        Raises DataError for a row that has none, or one that is not finite.
        """
        found = [file.of(ids) for file in self._files]
        if len(found) == 1 and found[0].dtype == np.float32:
            return found[0]
        return np.concatenate(found, axis=1, dtype=np.float32)

    def on(self, target_ids: Sequence[str], source_ids: Sequence[str]) -> Vectors:
        """Return the vectors of both axes; where they are the same rows, one array serves both."""
        sources = self.of(source_ids)
        if tuple(target_ids) == SCORE:
            return Vectors(np.zeros((1, 0), np.float32), sources, self.views, self.truncated)
        same = tuple(target_ids) == tuple(source_ids)
        return Vectors(sources if same else self.of(target_ids), sources, self.views, self.truncated)
