"""Selection skill on held-out items: how well what a predictor selects serves them, by the teacher's own labels.

Validation and test pairs are whole blocks of items that no student was trained on. On such a block facility location can be
run on predictions and valued by labels, as on the whole matrix, only smaller: it tells coarse mistakes, not those among near
neighbours, of which a few dozen rows have none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nncift.pairs import LabelledPairs
from nncift.seeds import generator

Array = npt.NDArray[np.float64]

RESAMPLES = 60
KEPT = 2 / 3
"""Share of a block's items in a resample, drawn without replacement: near-duplicates from drawing twice would fake skill."""

DRAWS = 20
SMALLEST = 6
MOST = 3
"""A third of the sources is selected at most."""


@dataclass(frozen=True)
class HeldOutSkill:
    """Skill of a predictor on held-out blocks: 0 is random, 1 what the labels themselves select.

    skill: mean over resamples. error: its standard error over items (delete-d jackknife). resampled: `(n_resamples,)`.
    """

    skill: float
    error: float
    resampled: Array

    def against(self, other: HeldOutSkill) -> tuple[float, float]:
        """Return this skill less another on the same resamples, and the standard error of the difference."""
        return _summary(self.resampled - other.resampled)


def held_out_skill(
    blocks: Sequence[LabelledPairs], predictions: Mapping[str, Sequence[npt.ArrayLike]], seed: int
) -> dict[str, HeldOutSkill]:
    """Return the skill of every predictor over some blocks; empty where no block is large enough to say anything.

    predictions: by name, `(n_pairs,)` for every block.
    """
    total: dict[str, Array] = {name: np.zeros(RESAMPLES) for name in predictions}
    best = np.zeros(RESAMPLES)
    for number, pairs in enumerate(blocks):
        targets, t = np.unique(pairs.target, return_inverse=True)
        sources, s = np.unique(pairs.source, return_inverse=True)
        if min(len(targets), len(sources)) < SMALLEST:
            continue
        table = _table(t, s, pairs.value, (len(targets), len(sources)))
        guesses = {name: _table(t, s, np.asarray(of[number]), table.shape) for name, of in predictions.items()}
        place = {pairs.target_ids[code]: row for row, code in enumerate(targets)}
        twin = np.array([place.get(pairs.source_ids[code], -1) for code in sources])
        random = generator(seed, "held-out skill", str(number))
        for draw in range(RESAMPLES):
            rows, columns = _drawn(len(targets), twin, random)
            truth = table[np.ix_(rows, columns)]
            if np.isnan(truth).all():
                # A draw that meets no label says nothing: it is left out with those where nothing can be gained.
                best[draw] = np.nan
                continue
            chance = _chance(truth, random)
            best[draw] += float((_values(truth, truth) - chance).sum())
            for name, guess in guesses.items():
                total[name][draw] += float((_values(truth, guess[np.ix_(rows, columns)]) - chance).sum())
    usable = best > 0
    if usable.sum() < RESAMPLES / 2:
        return {}
    found = {}
    for name, gained in total.items():
        resampled = gained[usable] / best[usable]
        found[name] = HeldOutSkill(*_summary(resampled), resampled)
    return found


def _summary(resampled: Array) -> tuple[float, float]:
    # Each resample leaves out d of n items: the jackknife's variance is (n - d) / d of that of the resamples.
    return float(resampled.mean()), float(np.sqrt(KEPT / (1 - KEPT)) * resampled.std(ddof=1))


def _table(
    t: npt.NDArray[np.intp], s: npt.NDArray[np.intp], values: npt.NDArray[np.floating], shape: tuple[int, ...]
) -> Array:
    table = np.full(shape, np.nan)
    table[t, s] = values
    return table


def _drawn(
    targets: int, twin: npt.NDArray[np.intp], random: np.random.Generator
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Draw items; one that is target and source is in or out on both axes."""
    inside = np.zeros(targets, bool)
    inside[random.permutation(targets)[: round(KEPT * targets)]] = True
    alone = np.flatnonzero(twin < 0)
    columns = np.zeros(len(twin), bool)
    columns[random.permutation(alone)[: round(KEPT * len(alone))]] = True
    columns[twin >= 0] = inside[twin[twin >= 0]]
    return np.flatnonzero(inside), np.flatnonzero(columns)


def _values(truth: Array, guess: Array) -> Array:
    """Return the value under the truth of the first 1, 2, ... sources that greedy facility location takes by the guess."""
    low = np.nanmin(truth)
    seen = np.where(np.isnan(truth), low, truth) - low
    # What has no label has no prediction that counts either: both are masked alike.
    sim = np.where(np.isnan(truth), np.nan, guess)
    floor = np.nanmin(sim)
    sim = np.where(np.isnan(sim), floor, sim) - floor
    best, served, values = np.zeros(len(sim)), np.zeros(len(sim)), []
    left = np.ones(sim.shape[1], bool)
    for _ in range(max(1, sim.shape[1] // MOST)):
        gain = np.maximum(sim - best[:, None], 0).sum(axis=0)
        pick = int(np.argmax(np.where(left, gain, -1)))
        left[pick] = False
        np.maximum(best, sim[:, pick], out=best)
        np.maximum(served, seen[:, pick], out=served)
        values.append(served.sum())
    return np.array(values)


def _chance(truth: Array, random: np.random.Generator) -> Array:
    low = np.nanmin(truth)
    seen = np.where(np.isnan(truth), low, truth) - low
    most = max(1, truth.shape[1] // MOST)
    drawn = [
        np.maximum.accumulate(seen[:, random.permutation(truth.shape[1])[:most]], axis=1).sum(axis=0)
        for _ in range(DRAWS)
    ]
    return np.asarray(np.mean(drawn, axis=0))
