"""Label plans: which pairs the teacher labels, what each pair is for, and in which chunks they are computed.

A plan is deterministic from ids and seed, and it only ever grows: more labels or more rows add entries in new chunks
and leave earlier ones where they are. Training, validation and test items are disjoint (method.md 2), so that every
quadrant is measured:

- `train`: pairs of training items. `block` labels u of the targets by u of the sources, `scatter` spreads the same
  number of pairs evenly over all rows and columns, `active` scatters half of them and adds the rest round by round.
- `validation`: pairs of validation items, for early stopping.
- `test` (Q4): pairs of test items, both unseen. `q2`: test targets with seen sources. `q3`: seen targets with test sources.
- `base`: targets without an example, for relative teachers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from nncift.errors import DataError, InfeasibleError, UsageError
from nncift.seeds import generator, shuffled
from nncift.teachers import Chunk

SPLITS = ("base", "train", "validation", "q2", "q3", "test")
BASE, TRAIN, VALIDATION, Q2, Q3, TEST = range(6)
NO_SOURCE = -1
SMALLEST_POOL = 20
SEEN_BESIDE_TEST = 10
CHUNK_TARGETS = 256
FIRST = 0.5
"""Share of an active plan's training pairs that is scattered before anything is known."""

DENSE = 0.3
"""Share of all pairs above which a scatter is drawn from the list of free pairs, since matching would get stuck."""

Codes = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Roles:
    """The items set apart, by axis; where targets and sources are the same rows, an item has one role on both."""

    validation_targets: tuple[str, ...] = ()
    validation_sources: tuple[str, ...] = ()
    test_targets: tuple[str, ...] = ()
    test_sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entries:
    """Planned labels, one per row: codes into the plan's axes (`source` is -1 without an example), split and chunk."""

    target: Codes = field(default_factory=lambda: np.empty(0, np.int32))
    source: Codes = field(default_factory=lambda: np.empty(0, np.int32))
    split: npt.NDArray[np.int8] = field(default_factory=lambda: np.empty(0, np.int8))
    chunk: Codes = field(default_factory=lambda: np.empty(0, np.int32))

    def __len__(self) -> int:
        return len(self.target)

    def __add__(self, other: Entries) -> Entries:
        names = ("target", "source", "split", "chunk")
        return Entries(*(np.concatenate([getattr(self, name), getattr(other, name)]) for name in names))


@dataclass(frozen=True)
class LabelPlan:
    """What the teacher labels: axes, roles, and entries by generation (one for every time that the plan grew).

    target_ids and source_ids: axes with the ids attached; shared: both are the same rows, and the diagonal is masked.
    """

    target_ids: tuple[str, ...]
    source_ids: tuple[str, ...]
    shared: bool
    roles: Roles
    generations: tuple[Entries, ...] = ()

    @property
    def entries(self) -> Entries:
        """All entries, oldest first."""
        return sum(self.generations, Entries())

    @property
    def chunks(self) -> int:
        """Number of chunks over all generations."""
        return 1 + max((int(entries.chunk.max()) for entries in self.generations if len(entries)), default=-1)

    def generation_chunks(self, generation: int) -> list[tuple[Chunk, npt.NDArray[np.intp]]]:
        """Return the chunks of a generation, each with the positions of its entries there."""
        entries = self.generations[generation]
        order = np.argsort(entries.chunk, kind="stable")
        starts = np.flatnonzero(np.diff(entries.chunk[order], prepend=-1))
        found = []
        for positions in np.split(order, starts[1:]) if len(order) else []:
            source = int(entries.source[positions[0]])
            chunk = Chunk(
                int(entries.chunk[positions[0]]),
                None if source == NO_SOURCE else self.source_ids[source],
                tuple(self.target_ids[code] for code in entries.target[positions]),
            )
            found.append((chunk, positions))
        return found

    def full_passes(self, *, relative: bool) -> int:
        """Return the passes of labelling every pair, the masked diagonal left out."""
        pairs = len(self.target_ids) * len(self.source_ids) - (len(self.source_ids) if self.shared else 0)
        return pairs + (len(self.target_ids) if relative else 0)


@dataclass(frozen=True)
class Wish:
    """How much to label.

    share: u, of each axis; or count: of pairs. kind: block, scatter or active. test_items, validation_items: upper bounds,
    a tenth and a fifteenth of a small pool.
    """

    share: float | None
    count: int | None
    kind: str = "scatter"
    test_items: int = 30
    validation_items: int = 20

    def pairs(self, targets: int, sources: int) -> int:
        """Return the number of training pairs that this wish stands for."""
        height, width = self.sides(targets, sources)
        return self.count if self.count is not None and self.kind != "block" else height * width

    def scattered(self, targets: int, sources: int) -> int:
        """Return the number of training pairs that are spread evenly; the rest of an active plan comes later."""
        pairs = self.pairs(targets, sources)
        return math.ceil(FIRST * pairs) if self.kind == "active" else pairs

    def sides(self, targets: int, sources: int) -> tuple[int, int]:
        """Return the sides of the block that this wish stands for, at least 2 by 2."""
        if self.share is not None:
            sides = round(self.share * targets), round(self.share * sources)
        else:
            height = math.sqrt((self.count or 0) * targets / sources)
            sides = round(height), round((self.count or 0) / max(height, 1))
        return max(2, sides[0]), max(2, sides[1])


def parse_labels(text: str) -> tuple[float | None, int | None]:
    """Read `5%` and `0.05` as a share of each axis, `4000` as a number of pairs. Raises UsageError or InfeasibleError."""
    stripped = text.strip()
    try:
        if stripped.endswith("%") or "." in stripped:
            share = float(stripped[:-1]) / 100 if stripped.endswith("%") else float(stripped)
            if not 0 < share <= 1:
                raise InfeasibleError(f"--labels {text}: the share must be above 0 % and at most 100 %")
            return share, None
        count = int(stripped)
    except ValueError as error:
        raise UsageError(f"--labels {text!r} was given; expected a share such as 5% or a number of pairs") from error
    if count < 4:
        raise InfeasibleError(f"--labels {text}: at least 4 pairs are needed to learn anything")
    return None, count


def grow(
    previous: LabelPlan | None,
    target_ids: Sequence[str],
    source_ids: Sequence[str],
    wish: Wish,
    seed: int,
    *,
    shared: bool,
    relative: bool,
) -> LabelPlan:
    """Return a plan for these axes that keeps every entry of `previous` and adds what the wish still lacks.

    What is drawn depends on ids and seed alone, never on the order of the rows. A generation is added, if only an empty
    one, whenever the axes grow.

    Raises DataError for an axis too short to set items apart, UsageError where the wish is below what exists or the
    earlier rows are not the first on their axis.
    """
    refuse_small(min(len(target_ids), len(source_ids)))
    old = previous or LabelPlan((), (), shared, Roles())
    if (
        tuple(target_ids[: len(old.target_ids)]) != old.target_ids
        or tuple(source_ids[: len(old.source_ids)]) != old.source_ids
    ):
        raise UsageError("the rows that a plan was made for must come first, in their order, when it grows")
    rank = len(old.generations)
    roles = set_apart(old, target_ids, source_ids, wish, seed, shared=shared)
    axes = _Axes(tuple(sorted(target_ids)), tuple(sorted(source_ids)), shared, roles)
    existing = _recoded(old.entries, old.target_ids, old.source_ids, axes.target_ids, axes.source_ids)
    _refuse_less(existing, axes, wish)
    adding = _Adding(axes, existing)
    training = _block if wish.kind == "block" else _scatter
    training(adding, wish, seed, rank)
    adding.product(roles.validation_targets, roles.validation_sources, VALIDATION)
    adding.product(roles.test_targets, roles.test_sources, TEST)
    seen_targets, seen_sources = adding.seen(seed)
    adding.product(roles.test_targets, seen_sources, Q2)
    adding.product(seen_targets, roles.test_sources, Q3)
    added = adding.entries(relative=relative, first_chunk=old.chunks)
    added = _recoded(added, axes.target_ids, axes.source_ids, target_ids, source_ids)
    grown = len(added) or len(target_ids) > len(old.target_ids) or len(source_ids) > len(old.source_ids)
    generations = (*old.generations, added) if grown else old.generations
    return LabelPlan(tuple(target_ids), tuple(source_ids), shared, roles, generations)


def extended(plan: LabelPlan, target: Codes, source: Codes, *, relative: bool) -> LabelPlan:
    """Return the plan with a generation of further training pairs, given by codes into its axes; planned ones are left out."""
    axes = _Axes(tuple(sorted(plan.target_ids)), tuple(sorted(plan.source_ids)), plan.shared, plan.roles)
    orders = (plan.target_ids, plan.source_ids, axes.target_ids, axes.source_ids)
    adding = _Adding(axes, _recoded(plan.entries, *orders))
    nothing = np.zeros(len(target), np.int8)
    pairs = _recoded(Entries(target, source, nothing, np.zeros(len(target), np.int32)), *orders)
    adding.add(pairs.target, pairs.source, TRAIN)
    added = adding.entries(relative=relative, first_chunk=plan.chunks)
    added = _recoded(added, axes.target_ids, axes.source_ids, plan.target_ids, plan.source_ids)
    return replace(plan, generations=(*plan.generations, added))


def refuse_small(rows: int) -> None:
    """Raise DataError for a pool too small to set rows apart."""
    if rows < SMALLEST_POOL:
        raise DataError(
            f"there {'is 1 usable row' if rows == 1 else f'are {rows} usable rows'}, and at least {SMALLEST_POOL} are "
            "needed to train, validate and test a student; add rows (so few can simply be read)"
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


@dataclass(frozen=True)
class _Axes:
    target_ids: tuple[str, ...]
    source_ids: tuple[str, ...]
    shared: bool
    roles: Roles

    def codes(self, axis: str, ids: Sequence[str]) -> Codes:
        known = {item: code for code, item in enumerate(getattr(self, f"{axis}_ids"))}
        return np.array([known[item] for item in ids], np.int32)

    def free(self, axis: str) -> tuple[str, ...]:
        """Return the ids of an axis that are not set apart."""
        held = {*getattr(self.roles, f"test_{axis}s"), *getattr(self.roles, f"validation_{axis}s")}
        return tuple(item for item in getattr(self, f"{axis}_ids") if item not in held)


class _Adding:
    """Collects new pairs; every pair is planned once."""

    def __init__(self, axes: _Axes, existing: Entries) -> None:
        self.axes = axes
        self._existing = existing
        paired = existing.source != NO_SOURCE
        self._keys = self.keys(existing.target[paired], existing.source[paired])
        self._parts: list[tuple[Codes, Codes, int]] = []

    def keys(self, target: Codes, source: Codes) -> npt.NDArray[np.int64]:
        return target.astype(np.int64) * len(self.axes.source_ids) + source

    def taken(self, target: Codes, source: Codes) -> npt.NDArray[np.bool_]:
        """Tell which pairs are planned already or masked."""
        known: npt.NDArray[np.bool_] = np.isin(self.keys(target, source), self._keys)
        return known | (target == source) if self.axes.shared else known

    def add(self, target: Codes, source: Codes, split: int) -> None:
        free = ~self.taken(target, source)
        self._parts.append((target[free], source[free], split))
        self._keys = np.concatenate([self._keys, self.keys(target[free], source[free])])

    def product(self, targets: Sequence[str], sources: Sequence[str], split: int) -> None:
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

    def seen(self, seed: int) -> tuple[list[str], list[str]]:
        """Return a few training targets and sources, to be paired with test items; those of before come first."""
        trained, before = self.pairs(TRAIN), (self.pairs(Q3)[0], self.pairs(Q2)[1])
        found = []
        for axis, codes, kept in zip(("target", "source"), trained, before, strict=True):
            ids = getattr(self.axes, f"{axis}_ids")
            old = [ids[code] for code in np.unique(kept)]
            rest = shuffled({ids[code] for code in np.unique(codes)} - set(old), seed, "seen", axis)
            found.append([*old, *rest[: max(0, SEEN_BESIDE_TEST - len(old))]])
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


def set_apart(
    old: LabelPlan, target_ids: Sequence[str], source_ids: Sequence[str], wish: Wish, seed: int, *, shared: bool
) -> Roles:
    """Keep the items that were set apart, and draw more from rows that no plan has touched if there are too few."""
    chosen: dict[str, tuple[str, ...]] = {}
    axes = (("source", source_ids, old.source_ids), ("target", target_ids, old.target_ids))
    for axis, ids, before in axes:
        fresh = shuffled(set(ids) - set(before), seed, "set apart", axis if not shared else "item")
        for role, bound, part in (("test", wish.test_items, 10), ("validation", wish.validation_items, 15)):
            if shared and axis == "target":
                chosen[f"{role}_targets"] = chosen[f"{role}_sources"]
                continue
            kept: tuple[str, ...] = getattr(old.roles, f"{role}_{axis}s")
            lacking = max(0, min(bound, math.ceil(len(ids) / part)) - len(kept))
            chosen[f"{role}_{axis}s"] = (*kept, *fresh[:lacking])
            fresh = fresh[lacking:]
    return Roles(**chosen)


def _refuse_less(existing: Entries, axes: _Axes, wish: Wish) -> None:
    have = int((existing.split == TRAIN).sum())
    asked = wish.pairs(len(axes.target_ids), len(axes.source_ids))
    # A block loses the pairs on the diagonal, so what exists may be a little below the sides' product, never above.
    if have > asked:
        raise UsageError(
            f"this run has {have} training labels, and --labels asks for {asked}; labels are never thrown away: "
            "ask for as many or more, or use another --out"
        )


def _block(adding: _Adding, wish: Wish, seed: int, rank: int) -> None:
    """Label u of the targets by u of the sources, drawn by the seed; earlier rows and columns of the block stay."""
    axes = adding.axes
    height, width = wish.sides(len(axes.target_ids), len(axes.source_ids))
    old_target, old_source = adding.pairs(TRAIN)
    sides = []
    for axis, size, old in (("target", height, old_target), ("source", width, old_source)):
        ids = getattr(axes, f"{axis}_ids")
        kept = [ids[code] for code in np.unique(old)]
        rest = shuffled(set(axes.free(axis)) - set(kept), seed, "block", axis)
        sides.append([*kept, *rest][: max(size, len(kept))])
    adding.product(sides[0], sides[1], TRAIN)


def _scatter(adding: _Adding, wish: Wish, seed: int, rank: int) -> None:
    """Spread as many pairs as a block has over all rows and columns that are not set apart, as evenly as possible."""
    axes = adding.axes
    targets = axes.codes("target", axes.free("target"))
    sources = axes.codes("source", axes.free("source"))
    old_target, old_source = adding.pairs(TRAIN)
    masked = len(np.intersect1d(targets, sources)) if axes.shared else 0
    room = len(targets) * len(sources) - masked
    wanted = min(wish.scattered(len(axes.target_ids), len(axes.source_ids)), room) - len(old_target)
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


def _match(adding: _Adding, target: Codes, source: Codes, random: np.random.Generator) -> tuple[Codes, Codes]:
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


def describe(plan: LabelPlan) -> dict[str, Any]:
    """Return the number of planned labels by split."""
    split = plan.entries.split
    return {name: int((split == code).sum()) for code, name in enumerate(SPLITS)}
