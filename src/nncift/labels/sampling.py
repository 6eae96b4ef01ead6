"""Which pairs are labelled: items are set apart, training pairs drawn, and those that measure each quadrant added.

Every pair is planned once, in a chunk with others of its source. What is drawn depends on ids and seed alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

import numpy as np

from nncift.core.arrays import Bools, Codes, Longs
from nncift.core.seeds import generator, shuffled
from nncift.errors import DataError, UsageError
from nncift.labels.label_budget import LabelBudget
from nncift.labels.plan import BASE, NO_SOURCE, Q2, Q3, TEST, TRAIN, VALIDATION, Entries, LabelPlan, Roles
from nncift.labels.sizes import HeldOut, held_out_of_pairs, sets_apart

SMALLEST_POOL = 20
CHUNK_TARGETS = 256
DENSE = 0.3
"""Share of all pairs above which a scatter is drawn from the list of free pairs, since matching would get stuck."""


def grow(
    previous: LabelPlan | None,
    target_ids: Sequence[str],
    source_ids: Sequence[str],
    budget: LabelBudget,
    seed: int,
    *,
    shared: bool,
    relative: bool,
) -> LabelPlan:
    """Return a plan for these axes that keeps every entry of `previous` and adds what the budget still asks for.

    What is drawn depends on ids and seed alone, never on the order of the rows. A generation is added, if only an empty
    one, whenever the axes grow.

    Raises DataError for an axis too short to set items apart, UsageError where fewer labels are asked for than exist, or the
    earlier rows are not the first on their axis.
    """
    check_pool_size(len(source_ids))
    old = previous or LabelPlan((), (), shared, Roles())
    if (
        tuple(target_ids[: len(old.target_ids)]) != old.target_ids
        or tuple(source_ids[: len(old.source_ids)]) != old.source_ids
    ):
        raise UsageError("the rows that a plan was made for must come first, in their order, when it grows")
    rank = len(old.generations)
    apart = keeps_apart(old.roles, len(old.target_ids), len(target_ids), shared=shared)
    held = held_out_of_pairs(budget, len(target_ids), len(source_ids), shared=shared, apart=apart)
    roles = set_apart(old.roles, _untouched(old, target_ids, source_ids), held, seed, shared=shared)
    axes = SortedAxes(tuple(sorted(target_ids)), tuple(sorted(source_ids)), shared, roles)
    existing = _recoded(old.entries, old.target_ids, old.source_ids, axes.target_ids, axes.source_ids)
    _check_grows(existing, axes, budget)
    adding = Addition(axes, existing)
    training = block if budget.kind == "block" else scatter
    training(adding, budget, seed, rank)
    adding.product(roles.validation_targets if apart else target_ids, roles.validation_sources, VALIDATION)
    adding.product(roles.test_targets if apart else target_ids, roles.test_sources, TEST)
    if apart:
        seen_targets, seen_sources = adding.seen(seed, (held[0].seen, held[1].seen))
        adding.product(roles.test_targets, seen_sources, Q2)
        adding.product(seen_targets, roles.test_sources, Q3)
    added = adding.entries(relative=relative, first_chunk=old.chunks)
    added = _recoded(added, axes.target_ids, axes.source_ids, target_ids, source_ids)
    grown = len(added) or len(target_ids) > len(old.target_ids) or len(source_ids) > len(old.source_ids)
    generations = (*old.generations, added) if grown else old.generations
    return LabelPlan(tuple(target_ids), tuple(source_ids), shared, roles, generations)


def extended(plan: LabelPlan, target: Codes, source: Codes, *, relative: bool) -> LabelPlan:
    """Return the plan with a generation of further training pairs, given by codes into its axes; planned ones are left out."""
    axes = SortedAxes(tuple(sorted(plan.target_ids)), tuple(sorted(plan.source_ids)), plan.shared, plan.roles)
    orders = (plan.target_ids, plan.source_ids, axes.target_ids, axes.source_ids)
    adding = Addition(axes, _recoded(plan.entries, *orders))
    nothing = np.zeros(len(target), np.int8)
    pairs = _recoded(Entries(target, source, nothing, np.zeros(len(target), np.int32)), *orders)
    adding.add(pairs.target, pairs.source, TRAIN)
    added = adding.entries(relative=relative, first_chunk=plan.chunks)
    added = _recoded(added, axes.target_ids, axes.source_ids, plan.target_ids, plan.source_ids)
    return replace(plan, generations=(*plan.generations, added))


def check_pool_size(rows: int) -> None:
    """Raise DataError for a pool too small to set rows apart."""
    if rows < SMALLEST_POOL:
        raise DataError(
            f"there {'is 1 usable row' if rows == 1 else f'are {rows} usable rows'}, and at least {SMALLEST_POOL} are "
            "needed to train, validate and test a student; add rows (so few can simply be read)"
        )


def keeps_apart(roles: Roles, before: int, targets: int, *, shared: bool) -> bool:
    """Tell whether a plan sets targets apart: what it did it keeps, since labels of all its targets have been learned from.

    roles, before: the roles and the number of targets of the plan that grows.
    """
    return roles.targets_apart if before and not shared else sets_apart(targets, shared=shared)


def set_apart(
    roles: Roles,
    untouched: tuple[AbstractSet[str], AbstractSet[str]],
    held: tuple[HeldOut, HeldOut],
    seed: int,
    *,
    shared: bool,
) -> Roles:
    """Keep the items that were set apart, and draw more where the plan asks for more: from items that no label is about.

    untouched, held: of targets and of sources; where both are the same rows, that of sources counts.
    """
    chosen: dict[str, tuple[str, ...]] = {}
    for axis, fresh_ids, wanted in zip(("target", "source"), untouched, held, strict=True):
        if axis == "target" and (shared or not wanted.apart):
            continue
        fresh = shuffled(fresh_ids, seed, "set apart", axis if not shared else "item")
        for role, bound in (("test", wanted.test), ("validation", wanted.validation)):
            kept = roles.of(role, axis)
            lacking = max(0, bound - len(kept))
            chosen[f"{role}_{axis}s"] = (*kept, *fresh[:lacking])
            fresh = fresh[lacking:]
    if shared:
        chosen |= {f"{role}_targets": chosen[f"{role}_sources"] for role in ("test", "validation")}
    return Roles(**chosen)


def _untouched(old: LabelPlan, target_ids: Sequence[str], source_ids: Sequence[str]) -> tuple[set[str], set[str]]:
    """Return the targets and sources that no planned label is about and that have no role yet."""
    entries, roles = old.entries, old.roles
    targets = {old.target_ids[code] for code in np.unique(entries.target)}
    sources = {old.source_ids[code] for code in np.unique(entries.source) if code != NO_SOURCE}
    if old.shared:
        targets = sources = targets | sources
    return (
        set(target_ids) - targets - {*roles.test_targets, *roles.validation_targets},
        set(source_ids) - sources - {*roles.test_sources, *roles.validation_sources},
    )


def _recoded(
    entries: Entries,
    targets: Sequence[str],
    sources: Sequence[str],
    new_targets: Sequence[str],
    new_sources: Sequence[str],
) -> Entries:
    """Return the entries with codes into other axes that hold the same ids."""
    target_place = {item: code for code, item in enumerate(new_targets)}
    source_place = {item: code for code, item in enumerate(new_sources)}
    target_map = np.array([target_place[item] for item in targets], np.int32)
    # The last place stands for "no source", which a code of -1 finds there.
    source_map = np.array([*(source_place[item] for item in sources), NO_SOURCE], np.int32)
    return Entries(target_map[entries.target], source_map[entries.source], entries.split, entries.chunk)


def _check_grows(existing: Entries, axes: SortedAxes, budget: LabelBudget) -> None:
    have = int((existing.split == TRAIN).sum())
    asked = budget.pairs(len(axes.target_ids), len(axes.source_ids))
    # A block loses the pairs on the diagonal, so what exists may be a little below the sides' product, never above.
    if have > asked:
        raise UsageError(
            f"this run has {have} training labels, and --labels asks for {asked}; labels are never thrown away: "
            "ask for as many or more, or use another --out"
        )


@dataclass(frozen=True)
class SortedAxes:
    """Both axes with their ids in order, so that what is drawn does not depend on the order of rows, and the items set apart."""

    target_ids: tuple[str, ...]
    source_ids: tuple[str, ...]
    shared: bool
    roles: Roles

    def ids(self, axis: str) -> tuple[str, ...]:
        """Return the ids of the target or the source axis."""
        return self.target_ids if axis == "target" else self.source_ids

    def codes(self, axis: str, ids: Sequence[str]) -> Codes:
        """Return the codes of ids of one axis."""
        known = {item: code for code, item in enumerate(self.ids(axis))}
        return np.array([known[item] for item in ids], np.int32)

    def free(self, axis: str) -> tuple[str, ...]:
        """Return the ids of an axis that are not set apart."""
        apart = self.roles.apart(axis)
        return tuple(item for item in self.ids(axis) if item not in apart)


class Addition:
    """Collects new pairs; every pair is planned once."""

    def __init__(self, axes: SortedAxes, existing: Entries) -> None:
        self.axes = axes
        self._existing = existing
        paired = existing.source != NO_SOURCE
        self._keys = self.keys(existing.target[paired], existing.source[paired])
        self._parts: list[tuple[Codes, Codes, int]] = []

    def keys(self, target: Codes, source: Codes) -> Longs:
        """Return one number for every pair."""
        return target.astype(np.int64) * len(self.axes.source_ids) + source

    def taken(self, target: Codes, source: Codes) -> Bools:
        """Tell which pairs are planned already or masked."""
        known: Bools = np.isin(self.keys(target, source), self._keys)
        return known | (target == source) if self.axes.shared else known

    def add(self, target: Codes, source: Codes, split: int) -> None:
        """Plan those of the pairs that are neither planned nor masked."""
        free = ~self.taken(target, source)
        self._parts.append((target[free], source[free], split))
        self._keys = np.concatenate([self._keys, self.keys(target[free], source[free])])

    def product(self, targets: Sequence[str], sources: Sequence[str], split: int) -> None:
        """Plan every target with every source."""
        rows, columns = self.axes.codes("target", targets), self.axes.codes("source", sources)
        self.add(np.repeat(rows, len(columns)), np.tile(columns, len(rows)), split)

    def pairs(self, split: int) -> tuple[Codes, Codes]:
        """Return all pairs of a split, planned before and now."""
        mask = self._existing.split == split
        parts = [part for part in self._parts if part[2] == split]
        return (
            np.concatenate([self._existing.target[mask], *(part[0] for part in parts)]),
            np.concatenate([self._existing.source[mask], *(part[1] for part in parts)]),
        )

    def seen(self, seed: int, most: tuple[int, int]) -> tuple[list[str], list[str]]:
        """Return a few training targets and sources, to be paired with test items; those of before come first.

        most: of targets and of sources.
        """
        trained, before = self.pairs(TRAIN), (self.pairs(Q3)[0], self.pairs(Q2)[1])
        found = []
        for axis, codes, kept, bound in zip(("target", "source"), trained, before, most, strict=True):
            ids = self.axes.ids(axis)
            old = [ids[code] for code in np.unique(kept)]
            rest = shuffled({ids[code] for code in np.unique(codes)} - set(old), seed, "seen", axis)
            found.append([*old, *rest[: max(0, bound - len(old))]])
        return found[0], found[1]

    def entries(self, *, relative: bool, first_chunk: int) -> Entries:
        """Return what was added, sorted into chunks: one source each, and the targets without an example first."""
        target = np.concatenate([part[0] for part in self._parts])
        source = np.concatenate([part[1] for part in self._parts])
        split = np.concatenate([np.full(len(part[0]), part[2], np.int8) for part in self._parts])
        if relative:
            known = self._existing.target[self._existing.split == BASE]
            fresh = np.setdiff1d(target, known).astype(np.int32)
            target = np.concatenate([fresh, target])
            source = np.concatenate([np.full(len(fresh), NO_SOURCE, np.int32), source])
            split = np.concatenate([np.full(len(fresh), BASE, np.int8), split])
        order = np.lexsort((target, source))
        target, source, split = target[order], source[order], split[order]
        starts = np.flatnonzero(np.diff(source, prepend=-2))
        within = np.arange(len(source)) - np.repeat(starts, np.diff([*starts, len(source)]))
        opens = (within % CHUNK_TARGETS == 0).astype(np.int32)
        chunk = (first_chunk + np.cumsum(opens) - 1).astype(np.int32)
        return Entries(target.astype(np.int32), source.astype(np.int32), split, chunk)


def block(adding: Addition, budget: LabelBudget, seed: int, rank: int) -> None:
    """Label u of the targets by u of the sources, drawn by the seed; earlier rows and columns of the block stay."""
    axes = adding.axes
    height, width = budget.sides(len(axes.target_ids), len(axes.source_ids))
    old_target, old_source = adding.pairs(TRAIN)
    sides = []
    for axis, size, old in (("target", height, old_target), ("source", width, old_source)):
        ids = axes.ids(axis)
        kept = [ids[code] for code in np.unique(old)]
        rest = shuffled(set(axes.free(axis)) - set(kept), seed, "block", axis)
        sides.append([*kept, *rest][: max(size, len(kept))])
    adding.product(sides[0], sides[1], TRAIN)


def scatter(adding: Addition, budget: LabelBudget, seed: int, rank: int) -> None:
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


def _even_quota(inside: Bools, used: Codes, items: Codes, wanted: int, random: np.random.Generator) -> Longs:
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


def _match(adding: Addition, target: Codes, source: Codes, random: np.random.Generator) -> tuple[Codes, Codes]:
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
