"""Fidelity: how well the student predicts the teacher, per quadrant, beside its baselines (method.md 2).

q1: target and source seen in training; q2: target unseen; q3: source unseen; q4: both unseen, the number that matters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from nncift.core.arrays import Doubles
from nncift.core.pairs import LabelledPairs
from nncift.core.result_types import OPTIONAL, Record
from nncift.core.seeds import generator
from nncift.errors import UsageError
from nncift.evaluation.bootstrap import MIN_ITEMS, has_enough_items, item_weights, percentile_interval
from nncift.evaluation.gate import GateRecord
from nncift.evaluation.intervals import PairInterval
from nncift.evaluation.metrics import (
    MIN_PAIRS,
    Ranking,
    mse,
    number,
    r2,
    rank_correlation,
    spearman,
    spearman_by_target,
    topk_overlap,
)
from nncift.evaluation.verdicts import Difference, verdict

QUADRANTS = ("q1", "q2", "q3", "q4")
Quadrants = Mapping[str, LabelledPairs]
"""Quadrant name to its labelled pairs, missing values already removed. An absent quadrant counts as empty."""

Interval = tuple[float, float] | None

STUDENT = "student"
RIVALS = ("cosine", "additive", "mean")
"""Baselines that a student has to beat to be worth its labels: free similarity, no interaction, a constant."""

POINTS, BINS = 800, 8
"""Held-out pairs that are kept to be drawn, and groups of them by prediction."""

LARGEST = float(np.finfo(np.float32).max)
"""Labels and predictions are of float32."""

MAX_INTERVAL_PAIRS = 20_000
"""Larger quadrants give their intervals from a random subset of this many pairs. The number of items decides how wide
an interval is, so little is lost, and that little makes it wider, never narrower."""


@dataclass(frozen=True)
class Measures(Record):
    """What one predictor reaches in one quadrant; None where a number is undefined. Intervals are 95 % over items."""

    mse: float | None
    mse_interval: Interval
    r2: float | None
    r2_interval: Interval
    spearman: float | None
    spearman_interval: Interval
    spearman_by_target: float | None
    topk_overlap: float | None
    pairs: int
    targets: int
    sources: int
    interval_pairs: int


@dataclass(frozen=True)
class Fidelity(Record):
    """The student's measures per quadrant, those of each baseline, and on q4 what lies between them.

    absent: quadrants that do not exist (a pointwise teacher has neither q2 nor q3), of which nothing is said.
    """

    student: dict[str, Measures]
    baselines: dict[str, dict[str, Measures]]
    differences: dict[str, dict[str, Difference]]
    resamples: int
    absent: tuple[str, ...] = ()

    def verdicts(self) -> list[str]:
        """Return plain sentences about what is wrong or unknown; an empty list means that the student earned its place.

        Compared on q4 with free cosine similarity, the additive baseline and the training mean, in Spearman and in R^2.
        """
        measured = [name for name in QUADRANTS if name not in self.absent]
        sentences = [self._too_small(name) for name in measured if _is_small(self.student[name])]
        if not _is_small(self.student["q4"]):
            rivals = [name for name in RIVALS if name in self.differences]
            found = [verdict(name, self.differences[name][key], key) for name in rivals for key in ("spearman", "r2")]
            sentences += [sentence for sentence in found if sentence is not None]
        return sentences

    def _too_small(self, quadrant: str) -> str:
        """Return what a quadrant of too few pairs leaves unknown."""
        measures = self.student[quadrant]
        # Where no target is set apart, what nobody has seen is a source.
        meaning = _MEANING["q3" if quadrant == "q4" and self.absent else quadrant]
        consequence = "; whether the student beats its baselines on new rows is unknown" if quadrant == "q4" else ""
        if not measures.pairs:
            return f"No pair of {quadrant} ({meaning}) has a label, so nothing is known there{consequence}."
        return (
            f"{quadrant} ({meaning}) has {measures.pairs} labelled pairs of {measures.targets} targets and "
            f"{measures.sources} sources: too few for an interval, which takes {MIN_ITEMS} of each{consequence}."
        )


@dataclass(frozen=True)
class Bin(Record):
    """Means of held-out pairs whose predictions are alike."""

    predicted: float
    teacher: float
    pairs: int


@dataclass(frozen=True)
class HeldOutPairs(Record):
    """Labels of pairs of unseen items beside what a student predicted that had not learned from them.

    points: predicted and labelled values of a sample. slope, intercept: of the least-squares line through all of them, 1 and 0
    where the student is calibrated; None where it predicts one value. bins: means, by predictions.
    """

    pairs: int
    points: tuple[tuple[float, float], ...]
    slope: float | None
    intercept: float | None
    bins: tuple[Bin, ...]

    def __post_init__(self) -> None:
        """Raise ValueError for what `of` makes of no pairs: a file may have been written by anybody."""
        drawn = (*self.points, *((one.predicted, one.teacher) for one in self.bins))
        if len(self.points) > min(POINTS, self.pairs) or len(self.bins) > BINS:
            raise ValueError(f"{len(self.points)} points and {len(self.bins)} bins of {self.pairs} pairs")
        if sum(one.pairs for one in self.bins) != self.pairs or any(one.pairs < 1 for one in self.bins):
            raise ValueError(f"the bins do not hold the {self.pairs} pairs")
        if any(abs(value) > LARGEST for both in drawn for value in both):
            raise ValueError(f"a value is larger than {LARGEST:.3g}")

    @classmethod
    def of(cls, label: npt.ArrayLike, predicted: npt.ArrayLike, seed: int) -> HeldOutPairs | None:
        """Compare `(n_pairs,)` labels and predictions; None below three pairs. seed: draws the sample."""
        x, y = np.asarray(predicted, np.float64), np.asarray(label, np.float64)
        if len(x) < 3:
            return None
        spread = float(((x - x.mean()) ** 2).sum())
        slope = float(((x - x.mean()) * (y - y.mean())).sum() / spread) if spread > 0 else None
        edges = np.quantile(x, np.linspace(0, 1, BINS + 1))
        at = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, BINS - 1)
        shown = np.arange(len(x))
        if len(x) > POINTS:
            shown = np.sort(generator(seed, "fidelity", "points").choice(len(x), POINTS, replace=False))
        return cls(
            len(x),
            tuple((float(f"{x[k]:.6g}"), float(f"{y[k]:.6g}")) for k in shown),
            slope,
            None if slope is None else float(y.mean() - slope * x.mean()),
            tuple(
                Bin(float(x[at == b].mean()), float(y[at == b].mean()), int((at == b).sum()))
                for b in range(BINS)
                if (at == b).any()
            ),
        )


@dataclass(frozen=True)
class FidelityReport(Record):
    """What `fidelity.json` holds: figures by quadrant, baselines, what lies between them, and what the gate found.

    folds: 1 = items that the plan set apart. interval: says what the interval of a new row's score rests on. course: of the
    student's training. growth: of labels in rounds, which has a file of its own. held_out: pairs of unseen items.
    """

    fidelity: Mapping[str, Measures]
    baselines: Mapping[str, Mapping[str, Measures]]
    differences: Mapping[str, Mapping[str, Difference]]
    verdicts: tuple[str, ...]
    resamples: int
    train_mean: float
    folds: int
    interval: str
    pair_interval: PairInterval
    gate: GateRecord
    parameters: int
    course: Mapping[str, Any]
    growth: tuple[LabelRound, ...] = field(default=(), metadata=OPTIONAL)
    held_out: HeldOutPairs | None = field(default=None, metadata=OPTIONAL)

    @property
    def unseen(self) -> Measures:
        """What the student reaches on pairs of unseen items."""
        return self.fidelity["q4"]


@dataclass(frozen=True)
class LabelRound(Record):
    """What a round of labels reached: labels to learn from, and figures on unseen items; None where undefined."""

    labels: int
    spearman: float | None
    r2: float | None
    skill: float | None


def measure(
    quadrants: Quadrants,
    predictions: Mapping[str, Mapping[str, npt.ArrayLike]],
    train_mean: float,
    seed: int,
    resamples: int = 500,
) -> Fidelity:
    """Measure the student and its baselines on the same pairs and the same resamples of their items.

    predictions: predictor name (one of them "student") to quadrant name to `(n_pairs,)` predictions. train_mean: mean
    of the training labels. Raises UsageError for unknown quadrants, a missing student, wrong lengths and values that
    are not finite.
    """
    if STUDENT not in predictions:
        raise UsageError(f'predictions of {sorted(predictions)} given; one of them must be named "{STUDENT}"')
    unknown = sorted(set(quadrants) - set(QUADRANTS))
    if unknown:
        raise UsageError(f"unknown quadrants {unknown}; the quadrants are {', '.join(QUADRANTS)}")
    measures: dict[str, dict[str, Measures]] = {name: {} for name in predictions}
    differences: dict[str, dict[str, Difference]] = {}
    for quadrant in QUADRANTS:
        pairs = quadrants.get(quadrant, _NO_PAIRS)
        guesses = {name: _checked(pairs, name, quadrant, of.get(quadrant)) for name, of in predictions.items()}
        subset = _interval_pairs(pairs, generator(seed, "fidelity", quadrant, "pairs"))
        resampled = _resample(pairs, guesses, train_mean, subset, generator(seed, "fidelity", quadrant), resamples)
        for name, guess in guesses.items():
            measures[name][quadrant] = _measures(pairs, guess, train_mean, resampled[name], len(subset))
        if quadrant == "q4":
            differences = _differences({name: of["q4"] for name, of in measures.items()}, resampled)
    # Without both, it is a pointwise teacher's; one alone that is missing has no labels, and that is reported.
    absent = () if {"q2", "q3"} & set(quadrants) else ("q2", "q3")
    return Fidelity(measures.pop(STUDENT), measures, differences, resamples, absent)


_METRICS = ("mse", "r2", "spearman")
_Resampled = dict[str, dict[str, Doubles]]
"""Predictor to metric to its `(n_resamples,)` values; the same column is the same resample for every predictor."""

_NO_PAIRS = LabelledPairs((), (), np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.float32))


def _checked(pairs: LabelledPairs, name: str, quadrant: str, given: npt.ArrayLike | None) -> Doubles:
    """Return predictions as float64 after comparing them with the pairs they belong to."""
    guess = np.asarray([] if given is None else given, dtype=np.float64)
    if guess.shape != pairs.value.shape:
        raise UsageError(
            f'predictions of "{name}" on {quadrant} have shape {guess.shape}; '
            f"expected one value for each of its {len(pairs)} pairs"
        )
    for what, values in ((f'predictions of "{name}"', guess), ("labels", pairs.value)):
        if not np.isfinite(values).all():
            raise UsageError(
                f"{np.count_nonzero(~np.isfinite(values))} of {len(values)} {what} on {quadrant} are not finite; "
                "remove missing values before measuring"
            )
    return guess


def _interval_pairs(pairs: LabelledPairs, rng: np.random.Generator) -> npt.NDArray[np.intp]:
    """Return the positions of the pairs that intervals are computed from; none where the items are too few."""
    if len(pairs) < MIN_PAIRS or not has_enough_items(pairs):
        return np.empty(0, dtype=np.intp)
    if len(pairs) <= MAX_INTERVAL_PAIRS:
        return np.arange(len(pairs))
    return np.sort(rng.choice(len(pairs), MAX_INTERVAL_PAIRS, replace=False))


def _resample(
    pairs: LabelledPairs,
    guesses: Mapping[str, Doubles],
    train_mean: float,
    subset: npt.NDArray[np.intp],
    rng: np.random.Generator,
    resamples: int,
) -> _Resampled:
    """Return the metrics of every predictor under the same resamples; empty arrays where there is no interval."""
    if not len(subset):
        return {name: {metric: np.empty(0) for metric in _METRICS} for name in guesses}
    pairs = pairs.take(subset)
    label = pairs.value.astype(np.float64)
    guesses = {name: guess[subset] for name, guess in guesses.items()}
    ranking, rankings = Ranking.of(label), {name: Ranking.of(guess) for name, guess in guesses.items()}
    blocks: dict[str, dict[str, list[Doubles]]] = {name: {metric: [] for metric in _METRICS} for name in guesses}
    for weights in item_weights(pairs, rng, resamples):
        ranks = ranking.centred(weights)
        for name, guess in guesses.items():
            blocks[name]["mse"].append(mse(label, guess, weights))
            blocks[name]["r2"].append(r2(label, guess, train_mean, weights))
            blocks[name]["spearman"].append(rank_correlation(ranks, rankings[name].centred(weights), weights))
    return {name: {metric: np.concatenate(parts) for metric, parts in of.items()} for name, of in blocks.items()}


def _measures(
    pairs: LabelledPairs, guess: Doubles, train_mean: float, resampled: Mapping[str, Doubles], interval_pairs: int
) -> Measures:
    label, once = pairs.value.astype(np.float64), np.ones(len(pairs))
    return Measures(
        mse=number(mse(label, guess, once)),
        mse_interval=percentile_interval(resampled["mse"]),
        r2=number(r2(label, guess, train_mean, once)),
        r2_interval=percentile_interval(resampled["r2"]),
        spearman=number(spearman(label, guess, once)),
        spearman_interval=percentile_interval(resampled["spearman"]),
        spearman_by_target=spearman_by_target(pairs, guess),
        topk_overlap=topk_overlap(pairs, guess),
        pairs=len(pairs),
        targets=len(np.unique(pairs.target)),
        sources=len(np.unique(pairs.source)),
        interval_pairs=interval_pairs,
    )


def _differences(measures: Mapping[str, Measures], resampled: _Resampled) -> dict[str, dict[str, Difference]]:
    """Return student minus baseline in Spearman and R^2, paired: both sides of a difference see the same resample."""
    return {
        name: {
            "spearman": Difference.between(
                measures[STUDENT].spearman,
                of.spearman,
                percentile_interval(resampled[STUDENT]["spearman"] - resampled[name]["spearman"]),
            ),
            "r2": Difference.between(
                measures[STUDENT].r2,
                of.r2,
                percentile_interval(resampled[STUDENT]["r2"] - resampled[name]["r2"]),
            ),
        }
        for name, of in measures.items()
        if name != STUDENT
    }


def _is_small(measures: Measures) -> bool:
    return measures.interval_pairs == 0


_MEANING = {
    "q1": "both items seen in training",
    "q2": "target unseen",
    "q3": "source unseen",
    "q4": "both items unseen",
}
