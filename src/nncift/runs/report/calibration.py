"""Teacher against student on pairs that the student never saw, and the pairs with the most extreme teacher values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nncift.core.pairs import LabelledPairs
from nncift.core.seeds import generator
from nncift.labels import SCORE
from nncift.runs.finished import FinishedRun
from nncift.runs.report.samples import Sample, cut

POINTS = 800
BINS = 8


@dataclass(frozen=True)
class Bin:
    """Means of held-out pairs whose predictions are alike."""

    predicted: float
    teacher: float
    pairs: int


@dataclass(frozen=True)
class HeldOut:
    """Predicted and labelled values of test pairs (q4), the least-squares line through them and means by bins.

    A calibrated student has slope 1 and intercept 0. points: a sample of the pairs.
    """

    pairs: int
    points: list[tuple[float, float]]
    slope: float | None
    intercept: float | None
    bins: list[Bin]


@dataclass(frozen=True)
class LabelledPair:
    """A pair with its label and texts; target_text is empty where the teacher labels rows."""

    utility: float
    target: str
    source: str
    source_text: str
    target_text: str
    selected: bool


@dataclass(frozen=True)
class Extremes:
    """The strongest and the weakest pairs that the teacher labelled; no row occurs twice as a source."""

    strongest: list[LabelledPair]
    weakest: list[LabelledPair]


def held_out(run: FinishedRun) -> HeldOut | None:
    """Compare student and teacher on test pairs; None where fewer than three have a value."""
    pairs = run.labels["test"].present() if "test" in run.labels else None
    if pairs is None or len(pairs) < 3:
        return None
    x, y = run.predicted(pairs).astype(float), pairs.value.astype(float)
    spread = float(((x - x.mean()) ** 2).sum())
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / spread) if spread > 0 else None
    edges = np.quantile(x, np.linspace(0, 1, BINS + 1))
    at = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, BINS - 1)
    bins = [
        Bin(float(x[at == b].mean()), float(y[at == b].mean()), int((at == b).sum()))
        for b in range(BINS)
        if (at == b).any()
    ]
    shown = np.arange(len(x))
    if len(x) > POINTS:
        shown = np.sort(generator(run.settings.seed, "report", "pairs").choice(len(x), POINTS, replace=False))
    points = [(float(x[k]), float(y[k])) for k in shown]
    return HeldOut(len(x), points, slope, None if slope is None else float(y.mean() - slope * x.mean()), bins)


def extremes(run: FinishedRun, sample: Sample, most: int = 4) -> Extremes:
    """Return the pairs with the highest and the lowest labels."""
    joined: list[tuple[float, str, str]] = []
    for pairs in run.labels.values():
        joined += _ends(pairs.present())
    joined = sorted(set(joined))
    return Extremes(_shown(run, joined[::-1], most, sample), _shown(run, joined, most, sample))


def _ends(pairs: LabelledPairs, keep: int = 200) -> list[tuple[float, str, str]]:
    value, ends = pairs.value, np.arange(len(pairs))
    if len(value) > 2 * keep:
        # Of millions of pairs only the ends are sorted; of equal values the first are the lowest.
        low, high = np.partition(value, (keep - 1, len(value) - keep))[[keep - 1, len(value) - keep]]
        lowest, highest = np.flatnonzero(value <= low), np.flatnonzero(value >= high)
        lowest = lowest[np.argsort(value[lowest], kind="stable")][:keep]
        highest = highest[np.argsort(value[highest], kind="stable")][-keep:]
        ends = np.union1d(lowest, highest)
    return [(float(pairs.value[k]), pairs.target_ids[pairs.target[k]], pairs.source_ids[pairs.source[k]]) for k in ends]


def _shown(run: FinishedRun, ranked: list[tuple[float, str, str]], most: int, sample: Sample) -> list[LabelledPair]:
    found: list[LabelledPair] = []
    for value, target, source in ranked:
        if len(found) < most and all(source != one.source for one in found):
            text = "" if (target,) == SCORE else _whole(sample, target)
            selected = source in run.choices and run.choices[source].selected
            found.append(LabelledPair(value, target, source, _whole(sample, source), text, selected))
    return found


def _whole(sample: Sample, item: str) -> str:
    if not sample.texts:
        return sample.text(item)
    return cut(sample.text(item) + "  →  " + sample.response(item), 560)
