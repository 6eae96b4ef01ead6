"""The stages that make vectors of rows: embeddings, and what a probe of the teacher's model finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from nncift.config import EncoderSettings, TeacherSettings
from nncift.core.arrays import Longs
from nncift.core.fingerprints import fingerprint
from nncift.core.parallel import Incomplete, TaskGroup
from nncift.core.texts import counted
from nncift.data import Examples
from nncift.data.examples import Example
from nncift.distributed.blocks import ByExecutor
from nncift.labels.store import Axes
from nncift.labels.vectors import VectorFiles, Vectors
from nncift.models.embedding_cache import Embedded, EmbeddingCache
from nncift.models.probe import features_of, share_of
from nncift.stages.context import RunContext, encoder_of, identity, probe_of
from nncift.storage.atomic import write_json
from nncift.storage.run_directory import Stage
from nncift.teachers import RowTeacher, Teacher
from nncift.teachers.abilities import HasLanguageModel


def embed(context: RunContext, axes: Axes) -> Vectors | None:
    """Return the vectors of all rows: embeddings, and what a probe finds where the student is to read it.

    None in a shard that lacks those of other shards: it can label all the same.
    Raises DataError where those of an earlier session cannot be read, UsageError for a probe without a language model.
    """
    complete = True
    for stage in (embed_rows, probe_rows):
        try:
            stage(context, axes.rows)
        except Incomplete:
            complete = False
    return VectorFiles(context.directory.path).on(axes.target_ids, axes.sources.ids) if complete else None


def embed_rows(context: RunContext, rows: Examples) -> None:
    """Embed rows. Raises Incomplete where other shards must do the rest."""
    vectors_file = context.directory.file("embeddings.npy")
    # An encoder given as an object may differ from the one that its name stands for.
    given = dict(context.encoder.describe()) if context.encoder else None
    key = context.key("embed", identity(rows), context.settings.part(EncoderSettings), given)
    with context.directory.stage("embed", key, ("embeddings.npy", "embeddings.json")) as stage:
        if not stage.done:
            encoder = encoder_of(context)
            with context.progress("loading the encoder", 0):
                described = dict(encoder.describe())
            group = TaskGroup("embed", "embed", fingerprint(described), "embedding rows")
            by = ByExecutor(context.executor, replace(context.worker, encoder=lambda: encoder), group)
            with context.progress(group.what, len(rows)) as advance:
                embedded = EmbeddingCache(encoder).embed(rows.texts, advance, by, into=vectors_file)
            # All of them, also where a cache or another worker had them: what a killed session computed lies there too.
            stage.cost.model_tokens, stage.cost.model_passes = embedded.read, len(rows)
            stage.cost.seconds += by.others
            about = {
                "truncated": embedded.truncated,
                "encoder": described,
                "ids": rows.ids,
                "tokens": _token_counts(context.teacher, rows, embedded.counts),
            }
            write_json(context.directory.file("embeddings.json"), about)


def probe_rows(context: RunContext, rows: Examples) -> None:
    """Ask the teacher's model once about every row, where the student is to read that. Raises Incomplete as `embed_rows`."""
    if context.features != "probe":
        return
    left = ("probe.npy", "probe.json")
    share = share_of(context.settings)
    parts = () if share == 1 else (share,)
    key = context.key("probe", context.keys["embed"], context.settings.part(TeacherSettings), *parts)
    with context.directory.stage("probe", key, left) as stage:
        if not stage.done:
            stage.cost.model_tokens = stage.cost.model_passes = 0
            found = probed(context, rows, stage, into=context.directory.file("probe.npy"))
            asked = probe_of(context)
            about = {
                "ids": rows.ids,
                "views": asked.views.to_json(),
                "probe": asked.describe(),
                "truncated": found.truncated,
            }
            write_json(context.directory.file("probe.json"), about)


def probed(context: RunContext, rows: Examples, stage: Stage, into: Path | None = None) -> Embedded:
    """Return what the probe finds of rows, its passes charged to a stage: all of them, also where a cache had their result.

    into: see `EmbeddingCache.embed`.
    """
    probe = probe_of(context)
    group = TaskGroup("probe", "ask", fingerprint(probe.describe()), "probing rows")
    others = []

    def by_executor(of: Mapping[str, Example]) -> ByExecutor:
        worker = replace(context.worker, probe=lambda: probe)
        others.append(ByExecutor(context.executor, worker, group, lambda texts: [of[text] for text in texts]))
        return others[0]

    with context.progress(group.what, len(rows)) as advance:
        found = features_of(probe, rows, advance, by_executor, into)
    stage.cost.seconds += sum(by.others for by in others)
    stage.cost.model_tokens += int(probe.tokens_of(found.counts).sum())
    stage.cost.model_passes += probe.passes(len(rows))
    return found


def token_counts(context: RunContext, rows: Examples) -> dict[str, int]:
    """Return the tokens of rows that were embedded, by id."""
    about = context.directory.read_json("embeddings.json")
    ids = about["ids"]
    if tuple(ids[: len(rows)]) == rows.ids:
        # The rows' own ids: those that were read are a second copy.
        ids = (*rows.ids, *ids[len(rows) :])
    return dict(zip(ids, about["tokens"], strict=True))


def _token_counts(teacher: Teacher | RowTeacher, rows: Examples, by_encoder: Longs) -> list[int]:
    """Return the tokens of every row: by the teacher's language model where it has one, else by the encoder."""
    if not isinstance(teacher, HasLanguageModel):
        return [int(count) for count in by_encoder]
    tokenizer = teacher.language_model().tokenizer
    return counted(
        rows.texts, lambda part: map(len, tokenizer(part, split_special_tokens=True, verbose=False)["input_ids"])
    )
