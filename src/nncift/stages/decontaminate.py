"""`--against`: rows of a pool that test rows are in are named, or left out (`data.contamination`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nncift.config import RunSettings
from nncift.core.progress import Progress, silent
from nncift.data import Examples
from nncift.data.contamination import CONTAMINATED, Contamination, Embed, contamination, left_out
from nncift.data.examples import Rejection
from nncift.errors import DataError, QualityError, UsageError
from nncift.models.embedding_cache import EmbeddingCache
from nncift.models.encoders import Encoder, create

NAMED = 3
"""Rows that a refusal names."""


def embedder(encoder: Encoder) -> Embed:
    """Return what gives the vectors of texts, from the cache where they are known."""
    cache = EmbeddingCache(encoder)

    def embed(texts: Sequence[str]) -> npt.NDArray[np.float32]:
        return cache.embed(texts).vectors

    return embed


def screened(
    settings: RunSettings,
    pool: Examples,
    tests: Examples | None,
    encoder: Encoder | None = None,
    *,
    meaning: bool = True,
    progress: Progress = silent,
) -> Examples:
    """Return a pool without the rows that test rows are in, which are among its rejected rows then.

    tests: those of `--against`, None without it. meaning: embeddings are compared too, by an encoder, None = that of the
    settings, but for `lm`, which is a model that is not loaded yet. Raises QualityError, with what was found, where there are
    such rows and settings do not say `decontaminate`; DataError where no row is left, UsageError for `decontaminate` alone.
    """
    if tests is None:
        if settings.decontaminate:
            raise UsageError("--decontaminate was given without --against; name the files of test rows")
        return pool
    if encoder is None and settings.encoder != "lm":
        encoder = create(settings.encoder, device=settings.device)
    embed = embedder(encoder) if encoder is not None and meaning else None
    with progress("looking for test rows", len(pool)) as advance:
        found = contamination(pool, tests, embed=embed, advance=advance)
    if found.hits and not settings.decontaminate:
        error = QualityError(
            f"{summary_of(found)}. Leave these rows out with --decontaminate, or look at all of them with nncift inspect "
            "--against"
        )
        error.about = {"contamination": found.to_json()}
        raise error
    kept = tuple(left_out(pool, found))
    if not kept:
        raise DataError("test rows are in every row of the pool; is --against the pool itself?")
    out = found.strongest
    rejected = tuple(Rejection(hit.row.source, hit.row.line, hit.reason()) for hit in out.values())
    about = f"{len(out):,} of {len(pool):,} rows are left out, since test rows are in them ({_by_kind(found)})."
    notes = (about if out else f"No row of the pool has any of {len(tests):,} test rows in it.", *found.notes)
    if embed is None:
        notes += (
            "Rows like test rows by meaning were not looked for (--encoder lm, or a dry run): only shared text was.",
        )
    return Examples(kept, (*pool.rejected, *rejected), (*pool.notes, *notes))


def summary_of(found: Contamination) -> str:
    """Return how many rows test rows are in, and the first of them, in one sentence."""
    hits = list(found.strongest.values())
    first = "; ".join(
        f"{hit.row.id} of {hit.row.source} (line {hit.row.line}), {hit.reason().removeprefix(f'{CONTAMINATED}: ')}"
        for hit in hits[:NAMED]
    )
    more = "; ..." if len(hits) > NAMED else ""
    return f"test rows are in {len(hits):,} of {found.rows:,} rows ({_by_kind(found)}): {first}{more}"


def _by_kind(found: Contamination) -> str:
    return ", ".join(f"{count:,} {kind.replace('_', ' ')}" for kind, count in found.counts.items() if count)
