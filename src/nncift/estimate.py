"""What a run would cost, before anything is spent: `nncift run --dry-run`.

Passes are counted from the plan. Tokens and seconds are extrapolated from a few chunks that are really labelled, small
and large, since a chunk costs a start (its example in front) and then something per target.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt

from nncift.config import RunSettings
from nncift.data import Examples
from nncift.encode import Encoder, create
from nncift.plan import LabelPlan, describe, grow
from nncift.seeds import shuffled
from nncift.select import parse_budget
from nncift.stages import language_model, refuse_impossible, wish_of
from nncift.teachers import Chunk, Teacher

TIMED_SOURCES = 4
TIMED_TARGETS = (1, 12)
TIMED_TEXTS = 16
HIDDEN = 100


def estimate(settings: RunSettings, pool: Examples, teacher: Teacher, encoder: Encoder | None = None) -> dict[str, Any]:
    """Return pairs, passes, tokens, seconds and bytes of a run on this pool, beside those of the full teacher.

    Labels a few chunks and embeds a few texts, and writes nothing.
    """
    refuse_impossible(settings, pool)
    refused = {(rejection.source, rejection.line) for rejection in teacher.prepare(pool)}
    usable = tuple(example for example in pool if (example.source, example.line) not in refused)
    pool = Examples(usable, pool.rejected)
    plan = grow(None, pool.ids, pool.ids, wish_of(settings), settings.seed, shared=True, relative=teacher.relative)
    budget = parse_budget(settings.budget, len(pool))
    targets = [len(chunk.targets) for chunk, _ in plan.generation_chunks(0)]
    cost = _cost_of_chunks(pool, teacher, settings.seed)
    full_pairs = plan.full_passes(relative=False)
    full = np.array([[1.0, full_pairs / len(pool)]] * len(pool)).sum(axis=0) @ cost
    planned = np.array([[1.0, size] for size in targets]).sum(axis=0) @ cost
    encoder = encoder or create(settings.encoder, device=settings.device, load_lm=lambda: language_model(teacher))
    passes = sum(targets)
    full_passes = plan.full_passes(relative=teacher.relative)
    return {
        "pool": len(pool),
        "rejected": len(pool.rejected) + len(refused),
        "selected": budget,
        "labels": describe(plan),
        "label": {"passes": passes, "tokens": round(float(planned[0])), "seconds": round(float(planned[1]), 2)},
        "full_teacher": {"passes": full_passes, "tokens": round(float(full[0])), "seconds": round(float(full[1]), 2)},
        "saving": 1 - passes / full_passes,
        "embed": {"rows": len(pool), "seconds": round(_embedding_seconds(pool, encoder, settings.seed), 2)},
        "bytes": _bytes(plan, len(pool), int(encoder.describe()["dim"])),
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


def _bytes(plan: LabelPlan, rows: int, dim: int) -> dict[str, int]:
    """Return bytes on disk of labels, vectors and projected targets, and in memory of the matrix and its copy."""
    return {
        "labels": len(plan.entries) * (4 + 4 + 1 + 4 + 4 + 1) + plan.chunks * 33,
        "vectors": rows * dim * 4,
        "student": rows * HIDDEN * 4 + (2 * dim * HIDDEN + 2 * HIDDEN + 1) * 4,
        "matrix_in_memory": 2 * 4 * rows * rows,
    }
