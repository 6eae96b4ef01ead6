"""Plans are made and grow: items are set apart, training pairs drawn, and those that measure each quadrant added."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from nncift.errors import DataError, UsageError
from nncift.plan.adding import Adding, Axes
from nncift.plan.drawing import block, scatter
from nncift.plan.entries import NO_SOURCE, Q2, Q3, TEST, TRAIN, VALIDATION, Codes, Entries, LabelPlan, Roles
from nncift.plan.wish import Wish
from nncift.seeds import shuffled

SMALLEST_POOL = 20


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
    axes = Axes(tuple(sorted(target_ids)), tuple(sorted(source_ids)), shared, roles)
    existing = _recoded(old.entries, old.target_ids, old.source_ids, axes.target_ids, axes.source_ids)
    _refuse_less(existing, axes, wish)
    adding = Adding(axes, existing)
    training = block if wish.kind == "block" else scatter
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
    axes = Axes(tuple(sorted(plan.target_ids)), tuple(sorted(plan.source_ids)), plan.shared, plan.roles)
    orders = (plan.target_ids, plan.source_ids, axes.target_ids, axes.source_ids)
    adding = Adding(axes, _recoded(plan.entries, *orders))
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


def _refuse_less(existing: Entries, axes: Axes, wish: Wish) -> None:
    have = int((existing.split == TRAIN).sum())
    asked = wish.pairs(len(axes.target_ids), len(axes.source_ids))
    # A block loses the pairs on the diagonal, so what exists may be a little below the sides' product, never above.
    if have > asked:
        raise UsageError(
            f"this run has {have} training labels, and --labels asks for {asked}; labels are never thrown away: "
            "ask for as many or more, or use another --out"
        )
