"""Rows one by one: where they lie, how they score, which of them are near copies of others, and why each is in or out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
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


@dataclass(frozen=True)
class Scores:
    """Counts of chosen and dropped rows between edges of scores, their means, and how many rows have no score."""

    edges: list[float]
    chosen: list[int]
    dropped: list[int]
    mean: dict[str, float | None]
    without: int


@dataclass(frozen=True)
class NearCopy:
    """A dropped row and the chosen row that is nearly the same text."""

    cosine: float
    dropped: str
    chosen: str
    dropped_text: str
    chosen_text: str


@dataclass(frozen=True)
class NearCopies:
    """How many of the dropped rows that were compared have a chosen row at a cosine of at least the threshold."""

    threshold: float
    rows: int
    compared: int
    of: int
    examples: list[NearCopy]


@dataclass(frozen=True)
class PoolMap:
    """Places of the sampled rows on the first two principal components, and the share of variance that these show."""

    x: list[float]
    y: list[float]
    variance: float


@dataclass(frozen=True)
class Row:
    """A row as the page lists it. serves: target, utility, whether that is a label, of those served best; None = unknown."""

    id: str
    source: str
    prompt: str
    response: str
    selected: bool
    rank: int | None
    score: float | None
    gain: float | None
    reason: str
    serves: list[list[Any]] | None

    def to_json(self) -> dict[str, Any]:
        """Return the row as it is stored; without what was not looked at."""
        return {name: value for name, value in asdict(self).items() if name != "serves" or value is not None}


def scores(run: FinishedRun) -> Scores:
    """Count chosen and dropped rows by score."""
    values = {
        kind: np.array([c.score for c in run.choices.values() if c.selected == of and c.score is not None], float)
        for kind, of in (("chosen", True), ("dropped", False))
    }
    both = np.concatenate(list(values.values()))
    both = both[np.isfinite(both)]
    without = len(run.choices) - len(both)
    if not len(both):
        return Scores([], [], [], {}, without)
    edges = np.histogram_bin_edges(both, BINS)
    counts = {kind: np.histogram(of, edges)[0].tolist() for kind, of in values.items()}
    mean = {kind: float(of.mean()) if len(of) else None for kind, of in values.items()}
    return Scores(edges.tolist(), counts["chosen"], counts["dropped"], mean, without)


def near_copies(run: FinishedRun, sample: Sample) -> NearCopies:
    """Compare dropped with chosen rows by the cosine of embeddings; examples are the closest."""
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
    examples = [NearCopy(cosine, a, b, sample.text(a), sample.text(b)) for cosine, a, b in near[:8]]
    return NearCopies(NEAR, len(near), len(looked), len(run.dropped), examples)


def plane(run: FinishedRun, sample: Sample) -> PoolMap:
    """Return the map of the sampled rows; its axes are fitted on a sample of all rows."""
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
    return PoolMap(points[:, 0].tolist(), points[:, 1].tolist(), shown)


def listed(run: FinishedRun, sample: Sample, most: int = MOST_ROWS) -> list[Row]:
    """Return the sampled rows; the first few hundred with the targets they serve best."""
    serves = served_by(run, sample.ids[:MOST_EXPLAINED], best=3)
    found = []
    for at, item in enumerate(sample.ids[:most]):
        choice = run.choices[item]
        found.append(
            Row(
                id=item,
                source=choice.source,
                prompt=sample.text(item),
                response=sample.response(item),
                selected=choice.selected,
                rank=choice.rank,
                score=choice.score,
                gain=choice.gain if choice.selected else choice.would_add,
                reason=cut(choice.reason, REASON_BYTES),
                serves=[[one.target, one.utility, one.known] for one in serves[at]] if at < len(serves) else None,
            )
        )
    return found
