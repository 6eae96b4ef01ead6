"""The stages of a run: each reads what is finished, computes what is missing, and leaves files (design.md).

A stage's fingerprint is a hash of what it depends on, so that an extended run repeats only what has to change: labels
are added chunk by chunk, vectors come from the cache, and the student is trained again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from nncift import subtasks
from nncift.calculation import Arrays, Calculation
from nncift.calculation import Keep as KeepArrays
from nncift.config import EncoderSettings, LabelSettings, RunSettings, TeacherSettings
from nncift.data import Examples
from nncift.data.examples import Example, Rejection
from nncift.embeddings import Embedded, EmbeddingCache
from nncift.encode import Encoder, create
from nncift.errors import DataError, UsageError
from nncift.files import fingerprint, write_json, write_sealed
from nncift.gathering import Counts
from nncift.ground import default_objective, refuse_graph, refuse_unfit
from nncift.labelling import Axes, Labelling, PairLabelling, open_labels
from nncift.lm import CausalLM
from nncift.pairs import LabelledPairs
from nncift.plan import LabelPlan, Wish, parse_labels, refuse_small
from nncift.probe import Probe, features_of
from nncift.progress import Progress, silent
from nncift.rows import SCORE, RowPlan
from nncift.rundir import RunDir, Stage
from nncift.scale.blocks import ByEngine
from nncift.scale.hands import Hands
from nncift.scale.pieces import Engine, Here, Job, Keep, Outcome, Piece, Unfinished, calculate
from nncift.table import Rows
from nncift.teachers import RowTeacher, Teacher
from nncift.vectors import VectorFiles, Vectors
from nncift.wishes import Wishes

FEWEST_TARGETS = 3
COUNTED = 1 << 12
"""Rows whose tokens are counted at once."""

TEACHER = "labels/teacher.json"


@dataclass
class Work:
    """What every stage works with.

    keys: fingerprints of the stages so far. prepared: the teacher knows all rows. engine: has the pieces of stages done.
    """

    directory: RunDir
    settings: RunSettings
    teacher: Teacher | RowTeacher
    encoder: Encoder | None = None
    progress: Progress = silent
    keys: dict[str, str] = field(default_factory=dict)
    prepared: bool = False
    engine: Engine = field(default_factory=Here)

    def key(self, stage: str, *parts: Any) -> str:
        """Set and return the fingerprint of a stage."""
        self.keys[stage] = fingerprint(stage, *parts)
        return self.keys[stage]

    def labels(self) -> Labelling:
        """Return the run's labels as they are on disk."""
        return open_labels(self.directory.file("labels"), self.teacher)

    @property
    def hands(self) -> Hands:
        """What does pieces in this process."""
        return Hands(self.teacher, lambda: encoder_of(self), lambda: probe_of(self))

    def each(self, job: Job, pieces: Sequence[Piece], keep: Keep) -> float:
        """Keep what other processes have finished of a job, and have the rest done; return the seconds of the others."""
        others = 0.0
        todo = {piece.name: piece for piece in pieces}
        with self.progress(job.what, sum(piece.size for piece in pieces)) as advance:

            def kept(piece: Piece, outcome: Outcome) -> None:
                keep(piece, outcome)
                advance(piece.size)

            for name, outcome in self.engine.found(job, todo):
                kept(todo.pop(name), outcome)
                others += outcome.seconds
            self.engine.each(self.hands, job, list(todo.values()), kept)
        return others

    def calculate(self, calculation: Calculation, keep: KeepArrays) -> None:
        """Have the parts of a calculation done."""
        with self.progress(calculation.what, len(calculation.tasks)) as advance:

            def kept(place: int, arrays: Arrays) -> None:
                keep(place, arrays)
                advance(1)

            calculate(self.engine, self.hands, calculation, kept)


@dataclass
class _Labourer:
    """Labels by the engine of a run. rows: on both axes. others: seconds of other processes whose labels were taken."""

    work: Work
    rows: Examples
    others: float = 0.0

    @cached_property
    def _content(self) -> dict[str, str]:
        return {row.id: row.content_hash for row in self.rows}

    def name(self, kind: str, source: str | None, ids: Sequence[str]) -> str:
        return fingerprint(kind, source, [[item, self._content[item]] for item in ids])

    def know(self, ids: Sequence[str]) -> None:
        self.work.hands.know(self.rows.subset(ids))

    def each(
        self, hand: str, what: str, pieces: Sequence[Piece], keep: Keep, every: Callable[[], Iterable[str]]
    ) -> None:  # fmt: skip
        job = Job("label", hand, fingerprint(dict(self.work.teacher.describe())), what, self.rows, every)
        self.others += self.work.each(job, pieces, keep)


def usable_rows(work: Work, pool: Examples, wanted: Examples | None = None) -> tuple[Axes, tuple[Rejection, ...]]:
    """Return the rows that the teacher can label on both axes, rows of an earlier plan first, and all rejected rows.

    wanted: the target set, with ids of its own. Raises DataError where none is left, UsageError where a row of the run that is
    being extended is gone or changed.
    """
    settings = work.settings
    everything = pool if wanted is None else Examples((*pool, *wanted))
    planned = work.labels().planned()
    _refuse_lost_rows(
        work.directory, everything, list(dict.fromkeys(item for ids in planned for item in ids if item not in SCORE))
    )
    key = work.key("check", _identity(everything), settings.part(TeacherSettings))
    with work.directory.stage("check", key, ("unusable.json", "pool.json")) as stage:
        if not stage.done:
            found = prepare_all(work.teacher, pool, wanted)
            work.prepared = True
            reasons = {(refused.source, refused.line): refused.reason for refused in found}
            # By id: the same rows may stand on other lines the next time.
            by_id = {row.id: reasons[row.source, row.line] for row in everything if (row.source, row.line) in reasons}
            write_json(work.directory.file("unusable.json"), by_id)
            write_json(work.directory.file("pool.json"), {row.id: row.content_hash for row in everything})
    out: dict[str, str] = work.directory.read_json("unusable.json")
    refused = tuple(Rejection(row.source, row.line, out[row.id]) for row in everything if row.id in out)
    sources = _ordered(pool, out, planned[1])
    targets = None if wanted is None else _ordered(wanted, out, planned[0])
    for what, given, usable in (("", pool, sources), ("of the target set ", wanted, targets)):
        if given is not None and not usable:
            why = next(
                (f"; the first: {no.source} line {no.line} {no.reason}" for no in refused if _is_of(no, given)), ""
            )
            raise DataError(
                f"none of the {len(given)} rows {what}can be labelled by the teacher {work.teacher.name}{why}"
            )
    if targets is not None:
        _refuse_few_targets(len(targets))
    rejected = (*pool.rejected, *(() if wanted is None else wanted.rejected), *refused)
    return Axes(sources, targets, pointwise=work.teacher.kind == "pointwise"), rejected


def prepare_all(teacher: Teacher | RowTeacher, pool: Examples, wanted: Examples | None) -> tuple[Rejection, ...]:
    """Make the teacher know all rows. The pool comes first and alone: LESS draws its warm-up from it, never from targets."""
    if wanted is None or not isinstance(teacher, RowTeacher):
        return teacher.prepare(pool if wanted is None else Examples((*pool, *wanted)))
    return (*teacher.prepare(pool), *teacher.prepare(wanted))


def named_target(target: Examples) -> Examples:
    """Return the target set with `target:` before ids and sources, so that they never meet the pool's."""
    renamed = tuple(replace(row, id=f"target:{row.id}", source=f"target:{row.source}") for row in target)
    rejected = tuple(replace(rejection, source=f"target:{rejection.source}") for rejection in target.rejected)
    return Examples(renamed, rejected, target.notes)


def refuse_impossible(
    settings: RunSettings,
    pool: Examples,
    teacher: Teacher | RowTeacher,
    target: Examples | None = None,
    existing: Examples | None = None,
) -> RunSettings:
    """Refuse wishes that cannot be met, before anything is loaded or written, and return settings with defaults filled in.

    Plan and objective follow the teacher and the sets at hand: `rows` for teachers that are paid by the row, else `scatter`;
    `topk` for pointwise teachers, `flcg` with an existing set, `fl2mi` with a target set, else `fl`. Raises DataError for too
    few rows, UsageError and InfeasibleError for labels, budgets, rules, and plans or objectives that do not fit.
    """
    if settings.labels != "auto":
        parse_labels(settings.labels)
    refuse_small(len(pool))
    Wishes.read(settings).check(Rows.of(pool))
    by_row, pointwise = isinstance(teacher, RowTeacher), teacher.kind == "pointwise"
    plan = settings.plan or ("rows" if by_row else "scatter")
    if by_row != (plan == "rows"):
        fitting = (
            "rows, since it is paid by the row" if by_row else "scatter, active or block, since it is paid by the pair"
        )
        raise UsageError(f"--plan {plan} does not fit the teacher {teacher.name}; use {fitting}")
    if settings.features == "probe" and not has_language_model(teacher):
        raise _no_language_model(teacher, "--features probe")
    aimed = bool(settings.target) or target is not None
    if aimed and pointwise:
        raise UsageError(
            f"--target was given, and the teacher {teacher.name} rates rows without a target; leave it out"
        )
    if target:
        _refuse_few_targets(len(target))
    sets = {"pointwise": pointwise, "target": aimed, "existing": bool(settings.existing) or existing is not None}
    objective = settings.objective or default_objective(**sets)
    refuse_unfit(objective, **sets)
    refuse_graph(settings, objective, shared=not aimed and not pointwise)
    subtasks.refuse_unfit(subtasks.column_of(teacher), target, objective)
    return settings.model_copy(update={"plan": plan, "objective": objective})


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
    key = work.key("embed", _identity(rows), work.settings.part(EncoderSettings), given)
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


def encoder_of(work: Work) -> Encoder:
    """Return the encoder at hand, or the one that the settings name."""
    settings = work.settings
    return work.encoder or create(
        settings.encoder, device=settings.device, load_lm=lambda: language_model(work.teacher)
    )


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


def probe_of(work: Work) -> Probe:
    """Return the probe of the teacher's model. Raises UsageError where the teacher has none."""
    return Probe(language_model(work.teacher, "--features probe"), work.settings.template)


def token_counts(work: Work, rows: Examples) -> dict[str, int] | None:
    """Return the tokens of rows that were embedded, None where an earlier version of the run did not count them."""
    about = work.directory.read_json("embeddings.json")
    counted = dict(zip(about["ids"], about.get("tokens", ()), strict=False))
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


def plan_labels(work: Work, axes: Axes) -> LabelPlan | RowPlan | None:
    """Return the plan that these settings ask for, grown from the run's, None where it is labelled; nothing is written.

    Raises UsageError where the wish is below what exists, or where the teacher at hand is not the one that labelled
    before; DataError where too few rows are usable.
    """
    settings = work.settings
    # What an active plan asks next depends on what its student reads.
    reads = [settings.part(EncoderSettings), settings.features] if settings.plan == "active" else []
    key = work.key(
        "label",
        _identity(axes.rows),
        settings.part(LabelSettings),
        settings.part(TeacherSettings),
        settings.seed,
        *reads,
    )
    labelling = work.labels()
    if work.directory.is_done("label", key, (TEACHER,)):
        if not labelling.planned()[1]:
            raise DataError("the labels of this run are gone; use another --out")
        if labelling.whole():
            return None
        # What is damaged is labelled again, and only that.
        work.directory.forget("label")
    grown = labelling.grown(axes, wish_of(settings), settings.seed)
    if isinstance(work.teacher, RowTeacher) and not work.prepared:
        # What it draws from the pool, such as the rows of a warm-up, is part of what it is.
        prepare_all(work.teacher, axes.sources, axes.targets)
    _refuse_other_teacher(work)
    return grown


def wish_of(settings: RunSettings) -> Wish:
    """Return how much the settings ask to label. Raises UsageError or InfeasibleError."""
    share, count = parse_labels(settings.labels)
    return Wish(share, count, settings.plan or "scatter", settings.test_items, settings.validation_items)


def label(
    work: Work, axes: Axes, plan: LabelPlan | RowPlan | None, vectors: Vectors | None
) -> dict[str, LabelledPairs]:
    """Label what is still pending of the plan (of `plan_labels`), chunk by chunk, and return the utilities by split.

    An active plan grows round by round, from the labels that are there and the vectors; vectors: None in a shard that waits for
    those of others. Raises Unfinished where other shards must do what is left.
    """
    labelling, rows, settings = work.labels(), axes.rows, work.settings
    with work.directory.stage("label", work.keys["label"], (TEACHER,)) as stage:
        before = None
        while not stage.done and plan is not None:
            write_sealed(work.directory.file(TEACHER), dict(work.teacher.describe()))
            labourer = _Labourer(work, rows)
            spent = labelling.compute(plan, labourer)
            before = spent.seconds_before if before is None else before
            # What a killed session had labelled is known from its chunks alone; this session's time is added on leaving.
            stage.cost.seconds = max(stage.cost.seconds, before) + labourer.others
            stage.cost.model_tokens, stage.cost.model_passes = spent.tokens, spent.passes
            plan = None
            if settings.plan == "active" and isinstance(labelling, PairLabelling):
                if vectors is None:
                    raise Unfinished("embed", 0)
                plan = labelling.after(wish_of(settings), vectors, settings.seed)
    return labelling.utilities()


def finished_jobs(work: Work) -> list[tuple[str, str]]:
    """Return stage and key of the jobs whose outcomes the run has, by what its files say that they were made with."""
    about = {
        "embed": work.directory.read_json("embeddings.json")["encoder"],
        "label": work.directory.read_json(TEACHER, sealed=True),
    }
    if work.settings.features == "probe":
        about["probe"] = work.directory.read_json("probe.json")["probe"]
    return [(stage, fingerprint(described)) for stage, described in about.items()]


def _refuse_few_targets(rows: int) -> None:
    if rows < FEWEST_TARGETS:
        raise DataError(
            f"the target set has {rows} usable rows, and at least {FEWEST_TARGETS} are needed: one each to learn from, to "
            "validate and to test"
        )


def _is_of(refused: Rejection, rows: Examples) -> bool:
    return any((row.source, row.line) == (refused.source, refused.line) for row in rows)


def _ordered(rows: Examples, out: Mapping[str, str], planned: Sequence[str]) -> Examples:
    """Return the usable rows, planned ones first in the plan's order."""
    if not out and not planned:
        return Examples(rows.items)
    usable = {row.id: row for row in rows if row.id not in out}
    first = [usable.pop(item) for item in planned if item in usable]
    return Examples((*first, *usable.values()))


def _identity(pool: Examples) -> Iterator[list[str]]:
    """Yield what a stage over these rows depends on; the order of rows carries no meaning."""
    return ([row.id, row.content_hash] for row in sorted(pool, key=attrgetter("id")))


def _refuse_lost_rows(directory: RunDir, pool: Examples, planned: Sequence[str]) -> None:
    if not planned:
        return
    before: dict[str, str] = directory.whole_json("pool.json", "check", {})
    now = {example.id: example.content_hash for example in pool}
    lost = [item for item in planned if item not in now or before.get(item, now[item]) != now[item]]
    if lost:
        raise UsageError(
            f"{len(lost)} of the {len(planned)} rows that this run has labels for are gone or changed, the first "
            f"{lost[0]!r}; a run can be extended by rows, not cut. Use another --out"
        )


def _refuse_other_teacher(work: Work) -> None:
    before = work.directory.read_json(TEACHER, sealed=True)
    if before is None:
        return
    described = dict(work.teacher.describe())
    if before != described:
        changed = ", ".join(sorted(name for name in {*before, *described} if before.get(name) != described.get(name)))
        raise UsageError(
            f"the labels of this run were made by another teacher: {changed} differ (are the model's files the same?). "
            "Use another --out"
        )


def language_model(teacher: Teacher | RowTeacher, wish: str = "--encoder lm") -> CausalLM:
    """Return the teacher's language model. Raises UsageError, naming the wish, where it has none."""
    lm = getattr(teacher, "lm", None) or getattr(getattr(teacher, "reader", None), "lm", None)
    if not isinstance(lm, CausalLM):
        raise _no_language_model(teacher, wish)
    return lm


def has_language_model(teacher: Teacher | RowTeacher) -> bool:
    """Tell whether `language_model` would look for one; nothing is loaded."""
    return not {"lm", "reader"}.isdisjoint(dir(teacher))


def _no_language_model(teacher: Teacher | RowTeacher, wish: str) -> UsageError:
    return UsageError(f"{wish} needs a teacher with a language model; {teacher.name} has none")
