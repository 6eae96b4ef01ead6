"""Selection skill on labelled items: how well what a predictor selects serves them, by the teacher's own labels.

A block of items whose utilities are all known stands for the pool. For predictions that never saw these items, the run's own
selection is repeated on the block: as large a share of its pairs is taken to be known as in the pool, the rest is predicted,
the run's objective chooses the run's share of rows, and their value under the labels is set between that of random rows and that
of the labels' own selection (docs/method.md, section 2).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nncift.core.pairs import UtilityMatrix
from nncift.core.seeds import generator
from nncift.selection import Problem, pose

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

RESAMPLES = 60
KEPT = 2 / 3
"""Share of a block's items in a resample, drawn without replacement: near-duplicates from drawing twice would fake skill."""

WHOLE = 12
"""Draws of known and random items over whole blocks that the skill itself is the mean of."""

NINETY = 1.8
"""Standard errors on either side of a 90 % interval: a normal one has 1.645, and the error is itself an estimate."""

RANDOM_DRAWS = 20
LEAST_ITEMS, LEAST_PAIRS = 5, 100
"""Items of each axis and pairs below which nothing is measured."""

JUDGED = {"fl": "fl", "topk": "topk", "fl2mi": "fl2mi", "rr": "rr", "max": "max", "flmi": "fl", "flcg": "fl"}
"""Objective that stands for each on a block: the others need what a second set does for rows that have no label."""


@dataclass(frozen=True)
class Predictions:
    """Values `(n_targets, n_sources)` of one predictor on a block, by what it was trained without.

    unseen: both items; source_unseen and target_unseen: that item alone, None where the run knows no such pairs.
    """

    unseen: Array
    source_unseen: Array | None = None
    target_unseen: Array | None = None


@dataclass(frozen=True)
class Block:
    """Items that stand for a pool.

    truth: `(n_targets, n_sources)`, NaN where there is no label. same: the target that each source is, -1 where it is none.
    known_targets, known_sources: shares of the pool's items on each axis among which all pairs are labelled; both 0 where labels
    are scattered, known_pairs of all pairs then.
    """

    truth: Array
    same: npt.NDArray[np.intp]
    predictions: Mapping[str, Predictions]
    known_targets: float = 0.0
    known_sources: float = 0.0
    known_pairs: float = 0.0

    @property
    def pairs(self) -> int:
        """Labelled pairs."""
        return int(np.isfinite(self.truth).sum())

    @property
    def is_enough(self) -> bool:
        """Whether something can be measured on it."""
        targets, sources = self.truth.shape
        if targets == 1:
            return bool(sources >= 2 * LEAST_ITEMS)
        return bool(targets >= LEAST_ITEMS and sources >= LEAST_ITEMS and self.pairs >= LEAST_PAIRS)


@dataclass(frozen=True)
class SelectionSkill:
    """Skill of a predictor on labelled blocks: 0 is random, 1 what the labels themselves select.

    skill: over whole blocks. error: its standard error over items (delete-d jackknife). resampled: `(n_resamples, 2)`, two draws
    of what is known in each, so that the chance of that draw is no part of the error.
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
    """Return the skill of every predictor over some blocks; empty where no block is large enough to say anything.

    names: of the predictors. share: of the rows that the run selects.
    """
    usable = [block for block in blocks if block.is_enough]
    if not usable or not names:
        return {}
    judged = JUDGED.get(objective, "fl")
    random = generator(seed, "selection skill")
    whole = _gained(
        [_draw(block, None, random) for _ in range(WHOLE) for block in usable], names, judged, share, random
    )
    gained = [
        [_gained(draws, names, judged, share, random) for draws in _twice(usable, random)] for _ in range(RESAMPLES)
    ]
    most = np.array([[of[""] for of in both] for both in gained])
    kept = (most > 0).all(axis=1)
    if whole[""] <= 0 or kept.sum() < RESAMPLES / 2:
        return {}
    found = {}
    for name in names:
        resampled = np.array([[of[name] for of in both] for both in gained])[kept] / most[kept]
        found[name] = SelectionSkill(whole[name] / whole[""], _error(resampled), resampled)
    return found


def _error(resampled: Array) -> float:
    """Return the standard error of a skill from `(n_resamples, 2)` values, the draws of each of which share their items."""
    if len(resampled) < 2:
        return 0.0
    shared = float(np.cov(resampled.T)[0, 1])
    alone = float(resampled.mean(axis=1).var(ddof=1))
    # Each resample leaves out d of n items: the jackknife's variance is (n - d) / d of that of the resamples.
    return float(np.sqrt(KEPT / (1 - KEPT) * max(shared, alone / 4)))


@dataclass(frozen=True)
class _Draw:
    """A part of a block. targets, sources: places of its items; known: `(n_targets, n_sources)` pairs taken to be known."""

    block: Block
    targets: npt.NDArray[np.intp]
    sources: npt.NDArray[np.intp]
    known_target: Mask
    known_source: Mask
    known: Mask

    def truth(self) -> Array:
        return self.block.truth[np.ix_(self.targets, self.sources)]

    def seen_by(self, name: str) -> Array:
        """Return what selection sees: what is known, else what is predicted from as much as the run has."""
        of, place = self.block.predictions[name], np.ix_(self.targets, self.sources)
        found = of.unseen[place].copy()
        if of.source_unseen is not None:
            np.copyto(found, of.source_unseen[place], where=self.known_target[:, None] & ~self.known_source[None, :])
        if of.target_unseen is not None:
            np.copyto(found, of.target_unseen[place], where=~self.known_target[:, None] & self.known_source[None, :])
        truth = self.truth()
        found[self.known] = truth[self.known]
        # What has no label has no prediction that counts either: both are masked alike.
        found[~np.isfinite(truth)] = np.nan
        return found


def _twice(blocks: Sequence[Block], random: np.random.Generator) -> tuple[list[_Draw], list[_Draw]]:
    """Draw a part of every block, and twice what of it is known."""
    first = [_draw(block, KEPT, random) for block in blocks]
    return first, [_draw(of.block, None, random, (of.targets, of.sources)) for of in first]


def _draw(
    block: Block,
    share: float | None,
    random: np.random.Generator,
    places: tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]] | None = None,
) -> _Draw:
    """Draw a part of a block, all of it without a share, and what of it is known. places: the part, where it is drawn already."""
    n_targets, n_sources = block.truth.shape
    alone = n_targets == 1
    targets = np.ones(n_targets, bool) if alone else _drawn(n_targets, share, random)
    sources = _drawn(n_sources, share, random)
    shared = block.same >= 0
    if not alone:
        sources[shared] = targets[block.same[shared]]
    known_target = _drawn(n_targets, block.known_targets, random)
    known_source = _drawn(n_sources, block.known_sources, random)
    if not alone:
        known_source[shared] = known_target[block.same[shared]]
    rows, columns = places or (np.flatnonzero(targets), np.flatnonzero(sources))
    known_target, known_source = known_target[rows], known_source[columns]
    known = known_target[:, None] & known_source[None, :]
    if block.known_pairs:
        known = random.random(known.shape) < block.known_pairs
    return _Draw(block, rows, columns, known_target, known_source, known)


def _drawn(count: int, share: float | None, random: np.random.Generator) -> Mask:
    found = np.ones(count, bool)
    if share is not None:
        found[random.permutation(count)[round(share * count) :]] = False
    return found


def _gained(
    draws: Sequence[_Draw], names: Sequence[str], objective: str, share: float, random: np.random.Generator
) -> dict[str, float]:
    """Return what each predictor's selections are worth above random ones, summed; under "" what the labels' own are."""
    total = dict.fromkeys(["", *names], 0.0)
    for draw in draws:
        truth = draw.truth()
        # A draw that meets no label says nothing.
        if not np.isfinite(truth).any():
            continue
        ids = tuple(f"{place:06d}" for place in draw.sources)
        across = _target_ids(draw)
        problem = _posed(across, ids, truth, objective)
        k = max(1, round(share * len(ids)))
        chance = float(np.mean([problem.value(list(some)) for some in _random_sets(ids, k, random)]))
        total[""] += float(problem.value(list(problem.choose(k, 0).ids))) - chance
        for name in names:
            chosen = _posed(across, ids, draw.seen_by(name), objective).choose(k, 0).ids
            total[name] += float(problem.value(list(chosen))) - chance
    return total


def _target_ids(draw: _Draw) -> tuple[str, ...]:
    """Return ids of the targets: those of the sources that they are, so that objectives see the same rows on both axes."""
    twin = {int(target): int(source) for source, target in enumerate(draw.block.same) if target >= 0}
    return tuple(f"{twin[t]:06d}" if t in twin else f"t{t:06d}" for t in draw.targets.tolist())


def _posed(targets: tuple[str, ...], sources: tuple[str, ...], values: Array, objective: str) -> Problem:
    return pose(UtilityMatrix(targets, sources, np.asfortranarray(values, np.float32)), objective)


def _random_sets(ids: tuple[str, ...], k: int, random: np.random.Generator) -> Iterator[tuple[str, ...]]:
    for _ in range(RANDOM_DRAWS):
        yield tuple(ids[place] for place in random.permutation(len(ids))[:k])
