"""The existing set: rows that were trained on already. They are sources only, are never labelled, and need vectors alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from nncift.config import EncoderSettings
from nncift.data import Examples
from nncift.distributed.local import LocalExecutor
from nncift.errors import DataError
from nncift.models.embedding_cache import EmbeddingCache
from nncift.selection.utilities import Existing
from nncift.stages.context import RunContext, encoder_of, probe_of
from nncift.stages.embed import probed
from nncift.storage.atomic import atomic, write_json
from nncift.storage.vector_store import VectorFile

VECTORS, ABOUT = "existing.npy", "existing.json"


def embed_existing(context: RunContext, rows: Examples | None) -> Existing | None:
    """Return the existing set with its vectors, embedded unless that is done.

    None where there is none, and in a shard, which leaves what looks at these rows to the run that joins.
    """
    if rows is None or context.executor.partial:
        return None
    if not rows:
        raise DataError("the existing set has no usable row; leave --existing out, or give other files")
    # One row of a kind: what serves a target serves it once.
    rows = Examples(tuple({row.content_hash: row for row in sorted(rows, key=lambda row: row.content_hash)}.values()))
    given = dict(context.encoder.describe()) if context.encoder else None
    contents, features = [row.content_hash for row in rows], context.features
    key = context.key(
        "existing", contents, context.settings.part(EncoderSettings), given, features, context.keys.get("probe")
    )
    with context.directory.stage("existing", key, (VECTORS, ABOUT)) as stage:
        if not stage.done:
            encoder = encoder_of(context)
            with context.progress("embedding existing rows", len(contents)) as advance:
                embedded = EmbeddingCache(encoder).embed(rows.texts, advance, into=context.directory.file(VECTORS))
            stage.cost.model_tokens, stage.cost.model_passes = embedded.read, len(rows)
            # Passes of the teacher's model: hidden states that are embeddings, and what a probe asks.
            passes = len(rows) if context.settings.encoder == "lm" else 0
            if features == "probe":
                # Shards leave nothing about these rows; what they left about others is paid for already.
                found = probed(replace(context, executor=LocalExecutor()), rows, stage)
                passes += probe_of(context).passes(len(rows))
                with atomic(context.directory.file(VECTORS)) as part, part.open("wb") as stream:
                    np.save(stream, np.concatenate([embedded.vectors, found.vectors], axis=1), allow_pickle=False)
            write_json(context.directory.file(ABOUT), {"contents": contents, "teacher_passes": passes})
    return load_existing(context.directory.path)


def load_existing(run: Path) -> Existing:
    """Read the existing set of a run. Raises DataError where it is damaged."""
    found = VectorFile(run, "existing", ids="contents")
    return Existing(found.vectors, found.ids)
