"""Coverage as rows are chosen, of this selection and of its controls, and what stays uncovered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nncift.core.arrays import Floats
from nncift.core.seeds import generator
from nncift.runs.explain import BLOCK, Cover
from nncift.runs.finished import FinishedRun
from nncift.runs.report.samples import Sample, words
from nncift.selection.controls import CONTROLS, longest_ids, random_ids, stratified_ids

POINTS = 60
DRAWS = 5
DENSE_ROWS = 8000
"""Above this, a selection by similarities would hold more than 0.5 GB; these are left out, and the page says so."""
REGIONS = 12


@dataclass(frozen=True)
class Knee:
    """Where a curve of coverage lies furthest above the straight line between its ends."""

    rows: int
    value: float


@dataclass(frozen=True)
class Coverage:
    """Curves by selection over the same numbers of chosen rows. left_out: controls whose similarities do not fit in memory."""

    rows: list[int]
    pool: int
    targets: int
    of_targets: int
    curves: Mapping[str, list[float]]
    left_out: list[str]
    knee: Knee | None


@dataclass(frozen=True)
class ServedTarget:
    """A target, the utility of the best chosen row for it, and which that is."""

    target: str
    utility: float | None
    by: str | None
    text: str


@dataclass(frozen=True)
class Region:
    """Rows that are alike: how many, how many of them are chosen, mean coverage, typical words."""

    rows: int
    share: float
    selected: int
    selected_share: float
    coverage: float | None
    words: list[str]
    example: str


@dataclass(frozen=True)
class Uncovered:
    """The targets that the selection serves worst, and regions of the pool, found among so many rows, least chosen first.

    centres: of the regions, `(n, dim)`; a row is of the region whose centre is nearest.
    """

    among: int = 0
    worst: Sequence[ServedTarget] = ()
    regions: Sequence[Region] = ()
    centres: Sequence[Sequence[float]] = ()


def curves(run: FinishedRun, targets: Sequence[str]) -> Coverage:
    """Return the mean utility of the best chosen row per target, as rows are chosen in rank order; random is a mean of draws.

    For a pointwise teacher, the mean score of the rows chosen so far.
    """
    k = len(run.chosen)
    places = np.unique(np.round(np.geomspace(1, k, POINTS)).astype(int)) if k else np.zeros(0, int)
    made = {"selected": _curve(run, targets, run.chosen, places), **_controls(run, targets, places)}
    knee = _knee(places, made["selected"])
    return Coverage(
        rows=places.tolist(),
        pool=len(run.choices),
        targets=len(targets),
        of_targets=len(run.target_ids),
        curves={name: values.tolist() for name, values in made.items()},
        left_out=[] if len(run.choices) <= DENSE_ROWS or run.pointwise else list(run.similarities.names),
        knee=None if knee is None else Knee(int(places[knee]), float(made["selected"][knee])),
    )


def _controls(
    run: FinishedRun, targets: Sequence[str], places: npt.NDArray[np.int_]
) -> dict[str, npt.NDArray[np.float64]]:
    ids, k, seed = run.rows.ids, len(run.chosen), run.settings.seed
    orders = {
        "random": [random_ids(ids, k, seed + draw) for draw in range(DRAWS)],
        "stratified": [stratified_ids(ids, run.rows.column("source", ids), k, seed)],
        "longest": [longest_ids(ids, run.rows.column("response_chars", ids), k)],
    }
    if len(ids) <= DENSE_ROWS and not run.pointwise:
        orders |= {name: [run.similar_ids(name, k)] for name in run.similarities.names}
    return {
        name: np.mean([_curve(run, targets, order, places) for order in orders[name]], axis=0)
        for name in CONTROLS
        if name in orders
    }


def _curve(
    run: FinishedRun, targets: Sequence[str], order: Sequence[str], places: npt.NDArray[np.int_]
) -> npt.NDArray[np.float64]:
    if run.pointwise:
        scores = np.array([run.choices[name].score or np.nan for name in order], float)
        means = np.nancumsum(scores) / np.maximum(np.cumsum(np.isfinite(scores)), 1)
        return np.asarray(means[places - 1], np.float64)
    best = np.full(len(targets), -np.inf, np.float32)
    means = np.full(len(order), np.nan)
    step = max(1, BLOCK // max(1, len(targets)))
    for start in range(0, len(order), step):
        values = np.nan_to_num(run.block(targets, order[start : start + step])[0], nan=-np.inf)
        values = np.maximum(np.maximum.accumulate(values, axis=1), best[:, None])
        best = values[:, -1]
        served = np.isfinite(values)
        total = np.where(served, values, 0).sum(axis=0, dtype=np.float64)
        means[start : start + values.shape[1]] = total / np.maximum(served.sum(axis=0), 1)
    return means[places - 1]


def _knee(places: npt.NDArray[np.int_], values: npt.NDArray[np.float64]) -> int | None:
    if len(places) < 3 or not np.isfinite(values).all() or values[-1] <= values[0]:
        return None
    x = (places - places[0]) / (places[-1] - places[0])
    y = (values - values[0]) / (values[-1] - values[0])
    return int(np.argmax(y - x))


def uncovered(run: FinishedRun, served: Cover, sample: Sample, ids: Sequence[str]) -> Uncovered:
    """Return what the selection serves worst. ids: rows to find regions among, all or an unbiased sample."""
    order = np.argsort(np.nan_to_num(served.best, nan=-np.inf), kind="stable")[:8]
    worst = [
        ServedTarget(
            served.targets[at],
            None if np.isnan(served.best[at]) else float(served.best[at]),
            served.holder[at] if served.holder else None,
            sample.text(served.targets[at]),
        )
        for at in order
    ]
    found, centres = _regions(run, served, sample, ids)
    return Uncovered(len(ids), worst, found, centres)


def _regions(
    run: FinishedRun, served: Cover, sample: Sample, ids: Sequence[str]
) -> tuple[list[Region], list[list[float]]]:
    """Return regions by k-means on embeddings, least chosen first, and their centres."""
    count = min(REGIONS, len(ids) // 10)
    if count < 2:
        return [], []
    vectors = run.vectors(ids)
    region, centres = _k_means(vectors, count, generator(run.settings.seed, "report", "regions"))
    best = dict(zip(served.targets, served.best.tolist(), strict=True))
    everywhere = Counter(word for name in ids for word in set(words(sample.text(name))))
    found = []
    for number in range(count):
        mine = [name for name, of in zip(ids, region, strict=True) if of == number]
        if not mine:
            continue
        here = Counter(word for name in mine for word in set(words(sample.text(name))))
        if not sample.texts:
            here, everywhere = Counter(run.choices[name].source for name in mine), Counter()
        typical = sorted(here, key=lambda word: (-here[word] * here[word] / (everywhere[word] or 1), word))[
            : 6 if sample.texts else 1
        ]
        covered = [best[name] for name in mine if np.isfinite(best.get(name, np.nan))]
        selected = sum(run.choices[name].selected for name in mine)
        coverage = float(np.mean(covered)) if covered else None
        share, example = len(mine) / len(ids), sample.text(mine[0])
        one = Region(len(mine), share, selected, selected / len(mine), coverage, typical, example)
        found.append((one, [round(value, 5) for value in centres[number].tolist()]))
    found.sort(key=lambda both: (both[0].selected_share, both[0].coverage or 0.0))
    return [one for one, _ in found], [centre for _, centre in found]


def _k_means(vectors: Floats, count: int, rng: np.random.Generator) -> tuple[npt.NDArray[np.int64], Floats]:
    """Return the region of each unit vector and the regions' centres, by Lloyd's rounds on cosine from k-means++ starts."""
    centres = vectors[[int(rng.integers(len(vectors)))]]
    for _ in range(count - 1):
        far = np.clip(1 - (vectors @ centres.T).max(axis=1), 0, None) ** 2 + 1e-12
        centres = np.vstack([centres, vectors[int(rng.choice(len(vectors), p=far / far.sum()))]])
    region = (vectors @ centres.T).argmax(axis=1)
    for _ in range(15):
        for number in range(count):
            if (region == number).any():
                mean = vectors[region == number].mean(axis=0)
                centres[number] = mean / max(float(np.linalg.norm(mean)), 1e-12)
        region = (vectors @ centres.T).argmax(axis=1)
    return np.asarray(region, np.int64), centres
