"""Selection skill on labelled items: how well what a predictor selects serves them, by the teacher's own labels.

A block of items whose utilities are all known stands for the pool, and the run's own selection is repeated on it: as large a
share of its pairs is taken to be known as in the pool, the rest is predicted by a student that has not seen them, the run's
objective chooses rows, and their value under the labels is set between that of random rows and that of the labels' own selection
(docs/method.md, section 2). A block is smaller than the pool, and skill falls with the number of chosen rows: `rows_like`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from nncift.core.pairs import UtilityMatrix
from nncift.core.seeds import generator
from nncift.selection import Problem, pose
from nncift.selection.coverage import Coverage

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Codes = npt.NDArray[np.intp]

RESAMPLES, RESAMPLED_BLOCKS = 40, 12
"""Resamples of items, and blocks at most that each is about: more would take longer and tell the error little better."""

KEPT = 2 / 3
"""Share of a block's items in a resample, drawn without replacement: near-duplicates from drawing twice would fake skill."""

NINETY = 1.8
"""Standard errors on either side of a 90 % interval: a normal one has 1.645, and the error is itself an estimate."""

BEYOND = 0.09
"""Standard error of taking labelled rows for the pool, which drawing the labelled ones anew cannot show.

Chosen on the runs of docs/results/fidelity.md, LESS by SmolLM2 and gradients of a toy, so that intervals hold as they say.
"""

DENSE = 0.25
"""Share of the rows from which on skill depends on the share of chosen rows alone, and no longer on their number."""

RANDOM_DRAWS = 12
LEAST_ITEMS, LEAST_PAIRS = 5, 100
"""Items of each axis and pairs below which nothing is measured."""

JUDGED = {"fl": "fl", "topk": "topk", "fl2mi": "fl2mi", "rr": "rr", "max": "max", "flmi": "fl", "flcg": "fl"}
"""Objective that stands for each on a block: the others need what a second set does for rows that have no label."""


@dataclass(frozen=True)
class Block:
    """Items that stand for a pool in one repetition of the selection; several blocks may share items.

    truth: `(n_targets, n_sources)`, NaN where there is no label. targets, sources: codes of the items, the same in all blocks.
    same: the place among the targets of the item that each source is, -1 where it is none. predictions: by predictor, values of
    all pairs. known: pairs that the selection sees the labels of. pool: rows of the pool that the block stands for.
    """

    truth: Array
    targets: Codes
    sources: Codes
    same: Codes
    predictions: Mapping[str, Array]
    known: Mask
    pool: int

    def seen_by(self, name: str) -> Array:
        """Return what selection sees: the label where it is known, else what is predicted."""
        return self._seen[name]

    @cached_property
    def _seen(self) -> Mapping[str, Array]:
        found = {name: np.where(self.known, self.truth, of) for name, of in self.predictions.items()}
        for of in found.values():
            # What has no label has no prediction that counts either: both are masked alike.
            of[~np.isfinite(self.truth)] = np.nan
        return found


@dataclass(frozen=True)
class Extent:
    """How much all blocks together hold. targets, sources: different items; pairs: different labelled pairs."""

    targets: int
    sources: int
    pairs: int

    @classmethod
    def of(cls, blocks: Sequence[Block]) -> Extent:
        """Count items and pairs, those of several blocks once."""
        if not blocks:
            return cls(0, 0, 0)
        width = 1 + max(int(block.sources.max(initial=0)) for block in blocks)
        keys = []
        for block in blocks:
            t, s = np.nonzero(np.isfinite(block.truth))
            keys.append(block.targets[t].astype(np.int64) * width + block.sources[s])
        targets, sources = (
            len(np.unique(np.concatenate([getattr(block, axis) for block in blocks])))
            for axis in ("targets", "sources")
        )
        return cls(targets, sources, len(np.unique(np.concatenate(keys))))

    @property
    def is_enough(self) -> bool:
        """Whether something can be measured."""
        if self.targets == 1:
            return self.sources >= 2 * LEAST_ITEMS
        return min(self.targets, self.sources) >= LEAST_ITEMS and self.pairs >= LEAST_PAIRS


@dataclass(frozen=True)
class SelectionSkill:
    """Skill of a predictor on labelled blocks: 0 is random, 1 what the labels themselves select.

    skill: over all blocks. error: its standard error over items (delete-d jackknife), and beyond them (`BEYOND`). resampled:
    `(n_resamples,)`.
    """

    skill: float
    error: float
    resampled: Array

    def against(self, other: SelectionSkill) -> tuple[float, float]:
        """Return this skill less another, and the standard error of the difference on the same resamples."""
        return self.skill - other.skill, _error(self.resampled - other.resampled)

    @property
    def interval(self) -> tuple[float, float]:
        """An interval of 90 %, never above 1."""
        return self.skill - NINETY * self.error, min(1.0, self.skill + NINETY * self.error)


def selection_skill(
    blocks: Sequence[Block], names: Sequence[str], *, objective: str, share: float, seed: int
) -> dict[str, SelectionSkill]:
    """Return the skill of every predictor over some blocks; empty where they are too small to say anything.

    names: of the predictors. share: of the rows that the run selects.
    """
    if not names or not Extent.of(blocks).is_enough:
        return {}
    judged = JUDGED.get(objective, "fl")
    random = generator(seed, "selection skill")
    whole = _gained([_Part.whole(block) for block in blocks], names, judged, share, random)
    fewer = blocks[:RESAMPLED_BLOCKS]
    gained = [_gained(_some(fewer, random), names, judged, share, random) for _ in range(RESAMPLES)]
    most = np.array([of[""] for of in gained])
    kept = most > 0
    if whole[""] <= 0 or kept.sum() < RESAMPLES / 2:
        return {}
    found = {}
    for name in names:
        resampled = np.array([of[name] for of in gained])[kept] / most[kept]
        found[name] = SelectionSkill(whole[name] / whole[""], float(np.hypot(_error(resampled), BEYOND)), resampled)
    return found


def rows_like(share: float, rows: int, pool: int) -> int:
    """Return how many of a block's rows to choose, so that skill is about that of a share of the pool.

    As few rows are as easy to choose from few as from many, while a large share is easier to choose from few: where little of
    a pool is chosen, skill goes by the number of chosen rows, from `DENSE` on by their share. Between them `1/k - 1/(DENSE rows)`
    is the same for both sizes.
    """
    if share < DENSE:
        weight = min(1.0, rows / pool)
        share = 1.0 / (weight / share + (1.0 - weight) / DENSE)
    return max(1, round(share * rows))


def _error(resampled: Array) -> float:
    """Return the standard error of a skill from its resamples."""
    if len(resampled) < 2:
        return 0.0
    # Each resample leaves out d of n items: the jackknife's variance is (n - d) / d of that of the resamples.
    return float(np.sqrt(KEPT / (1 - KEPT) * resampled.var(ddof=1)))


@dataclass(frozen=True)
class _Part:
    """A part of a block. targets, sources: places of its items."""

    block: Block
    targets: npt.NDArray[np.intp]
    sources: npt.NDArray[np.intp]

    @classmethod
    def whole(cls, block: Block) -> _Part:
        return cls(block, *(np.arange(size) for size in block.truth.shape))

    def of(self, values: Array) -> Array:
        return values[np.ix_(self.targets, self.sources)]

    @property
    def target_ids(self) -> tuple[str, ...]:
        """Ids of the targets: those of the sources that they are, so that objectives see the same rows on both axes."""
        twin = {int(target): source for source, target in enumerate(self.block.same) if target >= 0}
        return tuple(f"{twin[t]:06d}" if t in twin else f"t{t:06d}" for t in self.targets.tolist())


def _some(blocks: Sequence[Block], random: np.random.Generator) -> list[_Part]:
    """Draw items, and return what is left of every block; an item on both axes is drawn once."""
    sources = _drawn([block.sources for block in blocks], random)
    targets = _drawn([block.targets for block in blocks], random)
    found = []
    for block in blocks:
        kept_sources = sources[block.sources]
        kept_targets = targets[block.targets] if len(block.targets) > 1 else np.ones(1, bool)
        shared = block.same >= 0
        kept_targets[block.same[shared]] = kept_sources[shared]
        found.append(_Part(block, np.flatnonzero(kept_targets), np.flatnonzero(kept_sources)))
    return found


def _drawn(codes: Sequence[Codes], random: np.random.Generator) -> Mask:
    """Return by code whether it is drawn."""
    every = np.unique(np.concatenate(codes))
    found = np.zeros(1 + int(every[-1]), bool)
    found[every[random.permutation(len(every))[: round(KEPT * len(every))]]] = True
    return found


def _gained(
    parts: Sequence[_Part], names: Sequence[str], objective: str, share: float, random: np.random.Generator
) -> dict[str, float]:
    """Return what each predictor's selections are worth above random ones, summed; under "" what the labels' own are."""
    total = dict.fromkeys(["", *names], 0.0)
    for part in parts:
        truth = part.of(part.block.truth)
        # A part that meets no label says nothing.
        if not np.isfinite(truth).any():
            continue
        ids = tuple(f"{place:06d}" for place in part.sources)
        across = part.target_ids
        problem = _posed(across, ids, truth, objective)
        k = rows_like(share, len(ids), part.block.pool)
        drawn = np.array([random.permutation(len(ids))[:k] for _ in range(RANDOM_DRAWS)])
        chance = float(np.mean(_values(problem, ids, drawn)))
        total[""] += float(_values(problem, ids, _chosen(problem, ids, k))[0]) - chance
        for name in names:
            chosen = _chosen(_posed(across, ids, part.of(part.block.seen_by(name)), objective), ids, k)
            total[name] += float(_values(problem, ids, chosen)[0]) - chance
    return total


def _values(problem: Problem, ids: tuple[str, ...], sets: Codes) -> Array:
    """Return the objective's value of each set, a row of `(n_sets, k)` places among the ids, which are in order."""
    if isinstance(problem, Coverage):
        return problem.values(sets)
    return np.array([problem.value([ids[place] for place in some]) for some in sets.tolist()])


def _chosen(problem: Problem, ids: tuple[str, ...], k: int) -> Codes:
    """Return the places of what is chosen, as one set."""
    # An account of every row would take most of the time.
    if isinstance(problem, Coverage):
        return problem.order(k).sources[None, :]
    place = {item: at for at, item in enumerate(ids)}
    return np.array([[place[item] for item in problem.choose(k, 0).ids]], np.intp)


def _posed(targets: tuple[str, ...], sources: tuple[str, ...], values: Array, objective: str) -> Problem:
    return pose(UtilityMatrix(targets, sources, np.asfortranarray(values, np.float32)), objective)
