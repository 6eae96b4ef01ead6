"""What a run would cost, before anything is spent: `nncift run --dry-run`.

Passes are counted from the plan. Tokens and seconds are extrapolated from a few chunks that are really labelled, small
and large, since a chunk costs a start (its example in front) and then something per target.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from nncift.config import RunSettings
from nncift.data import Examples
from nncift.encode import Encoder, create
from nncift.errors import UsageError
from nncift.growing import rungs
from nncift.labelling import Axes
from nncift.plan import LabelPlan, describe, grow
from nncift.probe import Probe
from nncift.rows import RowPlan, grow_rows
from nncift.seeds import shuffled
from nncift.stages import language_model, named_target, prepare_all, refuse_impossible, refuse_unlabelled, wish_of
from nncift.table import Rows
from nncift.teachers import Chunk, RowTeacher, Teacher
from nncift.wishes import Wishes

TIMED_SOURCES = 4
TIMED_TARGETS = (1, 12)
TIMED_TEXTS = 16
TIMED_ROWS = 8
HIDDEN = 100


def estimate(
    settings: RunSettings,
    pool: Examples,
    teacher: Teacher | RowTeacher,
    *,
    target: Examples | None = None,
    existing: Examples | None = None,
    encoder: Encoder | None = None,
) -> dict[str, Any]:
    """Return pairs, passes, tokens, seconds and bytes of a run on this pool, beside those of the full teacher.

    Labels a few chunks and embeds a few texts, and writes nothing.
    """
    settings = refuse_impossible(settings, pool, teacher, target, existing)
    target = None if target is None else named_target(target)
    found = prepare_all(teacher, pool, target)
    refused = {(rejection.source, rejection.line) for rejection in found}
    sources = Examples(tuple(row for row in pool if (row.source, row.line) not in refused), pool.rejected)
    targets = None
    if target is not None:
        targets = Examples(tuple(row for row in target if (row.source, row.line) not in refused))
    refuse_unlabelled(teacher.name, (pool, sources), (target, targets), found)
    axes = Axes(sources, targets, pointwise=teacher.kind == "pointwise")
    budget = Wishes.read(settings).check(Rows.of(sources))
    by_row = isinstance(teacher, RowTeacher)
    # Where labels may grow, the price is that of the last round.
    most = rungs(settings, axes, by_row=by_row, have=0)[-1]
    told = _by_row(most, axes, teacher) if isinstance(teacher, RowTeacher) else _by_pair(most, axes, teacher)
    probing = _probing(settings, axes, teacher)
    encoder = encoder or create(settings.encoder, device=settings.device, load_lm=lambda: language_model(teacher))
    label, full = told["label"], told["full_teacher"]
    return {
        "pool": len(sources),
        "rejected": len(pool.rejected) + len(refused),
        "selected": budget,
        **told,
        "labels_at_most": most.labels,
        "probe": probing,
        "saving": 1 - (label["passes"] + probing["passes"]) / full["passes"] if full["passes"] else 0.0,
        "embed": {"rows": len(axes.rows), "seconds": round(_embedding_seconds(axes.rows, encoder, settings.seed), 2)},
        "bytes": _bytes(told.pop("label_bytes"), axes, int(encoder.describe()["dim"])),
        "note": teacher.describe().get("note"),
    }


@dataclass(frozen=True)
class Cost:
    """What a teacher costs: passes of its model (exact), tokens through it and seconds (extrapolated)."""

    passes: int
    tokens: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the figures as they are printed."""
        return {"passes": self.passes, "tokens": round(self.tokens), "seconds": round(self.seconds, 2)}


def cost(plan: LabelPlan | RowPlan, teacher: Teacher | RowTeacher, rows: Examples, seed: int = 0) -> tuple[Cost, Cost]:
    """Return what a fresh plan costs with a teacher that knows `rows`, and what the full teacher costs.

    A teacher that is paid by the pair labels a few chunks for it, one that is paid by the row measures a few rows, on its model
    as it is: a warm-up is not done for an estimate. Its tokens are taken to cost what those of the rows do, since both are a
    forward and a backward pass. Raises UsageError where the plan is for the other kind of teacher.
    """
    if isinstance(teacher, RowTeacher) != isinstance(plan, RowPlan):
        raise UsageError(
            f"the plan does not fit the teacher {teacher.name}: one is paid by the row, the other by the pair"
        )
    if isinstance(plan, RowPlan) and isinstance(teacher, RowTeacher):
        return _cost_by_row(plan, teacher, rows, seed)
    return _cost_by_pair(plan, teacher, rows, seed)  # type: ignore[arg-type]


def _cost_by_pair(plan: LabelPlan, teacher: Teacher, rows: Examples, seed: int) -> tuple[Cost, Cost]:
    targets = [len(chunk.targets) for chunk, _ in plan.generation_chunks(0)]
    each = _cost_of_chunks(rows, teacher, seed)
    planned = np.array([len(targets), sum(targets)], dtype=float) @ each
    full = np.array([len(plan.source_ids), plan.full_passes(relative=False)], dtype=float) @ each
    return Cost(sum(targets), *planned.tolist()), Cost(plan.full_passes(relative=teacher.relative), *full.tolist())


def _cost_by_row(plan: RowPlan, teacher: RowTeacher, rows: Examples, seed: int) -> tuple[Cost, Cost]:
    cold = getattr(teacher, "cold", None)
    timed: RowTeacher = teacher if cold is None else cold()
    checkpoints = 1 if cold is None else int(getattr(teacher, "n_checkpoints", 1))
    first, *drawn = shuffled(plan.source_ids, seed, "estimate")[: 1 + TIMED_ROWS]
    timed.prepare(rows.subset([first, *drawn]))
    timed.measure([first])
    began = time.perf_counter()
    labels = timed.measure(drawn)
    each = checkpoints * np.array([labels.passes, labels.tokens, time.perf_counter() - began]) / len(drawn)
    tokens = float(getattr(teacher, "warm_up_tokens", 0))
    once = np.array([getattr(teacher, "warm_up_passes", 0), tokens, tokens * each[2] / max(each[1], 1.0)])
    planned, full = (each * count + once for count in (len(plan.measured), plan.full_rows))
    return Cost(round(float(planned[0])), *planned[1:].tolist()), Cost(round(float(full[0])), *full[1:].tolist())


def _probing(settings: RunSettings, axes: Axes, teacher: Teacher | RowTeacher) -> dict[str, Any]:
    """Return passes and seconds of asking the model once about every row, none of them cached; zeros without a probe."""
    if settings.features != "probe":
        return {"passes": 0, "seconds": 0.0}
    probe = Probe(language_model(teacher, "--features probe"), settings.template)
    drawn = [
        axes.rows.by_id(item) for item in shuffled(axes.rows.ids, settings.seed, "estimate", "probe")[:TIMED_TEXTS]
    ]
    probe.read(drawn[:1])
    began = time.perf_counter()
    probe.read(drawn)
    each = (time.perf_counter() - began) / len(drawn)
    return {"passes": len(axes.rows), "seconds": round(each * len(axes.rows), 2)}


def _by_pair(settings: RunSettings, axes: Axes, teacher: Teacher) -> dict[str, Any]:
    """Return a plan of pairs with its cost, and the cost of every pair."""
    wish = wish_of(settings)
    if wish.kind == "active":
        # Later rounds label as many pairs as if all were scattered; which ones only their labels can tell.
        wish = replace(wish, kind="scatter")
    plan = grow(
        None, axes.target_ids, axes.sources.ids, wish, settings.seed, shared=axes.shared, relative=teacher.relative
    )
    planned, full = cost(plan, teacher, axes.rows, settings.seed)
    return {
        "labels": describe(plan),
        "label": planned.to_json(),
        "full_teacher": full.to_json(),
        "label_bytes": len(plan.entries) * (4 + 4 + 1 + 4 + 4 + 1) + plan.chunks * 33,
    }


def _by_row(settings: RunSettings, axes: Axes, teacher: RowTeacher) -> dict[str, Any]:
    """Return a plan of rows with its cost, and the cost of every row."""
    plan = grow_rows(None, axes.target_ids, axes.sources.ids, wish_of(settings), settings.seed, shared=axes.shared)
    planned, full = cost(plan, teacher, axes.sources, settings.seed)
    return {
        "labels": {"rows": len(plan.measured)},
        "label": planned.to_json(),
        "full_teacher": full.to_json(),
        "label_bytes": len(plan.measured) * teacher.width * 4,
    }


def _cost_of_chunks(pool: Examples, teacher: Teacher, seed: int) -> npt.NDArray[np.float64]:
    """Return `(2, 2)`: tokens and seconds that a chunk costs to begin, and for each of its targets."""
    drawn = shuffled(pool.ids, seed, "estimate")
    sizes, costs = [], []
    teacher.label(Chunk(-1, drawn[0], tuple(drawn[1 : 1 + TIMED_TARGETS[0]])))
    for place in range(min(TIMED_SOURCES, len(drawn))):
        for size in TIMED_TARGETS:
            others = tuple(item for item in drawn[place + 1 :] + drawn[:place] if item != drawn[place])[:size]
            began = time.perf_counter()
            labels = teacher.label(Chunk(-1, drawn[place], others))
            costs.append([labels.tokens, time.perf_counter() - began])
            sizes.append([1.0, len(others)])
    found, *_ = np.linalg.lstsq(np.array(sizes), np.array(costs), rcond=None)
    cost: npt.NDArray[np.float64] = np.maximum(found, 0.0)
    return cost


def _embedding_seconds(pool: Examples, encoder: Encoder, seed: int) -> float:
    """Return the seconds to embed all rows, none of them cached."""
    drawn = shuffled(pool.ids, seed, "estimate", "texts")[:TIMED_TEXTS]
    texts = [pool.by_id(item).text for item in drawn]
    encoder.encode(texts[:1])
    began = time.perf_counter()
    encoder.encode(texts)
    return (time.perf_counter() - began) / len(texts) * len(pool)


def _bytes(labels: int, axes: Axes, dim: int) -> dict[str, int]:
    """Return bytes on disk of labels, vectors and projected targets, and in memory of the matrix and its copy."""
    return {
        "labels": labels,
        "vectors": len(axes.rows) * dim * 4,
        "student": len(axes.target_ids) * HIDDEN * 4 + (2 * dim * HIDDEN + 2 * HIDDEN + 1) * 4,
        "matrix_in_memory": 2 * 4 * len(axes.target_ids) * len(axes.sources),
    }
