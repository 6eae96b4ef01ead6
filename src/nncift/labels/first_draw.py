"""Which training pairs are drawn: a block of u by u, or as many spread evenly over all rows and columns."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nncift.core.seeds import generator, shuffled
from nncift.labels.growth_draws import Adding
from nncift.labels.label_budget import LabelBudget
from nncift.labels.plan import TRAIN, Codes

DENSE = 0.3
"""Share of all pairs above which a scatter is drawn from the list of free pairs, since matching would get stuck."""


def block(adding: Adding, budget: LabelBudget, seed: int, rank: int) -> None:
    """Label u of the targets by u of the sources, drawn by the seed; earlier rows and columns of the block stay."""
    axes = adding.axes
    height, width = budget.sides(len(axes.target_ids), len(axes.source_ids))
    old_target, old_source = adding.pairs(TRAIN)
    sides = []
    for axis, size, old in (("target", height, old_target), ("source", width, old_source)):
        ids = getattr(axes, f"{axis}_ids")
        kept = [ids[code] for code in np.unique(old)]
        rest = shuffled(set(axes.free(axis)) - set(kept), seed, "block", axis)
        sides.append([*kept, *rest][: max(size, len(kept))])
    adding.product(sides[0], sides[1], TRAIN)


def scatter(adding: Adding, budget: LabelBudget, seed: int, rank: int) -> None:
    """Spread as many pairs as a block has over all rows and columns that are not set apart, as evenly as possible."""
    axes = adding.axes
    targets = axes.codes("target", axes.free("target"))
    sources = axes.codes("source", axes.free("source"))
    old_target, old_source = adding.pairs(TRAIN)
    masked = len(np.intersect1d(targets, sources)) if axes.shared else 0
    room = len(targets) * len(sources) - masked
    wanted = min(budget.scattered(len(axes.target_ids), len(axes.source_ids)), room) - len(old_target)
    if wanted <= 0:
        return
    random = generator(seed, "scatter", str(rank))
    if len(old_target) + wanted > DENSE * room:
        rows, columns = np.repeat(targets, len(sources)), np.tile(sources, len(targets))
        free = np.flatnonzero(~adding.taken(rows, columns))
        picked = np.sort(random.choice(free, size=wanted, replace=False))
        adding.add(rows[picked], columns[picked], TRAIN)
        return
    row = np.repeat(targets, _even_quota(np.isin(old_target, targets), old_target, targets, wanted, random))
    column = np.repeat(sources, _even_quota(np.isin(old_source, sources), old_source, sources, wanted, random))
    adding.add(*_match(adding, random.permutation(row), column, random), TRAIN)
    while lacking := wanted - (len(adding.pairs(TRAIN)[0]) - len(old_target)):
        # Few new rows cannot always catch up among themselves: what is left over goes anywhere.
        pairs = np.unique(adding.keys(random.choice(targets, 2 * lacking), random.choice(sources, 2 * lacking)))
        rows, columns = (part.astype(np.int32) for part in np.divmod(random.permutation(pairs), len(axes.source_ids)))
        free = np.flatnonzero(~adding.taken(rows, columns))[:lacking]
        adding.add(rows[free], columns[free], TRAIN)


def _even_quota(
    inside: npt.NDArray[np.bool_], used: Codes, items: Codes, wanted: int, random: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Return how many new pairs each item gets, so that old and new together are as even as possible."""
    have = np.bincount(np.searchsorted(items, used[inside]), minlength=len(items))
    low, high = 0, int(have.max(initial=0)) + wanted // len(items) + 1
    while low < high:
        level = (low + high) // 2
        if np.maximum(level - have, 0).sum() >= wanted:
            high = level
        else:
            low = level + 1
    quota = np.maximum(low - have, 0)
    surplus = int(quota.sum()) - wanted
    givers = random.permutation(np.flatnonzero(quota > 0))[:surplus]
    quota[givers] -= 1
    return quota


def _match(adding: Adding, target: Codes, source: Codes, random: np.random.Generator) -> tuple[Codes, Codes]:
    """Pair given multisets of targets and sources at random; pairs that repeat or are taken swap their targets."""
    for _ in range(1000):
        _, first = np.unique(adding.keys(target, source), return_index=True)
        bad = adding.taken(target, source)
        bad[np.setdiff1d(np.arange(len(target)), first)] = True
        clashes = np.flatnonzero(bad)
        if not len(clashes):
            break
        moved = np.unique(np.concatenate([clashes, random.integers(len(target), size=len(clashes) + 1)]))
        target[moved] = target[random.permutation(moved)]
    else:
        keep = np.setdiff1d(first, clashes)
        target, source = target[keep], source[keep]
    return target, source
