"""Rows one by one: where they lie, how they score, which of them are near copies of others, and why each is in or out."""

from __future__ import annotations

from typing import Any

import numpy as np

from nncift.core.seeds import shuffled
from nncift.runs.explain import served_by
from nncift.runs.finished import FinishedRun, Floats
from nncift.runs.report.samples import MOST_ROWS, Sample, cut

BINS = 24
NEAR = 0.95
MOST_COMPARED = 5000
PCA_ROWS = 4000
REASON_BYTES = 420
MOST_EXPLAINED = 300


def scores(run: FinishedRun) -> dict[str, Any]:
    """Return counts of chosen and dropped rows by score, and their means; rows without a score are counted apart."""
    values = {
        kind: np.array([c.score for c in run.choices.values() if c.selected == of and c.score is not None], float)
        for kind, of in (("chosen", True), ("dropped", False))
    }
    both = np.concatenate(list(values.values()))
    both = both[np.isfinite(both)]
    without = len(run.choices) - len(both)
    if not len(both):
        return {"edges": [], "chosen": [], "dropped": [], "mean": {}, "without": without}
    edges = np.histogram_bin_edges(both, BINS)
    return {
        "edges": edges.tolist(),
        **{kind: np.histogram(of, edges)[0].tolist() for kind, of in values.items()},
        "mean": {kind: float(of.mean()) if len(of) else None for kind, of in values.items()},
        "without": without,
    }


def near_copies(run: FinishedRun, sample: Sample) -> dict[str, Any]:
    """Return how many dropped rows have a chosen row that is nearly the same text (cosine of embeddings), the closest first."""
    seed = run.settings.seed
    looked = shuffled(run.dropped, seed, "report", "copies")[:MOST_COMPARED]
    against = shuffled(run.chosen, seed, "report", "copies")[:MOST_COMPARED]
    pairs: list[tuple[float, str, str]] = []
    if looked and against:
        theirs = run.vectors(against)
        for start in range(0, len(looked), 512):
            ids = looked[start : start + 512]
            cosine = run.vectors(ids) @ theirs.T
            at = cosine.argmax(axis=1)
            pairs += [(float(cosine[k, at[k]]), item, against[at[k]]) for k, item in enumerate(ids)]
    near = sorted((pair for pair in pairs if pair[0] >= NEAR), key=lambda pair: (-pair[0], pair[1]))
    return {
        "threshold": NEAR,
        "rows": len(near),
        "compared": len(looked),
        "of": len(run.dropped),
        "examples": [
            {"cosine": cosine, "dropped": a, "chosen": b, "dropped_text": sample.text(a), "chosen_text": sample.text(b)}
            for cosine, a, b in near[:8]
        ],
    }


def plane(run: FinishedRun, sample: Sample) -> dict[str, Any]:
    """Return the first two principal components of the embeddings, fitted on a sample, and the share of variance they show."""
    fitted = shuffled(run.rows.ids, run.settings.seed, "report", "plane")[:PCA_ROWS]
    vectors = run.vectors(fitted).astype(np.float64)
    mean = vectors.mean(axis=0)
    spread = np.cov((vectors - mean).T)
    values, axes = np.linalg.eigh(np.atleast_2d(spread))
    two = axes[:, ::-1][:, :2]
    # An axis has no sign of its own: the largest entry is made positive, so that a map looks alike each time.
    two = two * np.sign(two[np.abs(two).argmax(axis=0), range(two.shape[1])])
    points: Floats = ((run.vectors(sample.ids) - mean) @ two).astype(np.float32)
    if points.shape[1] < 2:
        points = np.hstack([points, np.zeros((len(points), 1), np.float32)])
    total = float(values.sum())
    shown = float(values[::-1][:2].sum() / total) if total > 0 else 0.0
    return {"x": points[:, 0].tolist(), "y": points[:, 1].tolist(), "variance": shown}


def listed(run: FinishedRun, sample: Sample, most: int = MOST_ROWS) -> list[dict[str, Any]]:
    """Return the sampled rows with text, place, reason and, for the first few hundred, the targets they serve best."""
    summary: list[dict[str, Any]] = []
    serves = served_by(run, sample.ids[:MOST_EXPLAINED], best=3)
    for at, item in enumerate(sample.ids[:most]):
        choice = run.choices[item]
        summary.append(
            {
                "id": item,
                "source": choice.source,
                "prompt": sample.text(item),
                "response": sample.response(item),
                "selected": choice.selected,
                "rank": choice.rank,
                "score": choice.score,
                "gain": choice.gain if choice.selected else choice.would_add,
                "reason": cut(choice.reason, REASON_BYTES),
            }
        )
        if at < len(serves):
            summary[-1]["serves"] = [[one["target"], one["utility"], one["known"]] for one in serves[at]]
    return summary
