"""The vectors that a student reads, on both axes: embeddings, and beside them what a probe found (docs/cli.md, files).

`embeddings.npy` holds all rows' embeddings, `probe.npy` their probe features where `--features probe` was asked for; the JSON
files beside them say which row lies where.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nncift.core.parallel import ranges
from nncift.errors import DataError
from nncift.labels.row_labels import SCORE
from nncift.models.views import TEXT, Views
from nncift.storage import checksums
from nncift.storage.atomic import load_array, rows_of

Floats = npt.NDArray[np.float32]

EMBEDDINGS, PROBE = "embeddings", "probe"
LOOKED_AT = 1 << 24
"""Bytes of vectors that are looked at together."""


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
    """The vectors of a run's rows, by id."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self.views = Views.of({TEXT: 0})
        self.truncated = 0
        parts = []
        for name in (EMBEDDINGS, *([PROBE] if (run / f"{PROBE}.json").exists() else [])):
            checksums.verify(run, f"{name}.json", f"{name}.npy")
            try:
                record = json.loads((run / f"{name}.json").read_text(encoding="utf-8"))
                vectors: Floats = np.asarray(load_array(run / f"{name}.npy", "r"))
                place = {item: row for row, item in enumerate(record["ids"])}
                if vectors.ndim != 2 or len(vectors) != len(place):
                    raise ValueError(f"{vectors.shape} for {len(place)} rows")
                views = {TEXT: vectors.shape[1]} if name == EMBEDDINGS else dict(record["views"])
                self.truncated += int(record["truncated"]) if name == EMBEDDINGS else 0
            except (OSError, ValueError, EOFError, KeyError, TypeError, RecursionError) as error:
                raise DataError(
                    f"{str(run / f'{name}.npy')!r} is damaged ({error}); delete it and run again"
                ) from error
            parts.append((vectors, place))
            self.views = Views.of(views if name == EMBEDDINGS else {**self.views.to_json(), **views})
        self._parts = parts

    def of(self, ids: Sequence[str]) -> Floats:
        """Return the vectors of rows, `(n, dim)`; where the rows lie in the file in this order, they are mapped and read-only.

        Raises DataError for a row that has none, or one that is not finite.
        """
        try:
            found = [_rows_of(vectors, place, ids) for vectors, place in self._parts]
        except (KeyError, IndexError) as error:
            raise DataError(
                f"the vectors in {str(self._run)!r} lack one of {error}; delete {EMBEDDINGS}.npy and run again"
            ) from error
        self._check_all_finite(found, ids)
        if len(found) == 1 and found[0].dtype == np.float32:
            return found[0]
        return np.concatenate(found, axis=1, dtype=np.float32)

    def _check_all_finite(self, found: Sequence[Floats], ids: Sequence[str]) -> None:
        for part in found:
            for at in ranges(len(part), max(1, LOOKED_AT // max(1, part[:1].nbytes))):
                fine = np.isfinite(part[at]).all(axis=1)
                if not fine.all():
                    first = ids[at.start + int(fine.argmin())]
                    raise DataError(
                        f"the vector of {first!r} in {str(self._run)!r} is not finite: it is damaged, or the model that made it "
                        "computes such; delete the run directory and run again, with another --dtype or --encoder where it recurs"
                    )

    def on(self, target_ids: Sequence[str], source_ids: Sequence[str]) -> Vectors:
        """Return the vectors of both axes; where they are the same rows, one array serves both."""
        sources = self.of(source_ids)
        if tuple(target_ids) == SCORE:
            return Vectors(np.zeros((1, 0), np.float32), sources, self.views, self.truncated)
        same = tuple(target_ids) == tuple(source_ids)
        return Vectors(sources if same else self.of(target_ids), sources, self.views, self.truncated)


def _rows_of(vectors: Floats, place: Mapping[str, int], ids: Sequence[str]) -> Floats:
    """Return the vectors of rows; a view where they follow each other."""
    rows = np.fromiter((place[item] for item in ids), np.intp, len(ids))
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and bool((np.diff(rows) == 1).all()):
        return vectors[rows[0] : rows[-1] + 1]
    return np.asarray(rows_of(vectors, rows))
