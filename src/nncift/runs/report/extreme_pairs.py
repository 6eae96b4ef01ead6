"""The pairs with the most extreme teacher values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nncift.core.pairs import LabelledPairs
from nncift.labels import SCORE
from nncift.runs.finished import FinishedRun
from nncift.runs.report.samples import Sample, cut


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
