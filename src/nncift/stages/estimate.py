"""What a run would cost, before anything is spent: `nncift run --dry-run`.

Passes and tokens are counted from the plan, tokens where teacher and encoder can tell them; seconds, of the processor and of the
clock, are those of a few passes that are really made. An encoder of its own is not loaded for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from nncift.config import RunSettings
from nncift.core.progress import Progress, silent
from nncift.core.result_types import JsonObject, Record
from nncift.data import Examples
from nncift.data.pool import PoolTable
from nncift.errors import UsageError
from nncift.labels import (
    BASE,
    TRAIN,
    LabelBudget,
    LabelFormat,
    LabelPlan,
    RowPlan,
    describe,
    describe_rows,
    grow,
    grow_rows,
)
from nncift.labels.sizes import too_little
from nncift.labels.store import Axes
from nncift.models.encoders import CountsTexts, Encoder, SentenceEncoder, create
from nncift.models.probe import Probe
from nncift.stages.allowance import Allowance, Passes, allow
from nncift.stages.check import check_labelled, prepare_all
from nncift.stages.label_rounds import label_budgets
from nncift.stages.request import Request
from nncift.stages.timing import Timed, Trials, pair_price, probe_pace, rates_of, row_price, text_price
from nncift.storage.ledger import ModelCost, training_cost
from nncift.teachers import RowTeacher, Teacher
from nncift.teachers.abilities import (
    CountsChunkTokens,
    CountsRowTokens,
    CountsTokens,
    HasLanguageModel,
    chunk_passes,
    language_model,
    notes_of,
    pass_weight,
    row_passes,
    warm_up_cost,
)

HIDDEN = 100
COUNTED = 256
"""Texts whose tokens are counted at once."""


@dataclass(frozen=True)
class Cost:
    """Passes of a model, tokens through it, and seconds of the clock and of the processor; None where they are not known."""

    passes: int
    tokens: float | None
    seconds: float | None
    processor: float | None

    def __add__(self, other: Cost) -> Cost:
        def both(one: float | None, two: float | None) -> float | None:
            return None if one is None or two is None else one + two

        others = (other.tokens, other.seconds, other.processor)
        return Cost(self.passes + other.passes, *map(both, (self.tokens, self.seconds, self.processor), others))

    def part(self, passes: int) -> Cost:
        """Return so many of the passes, with their share of tokens and seconds."""
        share = passes / self.passes if self.passes else 0.0
        values = (self.tokens, self.seconds, self.processor)
        return Cost(passes, *(None if value is None else share * value for value in values))

    def to_json(self) -> JsonObject:
        """Return the figures as they are printed."""
        return {
            "passes": self.passes,
            "tokens": None if self.tokens is None else round(self.tokens),
            "seconds": None if self.seconds is None else round(self.seconds, 2),
            "processor_seconds": None if self.processor is None else round(self.processor, 2),
        }


NOTHING = Cost(0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class EmbeddingCost(Cost):
    """The cost of embedding so many rows."""

    rows: int

    def to_json(self) -> JsonObject:
        """Return the rows, and the figures as they are printed."""
        return {"rows": self.rows, **super().to_json()}


@dataclass(frozen=True)
class Bytes(Record):
    """Bytes on disk of labels, vectors and projected targets, and in memory of the matrix and its copy."""

    labels: int
    vectors: int
    student: int
    matrix_in_memory: int


@dataclass(frozen=True)
class Estimate(Record):
    """What a run would cost, by parts; passes beside those of the full teacher, and all beside training on every row.

    pool, rejected, holdout: rows. selected: None where the budget is of tokens. labels: by split, those of the last round.
    total: of the teacher's model. timed: the trials behind the seconds. note: of the teacher.
    """

    pool: int
    rejected: int
    holdout: int
    selected: int | None
    labels: Mapping[str, int]
    labels_at_most: str
    learn: Cost
    measure: Cost
    label: Cost
    probe: Cost
    embed: EmbeddingCost
    total: Cost
    full_teacher: Cost
    timed: Timed
    cost: int
    full_teacher_cost: int
    training_cost: int
    saving: float
    share_of_training: float
    bytes: Bytes
    notes: tuple[str, ...]
    note: str | None


def estimate(request: Request, progress: Progress = silent) -> Estimate:
    """Return passes, cost, tokens, seconds and bytes of a run, beside those of the full teacher and of training.

    Makes a few passes to time them, and writes nothing.
    """
    settings, teacher, pool, target = request.settings, request.teacher, request.pool, request.target
    found = prepare_all(teacher, pool, target, progress)
    refused = {(rejection.source, rejection.line) for rejection in found}
    sources = Examples(tuple(row for row in pool if (row.source, row.line) not in refused), pool.rejected)
    targets = None
    if target is not None:
        targets = Examples(tuple(row for row in target if (row.source, row.line) not in refused))
    check_labelled(teacher.name, (pool, sources), (target, targets), found)
    axes = Axes(sources, targets, pointwise=teacher.kind == "pointwise")
    budget = request.constraints.check(PoolTable.of(sources))
    encoder = request.encoder or create(
        settings.encoder, device=settings.device, load_lm=lambda: language_model(teacher)
    )
    others = tuple({row.content_hash: row for row in request.existing or ()}.values())
    trials = Trials()
    allowance = allow(
        settings,
        label_budgets(settings, axes),
        Passes.of(settings, axes, teacher, len(others)),
        lambda: rates_of(settings, axes, teacher, encoder, len(others), trials),
    )
    # Where labels may grow, the price is that of the last round.
    most = allowance.rounds[-1]
    plan = _plan(most, settings.seed, axes, teacher)
    label, full = cost(plan, teacher, axes.rows, settings.seed, trials, progress)
    read = Examples((*axes.rows, *others))
    probe = (
        _probe(settings, teacher, read, len(axes.rows), trials, progress) if allowance.features == "probe" else NOTHING
    )
    embed = _embedding(settings, axes, encoder, read, trials, progress)
    own = label + probe + (embed if settings.encoder == "lm" else replace(embed, passes=0, tokens=0.0))
    spent = ModelCost(label.passes, pass_weight(teacher), own.passes - label.passes, full.passes, len(sources))
    learn = label.part(_learning(plan, teacher))
    device = teacher.language_model().device.type if isinstance(teacher, HasLanguageModel) else "cpu"
    return Estimate(
        pool=len(sources),
        rejected=len(pool.rejected) + len(refused),
        holdout=len(request.holdout or ()),
        selected=budget,
        labels=describe(plan) if isinstance(plan, LabelPlan) else describe_rows(plan),
        labels_at_most=str(most),
        learn=learn,
        measure=label.part(label.passes - learn.passes),
        label=label,
        probe=probe,
        embed=EmbeddingCost(embed.passes, embed.tokens, embed.seconds, embed.processor, len(read)),
        total=own,
        full_teacher=full,
        timed=trials.timed(device),
        cost=spent.cost,
        full_teacher_cost=spent.full_cost,
        training_cost=training_cost(len(sources)),
        saving=spent.saving,
        share_of_training=spent.share_of_training,
        bytes=_bytes(plan, axes, teacher, encoder),
        notes=(*(() if allowance.whole else request.notes), *_notes(allowance, plan, teacher, len(sources))),
        note=teacher.describe().get("note"),
    )


def cost(
    plan: LabelPlan | RowPlan,
    teacher: Teacher | RowTeacher,
    rows: Examples,
    seed: int = 0,
    trials: Trials | None = None,
    progress: Progress = silent,
) -> tuple[Cost, Cost]:
    """Return what a fresh plan costs with a teacher that knows `rows`, and what the full teacher costs.

    Tokens are counted from the plan where the teacher can tell them; seconds are those of a few chunks or rows, on its model as
    it is: of a warm-up one step is tried, which changes nothing. Raises UsageError where the plan is for the other kind of
    teacher.
    """
    if isinstance(teacher, RowTeacher) != isinstance(plan, RowPlan):
        raise UsageError(f"the plan does not fit the teacher {teacher.name}: one labels rows, the other pairs")
    trials = trials or Trials()
    if isinstance(plan, RowPlan) and isinstance(teacher, RowTeacher):
        with progress("timing a few rows", 0):
            return _cost_by_row(plan, teacher, rows, seed, trials)
    return _cost_by_pair(plan, teacher, rows, (seed, trials), progress)  # type: ignore[arg-type]


def _cost_by_pair(
    plan: LabelPlan, teacher: Teacher, rows: Examples, timing: tuple[int, Trials], progress: Progress
) -> tuple[Cost, Cost]:
    chunks, tokens = [chunk.task for chunk in plan.chunks_of(0)], None
    if isinstance(teacher, CountsChunkTokens):
        with progress("counting tokens", len(chunks)) as advance:
            tokens = 0
            for chunk in chunks:
                tokens += teacher.chunk_tokens(chunk)
                advance(1)
    with progress("timing a few pairs", 0):
        seed, trials = timing
        price = trials.price("pair", lambda: pair_price(rows, teacher, seed, trials, plan))
    passes, pairs = sum(len(chunk.targets) for chunk in chunks), plan.full_passes(relative=False)
    each, sources = chunk_passes(teacher), len(plan.source_ids)
    full = plan.full_passes(relative=teacher.relative) + each * sources
    planned = Cost(passes + each * len(chunks), *price.of(len(chunks), passes, tokens))
    return planned, Cost(full, *price.of(sources, pairs))


def _cost_by_row(plan: RowPlan, teacher: RowTeacher, rows: Examples, seed: int, trials: Trials) -> tuple[Cost, Cost]:
    price = trials.price("row", lambda: row_price(rows, plan.measured, teacher, seed, trials))
    once, found = warm_up_cost(teacher), []
    for ids in (plan.measured, plan.full):
        counted = isinstance(teacher, CountsTokens)
        tokens = float(teacher.tokens_of(sorted(ids))) if isinstance(teacher, CountsTokens) else price.tokens * len(ids)
        passes = row_passes(teacher) * len(ids) + once.passes
        times = price.pace.of(tokens if price.by_token and counted else len(ids))
        # Where the trial was of whole rows, a token of the warm-up is taken to cost what one of the rows does.
        before = price.steps.of(once.tokens if price.by_token else once.tokens / max(price.tokens, 1.0))
        seconds, processor = (one + two for one, two in zip(times, before, strict=True))
        found.append(Cost(passes, tokens + once.tokens, seconds, processor))
    return found[0], found[1]


def _plan(budget: LabelBudget, seed: int, axes: Axes, teacher: Teacher | RowTeacher) -> LabelPlan | RowPlan:
    """Return the plan of a fresh run."""
    targets, sources = axes.target_ids, axes.sources.ids
    if isinstance(teacher, RowTeacher):
        return grow_rows(None, targets, sources, budget, seed, shared=axes.shared)
    if budget.kind == "active":
        # Later rounds label as many pairs as if all were scattered; which ones only their labels can tell.
        budget = replace(budget, kind="scatter")
    return grow(None, targets, sources, budget, seed, shared=axes.shared, relative=teacher.relative)


def _learning(plan: LabelPlan | RowPlan, teacher: Teacher | RowTeacher) -> int:
    """Return the passes for what the student learns from, with targets alone and a warm-up; the others measure it."""
    if isinstance(plan, RowPlan) and isinstance(teacher, RowTeacher):
        return row_passes(teacher) * describe_rows(plan)["train_rows"] + warm_up_cost(teacher).passes
    assert isinstance(plan, LabelPlan)
    entries = plan.entries
    trained = entries.target[entries.split == TRAIN]
    return len(trained) + int(np.isin(entries.target[entries.split == BASE], trained).sum())


def _notes(allowance: Allowance, plan: LabelPlan | RowPlan, teacher: Teacher | RowTeacher, rows: int) -> list[str]:
    """Return what was cut, what the teacher has to tell, and what the plan is too small to tell."""
    if allowance.whole:
        return [*allowance.notes, *notes_of(teacher)]
    counts = describe(plan) if isinstance(plan, LabelPlan) else describe_rows(plan)
    return [*allowance.notes, *notes_of(teacher), *too_little(counts, rows, by_row=isinstance(teacher, RowTeacher))]


def _probe(
    settings: RunSettings, teacher: Teacher | RowTeacher, rows: Examples, own: int, trials: Trials, progress: Progress
) -> Cost:
    """Return the cost of asking the model once about every row, none of them cached. own: of the pool and the target set."""
    probe, tokens = Probe.of(language_model(teacher, "--features probe"), settings), 0
    with progress("counting tokens", len(rows)) as advance:
        for row in rows:
            known = teacher.row_tokens(row.id) if isinstance(teacher, CountsRowTokens) else None
            tokens += probe.tokens(row) if known is None else int(probe.tokens_of(known))
            advance(1)
    with progress("timing the probe", 0):
        pace = trials.price("probe", lambda: probe_pace(probe, rows, settings.seed, trials))
    # Rows that were trained on already are read, and rounded up, apart.
    passes = probe.passes(own) + probe.passes(len(rows) - own)
    return Cost(passes, float(tokens), *pace.of(tokens))


def _embedding(
    settings: RunSettings, axes: Axes, encoder: Encoder, rows: Examples, trials: Trials, progress: Progress
) -> Cost:
    """Return the cost of embedding every row, none of them cached; an encoder of its own is not loaded for it."""
    tokens = None
    if isinstance(encoder, CountsTexts):
        with progress("counting tokens", len(rows)) as advance:
            counts = []
            for start in range(0, len(rows), COUNTED):
                part = encoder.count(rows.texts[start : start + COUNTED])
                counts.append(None if part is None else sum(part))
                advance(min(COUNTED, len(rows) - start))
            tokens = None if None in counts else float(sum(count or 0 for count in counts))
    with progress("timing the encoder", 0):
        price = trials.price("text", lambda: text_price(axes.rows, encoder, settings.seed, settings.device))
    return Cost(len(rows), tokens, *price.of(len(rows), tokens))


def _bytes(plan: LabelPlan | RowPlan, axes: Axes, teacher: Teacher | RowTeacher, encoder: Encoder) -> Bytes:
    dim = encoder.dim if isinstance(encoder, SentenceEncoder) else int(encoder.describe()["dim"])
    if isinstance(plan, LabelPlan):
        labels = len(plan.entries) * (4 + 4 + 1 + 4 + 4 + 1) + plan.chunks * 33
    else:
        labels = len(plan.measured) * (LabelFormat.of(teacher).row_bytes if isinstance(teacher, RowTeacher) else 4)
    return Bytes(
        labels=labels,
        vectors=len(axes.rows) * dim * 4,
        student=len(axes.target_ids) * HIDDEN * 4 + (2 * dim * HIDDEN + 2 * HIDDEN + 1) * 4,
        matrix_in_memory=2 * 4 * len(axes.target_ids) * len(axes.sources),
    )
