"""What a run would cost, before anything is spent: `nncift run --dry-run`.

Passes are counted from the plan, tokens too where the teacher knows them; seconds are extrapolated from a few passes that are
really made. An encoder of its own is not loaded for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nncift.config import RunSettings
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
from nncift.models.encoders import Encoder, SentenceEncoder, create
from nncift.models.probe import Probe
from nncift.stages.allowance import Allowance, Passes, allow
from nncift.stages.check import check_labelled, prepare_all
from nncift.stages.label_rounds import label_budgets
from nncift.stages.request import Request
from nncift.stages.timing import embedding_seconds, pair_rate, probe_seconds, rates_of, row_rate
from nncift.storage.ledger import ModelCost
from nncift.teachers import RowTeacher, Teacher
from nncift.teachers.abilities import (
    CountsTokens,
    chunk_passes,
    language_model,
    notes_of,
    pass_weight,
    row_passes,
    warm_up_cost,
)

HIDDEN = 100


@dataclass(frozen=True)
class Cost:
    """Passes of a model, tokens through it and seconds; None where they are not known."""

    passes: int
    tokens: float | None
    seconds: float | None

    def __add__(self, other: Cost) -> Cost:
        def both(one: float | None, two: float | None) -> float | None:
            return None if one is None or two is None else one + two

        return Cost(self.passes + other.passes, both(self.tokens, other.tokens), both(self.seconds, other.seconds))

    def part(self, passes: int) -> Cost:
        """Return so many of the passes, with their share of tokens and seconds."""
        share = passes / self.passes if self.passes else 0.0
        return Cost(passes, *(None if value is None else share * value for value in (self.tokens, self.seconds)))

    def to_json(self) -> dict[str, Any]:
        """Return the figures as they are printed."""
        return {
            "passes": self.passes,
            "tokens": None if self.tokens is None else round(self.tokens),
            "seconds": None if self.seconds is None else round(self.seconds, 2),
        }


def estimate(request: Request) -> dict[str, Any]:
    """Return passes, cost, tokens, seconds and bytes of a run, beside those of the full teacher and of training.

    Makes a few passes to time them, and writes nothing.
    """
    settings, teacher, pool, target = request.settings, request.teacher, request.pool, request.target
    found = prepare_all(teacher, pool, target)
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
    allowance = allow(
        settings,
        label_budgets(settings, axes),
        Passes.of(settings, axes, teacher, len(others)),
        lambda: rates_of(settings, axes, teacher, encoder, len(others)),
    )
    # Where labels may grow, the price is that of the last round.
    most = allowance.rounds[-1]
    plan = _plan(most, settings.seed, axes, teacher)
    label, full = cost(plan, teacher, axes.rows, settings.seed)
    read = Examples((*axes.rows, *others))
    probe = _probe(settings, axes, teacher, read) if allowance.features == "probe" else Cost(0, 0.0, 0.0)
    embed = _embedding(settings, axes, encoder, len(read))
    own = label + probe + (embed if settings.encoder == "lm" else Cost(0, 0.0, embed.seconds or 0.0))
    spent = ModelCost(label.passes, pass_weight(teacher), own.passes - label.passes, full.passes, len(sources))
    learn = label.part(_learning(plan, teacher))
    return {
        "pool": len(sources),
        "rejected": len(pool.rejected) + len(refused),
        "holdout": len(request.holdout or ()),
        "selected": budget,
        "labels": describe(plan) if isinstance(plan, LabelPlan) else describe_rows(plan),
        "labels_at_most": str(most),
        "learn": learn.to_json(),
        "measure": label.part(label.passes - learn.passes).to_json(),
        "label": label.to_json(),
        "probe": probe.to_json(),
        "embed": {"rows": len(read), **embed.to_json()},
        "total": own.to_json(),
        "full_teacher": full.to_json(),
        **{name: value for name, value in spent.to_json().items() if not name.endswith("_passes")},
        "bytes": _bytes(plan, axes, teacher, encoder),
        "notes": _notes(allowance, plan, teacher, len(sources)),
        "note": teacher.describe().get("note"),
    }


def cost(plan: LabelPlan | RowPlan, teacher: Teacher | RowTeacher, rows: Examples, seed: int = 0) -> tuple[Cost, Cost]:
    """Return what a fresh plan costs with a teacher that knows `rows`, and what the full teacher costs.

    A teacher that labels pairs labels a few chunks for it, one that labels rows measures a few, on its model as it is: a warm-up
    is not done for an estimate. Its tokens are taken to cost what those of the rows do, since both are forward and backward.
    Raises UsageError where the plan is for the other kind of teacher.
    """
    if isinstance(teacher, RowTeacher) != isinstance(plan, RowPlan):
        raise UsageError(f"the plan does not fit the teacher {teacher.name}: one labels rows, the other pairs")
    if isinstance(plan, RowPlan) and isinstance(teacher, RowTeacher):
        return _cost_by_row(plan, teacher, rows, seed)
    return _cost_by_pair(plan, teacher, rows, seed)  # type: ignore[arg-type]


def _cost_by_pair(plan: LabelPlan, teacher: Teacher, rows: Examples, seed: int) -> tuple[Cost, Cost]:
    targets = [len(chunk.positions) for chunk in plan.chunks_of(0)]
    rate, full = pair_rate(rows, teacher, seed), plan.full_passes(relative=teacher.relative)
    each, chunks = chunk_passes(teacher), len(targets)
    planned = Cost(sum(targets) + each * chunks, *rate.of(chunks, sum(targets)))
    sources = len(plan.source_ids)
    return planned, Cost(full + each * sources, *rate.of(sources, plan.full_passes(relative=False)))


def _cost_by_row(plan: RowPlan, teacher: RowTeacher, rows: Examples, seed: int) -> tuple[Cost, Cost]:
    rate, once = row_rate(rows, plan.source_ids, teacher, seed), warm_up_cost(teacher)
    found = []
    for ids in (plan.measured, plan.full):
        tokens = float(teacher.tokens_of(sorted(ids))) if isinstance(teacher, CountsTokens) else rate.tokens * len(ids)
        before = once.tokens * rate.seconds / max(rate.tokens, 1.0)
        passes = row_passes(teacher) * len(ids) + once.passes
        found.append(Cost(passes, tokens + once.tokens, rate.seconds * len(ids) + before))
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


def _probe(settings: RunSettings, axes: Axes, teacher: Teacher | RowTeacher, rows: Examples) -> Cost:
    """Return the cost of asking the model once about every row, none of them cached."""
    probe = Probe(language_model(teacher, "--features probe"), settings.template)
    tokens = sum(probe.tokens(row) for row in rows)
    return Cost(len(rows), float(tokens), probe_seconds(settings, axes, teacher) * len(rows))


def _embedding(settings: RunSettings, axes: Axes, encoder: Encoder, rows: int) -> Cost:
    """Return the cost of embedding every row, none of them cached; its time only where the encoder need not be loaded for it."""
    if isinstance(encoder, SentenceEncoder):
        return Cost(rows, None, None)
    return Cost(rows, None, embedding_seconds(axes.rows, encoder, settings.seed) * rows)


def _bytes(plan: LabelPlan | RowPlan, axes: Axes, teacher: Teacher | RowTeacher, encoder: Encoder) -> Mapping[str, int]:
    """Return bytes on disk of labels, vectors and projected targets, and in memory of the matrix and its copy."""
    dim = encoder.dim if isinstance(encoder, SentenceEncoder) else int(encoder.describe()["dim"])
    if isinstance(plan, LabelPlan):
        labels = len(plan.entries) * (4 + 4 + 1 + 4 + 4 + 1) + plan.chunks * 33
    else:
        labels = len(plan.measured) * (LabelFormat.of(teacher).row_bytes if isinstance(teacher, RowTeacher) else 4)
    return {
        "labels": labels,
        "vectors": len(axes.rows) * dim * 4,
        "student": len(axes.target_ids) * HIDDEN * 4 + (2 * dim * HIDDEN + 2 * HIDDEN + 1) * 4,
        "matrix_in_memory": 2 * 4 * len(axes.target_ids) * len(axes.sources),
    }
