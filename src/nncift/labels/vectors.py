"""The vectors that a student reads, on both axes: embeddings, and beside them what a probe found (docs/cli.md, files).

`embeddings.npy` holds all rows' embeddings, `probe.npy` their probe features where `--features probe` was asked for, and behind
these what RDS+ compares where the features project it; the JSON files beside them say which row lies where.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nncift.core.arrays import Floats
from nncift.errors import DataError
from nncift.labels.plan import SCORE
from nncift.models.encoders import full_name
from nncift.models.probe import MOST_HIDDEN
from nncift.models.views import TEXT, Views, unit
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
        self._text, self._probe, views = text, None, {TEXT: text.vectors.shape[1]}
        wide = text.vectors.shape[1]
        if (run / f"{PROBE}.json").exists():
            self._probe = VectorFile(run, PROBE)
            wide += self._probe.vectors.shape[1]
        try:
            self.truncated = int(text.about("truncated"))
            if self._probe is not None:
                views |= self._probe.about("views")
            self.views = Views.of(views, full_name(text.about("encoder")))
            if self.views.dim > wide:
                raise ValueError(f"vectors of {wide} numbers, and views of {self.views.dim}")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"the vectors of {str(run)!r} are damaged ({error}); run the same run again") from error

    def of(self, ids: Sequence[str]) -> Floats:
        """Return the vectors of rows, `(n, dim)`; where the rows lie in the file in this order, they are mapped and read-only.

        Raises DataError for a row that has none, or one that is not finite.
        """
        text = self._text.of(ids)
        if self._probe is None:
            return np.asarray(text, np.float32)
        probe = self._probe.of(ids)[:, : self.views.dim - text.shape[1]]
        return np.concatenate([text, probe], axis=1, dtype=np.float32)

    def pooled(self, ids: Sequence[str], reader: Mapping[str, Any]) -> Floats | None:
        """Return what RDS+ compares, the means of whole rows' last states with rising weights at length 1, `(n, hidden size)`.

        reader: description of who would read the rows. None without a probe that read the same, whole, and kept it unprojected.
        """
        if self._probe is None or self._probe.about("truncated"):
            return None
        described, views = self._probe.about("probe"), Views.of(self._probe.about("views"))
        if "share" in described or any(
            described.get(name) != reader.get(name) for name in ("model", "dtype", "wording", "context")
        ):
            return None
        found = self._probe.of(ids)
        whole, pooled = found[:, views.dim :], views.pooled(found)
        if whole.shape[1]:
            return unit(whole)
        # As wide as projections are, it may be one.
        return unit(pooled) if pooled.shape[1] < MOST_HIDDEN else None

    def on(self, target_ids: Sequence[str], source_ids: Sequence[str]) -> Vectors:
        """Return the vectors of both axes; where they are the same rows, one array serves both."""
        sources = self.of(source_ids)
        if tuple(target_ids) == SCORE:
            return Vectors(np.zeros((1, 0), np.float32), sources, self.views, self.truncated)
        same = tuple(target_ids) == tuple(source_ids)
        return Vectors(sources if same else self.of(target_ids), sources, self.views, self.truncated)
