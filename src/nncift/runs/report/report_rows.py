"""Rows one by one: where they lie, how they score, which of them are near copies of others, and why each is in or out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import numpy as np

from nncift.core.arrays import Floats
from nncift.core.result_types import JsonObject
from nncift.core.seeds import shuffled
from nncift.runs.explain import served_by
from nncift.runs.finished import Choice, FinishedRun
from nncift.runs.report.samples import Sample, cut

BINS = 24
NEAR = 0.95
MOST_COMPARED = 5000
PCA_ROWS = 4000
LEAST_UMAP, UMAP_NEIGHBOURS = 100, 15
"""Rows from which on neighbourhoods are mapped, and how many other rows make one."""
REASON_BYTES = 420
MOST_EXPLAINED = 300
LENGTH_BINS = 16
LEAST_TEXT, MOST_TEXT, ALL_TEXT = 60, 2000, 12_000_000
"""Bytes of a text that are listed, and of all together."""


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
    """Places of the sampled rows in two dimensions.

    method: `pca`, the first two principal components; or `umap`, with the release of umap-learn. variance: the share that the
    components show, None for umap.
    """

    x: list[float]
    y: list[float]
    method: str
    variance: float | None


@dataclass(frozen=True)
class Lengths:
    """Shares of rows by length in characters between edges, of the pool and of the selection; tokens of both, where counted."""

    edges: list[int]
    pool: list[int]
    selected: list[int]
    pool_tokens: int | None
    selected_tokens: int | None


@dataclass(frozen=True)
class Row:
    """A row as it is shown. gain: of a dropped row, what it would still add. serves: its best targets, None where unknown.

    stability: share of refits in which it is selected. kind: chosen, filler (taken by score), dropped or removed. length: in
    characters. region: its number on the map, None without regions. issues: kinds of `label_issues`.
    """

    id: str
    source: str
    prompt: str
    response: str
    selected: bool
    rank: int | None
    score: float | None
    gain: float | None
    stability: float | None
    kind: str
    length: int
    region: int | None
    issues: tuple[str, ...]
    reason: str
    serves: list[list[Any]] | None

    def to_json(self) -> JsonObject:
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
    low, high = float(both.min()), float(both.max())
    largest = max(abs(low), abs(high))
    # Between values that are nearly the same there is no room for bins.
    room = 0.0 if high - low > 1e-9 * largest else max(0.5, 1e-6 * largest)
    edges = np.histogram_bin_edges(both, BINS, (low - room, high + room))
    counts = {kind: np.histogram(of, edges)[0].tolist() for kind, of in values.items()}
    mean = {kind: float(of.mean()) if len(of) else None for kind, of in values.items()}
    return Scores(edges.tolist(), counts["chosen"], counts["dropped"], mean, without)


def lengths(run: FinishedRun) -> Lengths:
    """Count rows by length, in bins that grow by a constant factor."""
    ids = run.rows.ids
    sizes = np.array(run.rows.column("prompt_chars", ids)) + np.array(run.rows.column("response_chars", ids))
    tokens = run.rows.tokens
    chosen = run.rows.places(run.chosen)
    inside = np.zeros(len(ids), bool)
    inside[chosen] = True
    if not len(sizes):
        return Lengths([], [], [], None, None)
    low, high = max(1, int(sizes.min())), max(2, int(sizes.max()) + 1)
    edges = np.unique(np.round(np.geomspace(low, high, LENGTH_BINS + 1)).astype(int))
    edges[0] = min(int(edges[0]), int(sizes.min()))
    return Lengths(
        edges=edges.tolist(),
        pool=np.histogram(sizes, edges)[0].tolist(),
        selected=np.histogram(sizes[inside], edges)[0].tolist(),
        pool_tokens=None if tokens is None else sum(tokens),
        selected_tokens=None if tokens is None else sum(tokens[at] for at in chosen),
    )


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
    """Return the map of the sampled rows: by UMAP where umap-learn is installed and rows are not few, else by components.

    Principal components are fitted on a sample of all rows; UMAP starts from them, so that both maps lie alike.
    """
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
    method = map_method()
    # Rows that are all alike have no neighbours to show.
    if method == "pca" or len(points) < LEAST_UMAP or shown == 0:
        return PoolMap(points[:, 0].tolist(), points[:, 1].tolist(), "pca", shown)
    points = _umap(run.vectors(sample.ids), points, run.settings.seed)
    return PoolMap(points[:, 0].tolist(), points[:, 1].tolist(), method, None)


def map_method() -> str:
    """Return how maps are made here: `umap` and the release of umap-learn where it is installed, else `pca`."""
    try:
        return f"umap {metadata.version('umap-learn')}"
    except metadata.PackageNotFoundError:
        return "pca"


def _umap(vectors: Floats, start: Floats, seed: int) -> Floats:
    """Return places `(n, 2)` by UMAP on cosines; the same each time on one machine: one thread, a seed, a start that is given."""
    from umap.umap_ import UMAP

    spread = start / max(float(np.abs(start).max()), 1e-12) * 10
    made = UMAP(metric="cosine", init=spread, random_state=seed % 2**32, n_jobs=1, n_neighbors=UMAP_NEIGHBOURS)
    return np.asarray(made.fit_transform(vectors), np.float32)


def listed(
    run: FinishedRun,
    sample: Sample,
    ids: Sequence[str],
    centres: Sequence[Sequence[float]] = (),
    issues: Mapping[str, tuple[str, ...]] | None = None,
) -> list[Row]:
    """Return rows; the first few hundred with the targets they serve best. centres: of regions. issues: by id."""
    serves = served_by(run, ids[:MOST_EXPLAINED], best=3)
    regions = region_of(run, ids, centres)
    sizes = np.array(run.rows.column("prompt_chars", ids)) + np.array(run.rows.column("response_chars", ids))
    # Enough to read a row whole in a small pool; of many rows only the beginnings would fit on a page.
    most = max(LEAST_TEXT, min(MOST_TEXT, ALL_TEXT // (2 * max(1, len(ids)))))
    objective = str(run.summary.get("selection", {}).get("objective") or run.settings.objective)
    found = []
    for at, item in enumerate(ids):
        choice = run.choices[item]
        found.append(
            Row(
                id=item,
                source=choice.source,
                prompt=sample.text(item, most),
                response=sample.response(item, most),
                selected=choice.selected,
                rank=choice.rank,
                score=choice.score,
                gain=choice.gain if choice.selected else choice.would_add,
                stability=choice.stability,
                kind=kind_of(choice, objective),
                length=int(sizes[at]),
                region=regions[at],
                issues=(issues or {}).get(item, ()),
                reason=cut(choice.reason, REASON_BYTES),
                serves=[[one.target, one.utility, one.known] for one in serves[at]] if at < len(serves) else None,
            )
        )
    return found


def kind_of(choice: Choice, objective: str) -> str:
    """Return whether a row was chosen, taken by score after nothing was left to add, dropped, or removed beforehand."""
    if choice.selected:
        # Where targets take rows in turn, a row that adds nothing to the mean is still the best one left of its target.
        nothing_left = objective != "rr" and choice.gain is not None and choice.gain <= 0
        return "filler" if nothing_left else "chosen"
    return "removed" if choice.reason.startswith("Removed") else "dropped"


def region_of(run: FinishedRun, ids: Sequence[str], centres: Sequence[Sequence[float]]) -> list[int | None]:
    """Return the number of each row's region; None where there are none."""
    if not centres:
        return [None] * len(ids)
    middle = np.array(centres, np.float32).T
    found: list[int | None] = []
    for start in range(0, len(ids), 4096):
        found += (run.vectors(ids[start : start + 4096]) @ middle).argmax(axis=1).tolist()
    return found
