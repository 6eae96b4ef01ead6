"""The stages that make vectors of rows: embeddings, and what a probe of the teacher's model finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from nncift.config import EncoderSettings, TeacherSettings
from nncift.core.fingerprints import fingerprint
from nncift.core.tasks import Job
from nncift.data import Examples
from nncift.data.examples import Example
from nncift.distributed.blocks import ByEngine
from nncift.labels.store import Axes
from nncift.labels.vectors import VectorFiles, Vectors
from nncift.models.causal_lm import CausalLM
from nncift.models.embedding_cache import Embedded, EmbeddingCache
from nncift.models.probe import features_of
from nncift.stages.context import Work, encoder_of, identity, probe_of
from nncift.storage.atomic import write_json
from nncift.storage.run_directory import Stage
from nncift.storage.vector_store import Counts
from nncift.teachers import RowTeacher, Teacher
from nncift.teachers.language_models import language_model

COUNTED = 1 << 12
"""Rows whose tokens are counted at once."""


def embed(work: Work, axes: Axes) -> Vectors:
    """Return the vectors of all rows: embeddings, and what a probe finds where the student is to read it.

    Raises DataError where those of an earlier session cannot be read, UsageError for a probe without a language model.
    """
    embed_rows(work, axes.rows)
    probe_rows(work, axes.rows)
    return VectorFiles(work.directory.path).on(axes.target_ids, axes.sources.ids)


def embed_rows(work: Work, rows: Examples) -> None:
    """Embed rows. Raises Unfinished where other shards must do the rest."""
    vectors_file = work.directory.file("embeddings.npy")
    # An encoder given as an object may differ from the one that its name stands for.
    given = dict(work.encoder.describe()) if work.encoder else None
    key = work.key("embed", identity(rows), work.settings.part(EncoderSettings), given)
    with work.directory.stage("embed", key, ("embeddings.npy", "embeddings.json")) as stage:
        if not stage.done:
            encoder = encoder_of(work)
            job = Job("embed", "embed", fingerprint(dict(encoder.describe())), "embedding rows")
            by = ByEngine(work.engine, replace(work.hands, encoder=lambda: encoder), job)
            with work.progress(job.what, len(rows)) as advance:
                embedded = EmbeddingCache(encoder).embed(rows.texts, advance, by, into=vectors_file)
            # All of them, also where a cache or another worker had them: what a killed session computed lies there too.
            stage.cost.model_tokens, stage.cost.model_passes = embedded.read, len(rows)
            stage.cost.seconds += by.others.seconds
            about = {
                "truncated": embedded.truncated, "encoder": dict(encoder.describe()), "ids": rows.ids,
                "tokens": _token_counts(work.teacher, rows, embedded.counts),
            }  # fmt: skip
            write_json(work.directory.file("embeddings.json"), about)


def probe_rows(work: Work, rows: Examples) -> None:
    """Ask the teacher's model once about every row, where the student is to read that. Raises Unfinished as `embed_rows`."""
    if work.settings.features != "probe":
        return
    left = ("probe.npy", "probe.json")
    key = work.key("probe", work.keys["embed"], work.settings.part(TeacherSettings))
    with work.directory.stage("probe", key, left) as stage:
        if not stage.done:
            stage.cost.model_tokens = stage.cost.model_passes = 0
            found = probed(work, rows, stage, into=work.directory.file("probe.npy"))
            asked = probe_of(work)
            about = {
                "ids": rows.ids,
                "views": asked.views.to_json(),
                "probe": asked.describe(),
                "truncated": found.truncated,
            }
            write_json(work.directory.file("probe.json"), about)


def probed(work: Work, rows: Examples, stage: Stage, into: Path | None = None) -> Embedded:
    """Return what the probe finds of rows, its passes charged to a stage: all of them, also where a cache had their outcome.

    into: see `EmbeddingCache.embed`.
    """
    probe = probe_of(work)
    job = Job("probe", "ask", fingerprint(probe.describe()), "probing rows")
    others = []

    def by_engine(of: Mapping[str, Example]) -> ByEngine:
        hands = replace(work.hands, probe=lambda: probe)
        others.append(ByEngine(work.engine, hands, job, lambda texts: [of[text] for text in texts]))
        return others[0]

    with work.progress(job.what, len(rows)) as advance:
        found = features_of(probe, rows, advance, by_engine, into)
    stage.cost.seconds += sum(by.others.seconds for by in others)
    limit = language_model(work.teacher).context
    stage.cost.model_tokens += int(np.minimum(found.counts, limit).sum())
    stage.cost.model_passes += len(rows)
    return found


def token_counts(work: Work, rows: Examples) -> dict[str, int] | None:
    """Return the tokens of rows that were embedded, None where an earlier version of the run did not count them."""
    about = work.directory.read_json("embeddings.json")
    ids = about["ids"]
    if tuple(ids[: len(rows)]) == rows.ids:
        # The rows' own ids: those that were read are a second copy.
        ids = (*rows.ids, *ids[len(rows) :])
    counted = dict(zip(ids, about.get("tokens", ()), strict=False))
    return counted if all(item in counted for item in rows.ids) else None


def _token_counts(teacher: Teacher | RowTeacher, rows: Examples, by_encoder: Counts) -> list[int]:
    """Return the tokens of every row: by the teacher's language model where it has one, else by the encoder."""
    lm = getattr(teacher, "lm", None)
    if not isinstance(lm, CausalLM):
        return [int(count) for count in by_encoder]
    found: list[int] = []
    for start in range(0, len(rows), COUNTED):
        texts = list(rows.texts[start : start + COUNTED])
        found += map(len, lm.tokenizer(texts, split_special_tokens=True, verbose=False)["input_ids"])
    return found
