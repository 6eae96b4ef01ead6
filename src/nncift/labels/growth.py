"""Plans are made and grow: items are set apart, training pairs drawn, and those that measure each quadrant added."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace

import numpy as np

from nncift.core.seeds import shuffled
from nncift.errors import DataError, UsageError
from nncift.labels.first_draw import block, scatter
from nncift.labels.growth_draws import Adding, Axes
from nncift.labels.label_budget import LabelBudget
from nncift.labels.plan import NO_SOURCE, Q2, Q3, TEST, TRAIN, VALIDATION, Codes, Entries, LabelPlan, Roles
from nncift.labels.sizes import HeldOut, held_out_of_pairs

SMALLEST_POOL = 20


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
    """Return a plan for these axes that keeps every entry of `previous` and adds what the wish still lacks.

    What is drawn depends on ids and seed alone, never on the order of the rows. A generation is added, if only an empty
    one, whenever the axes grow.

    Raises DataError for an axis too short to set items apart, UsageError where the wish is below what exists or the
    earlier rows are not the first on their axis.
    """
    check_pool_size(min(len(target_ids), len(source_ids)))
    old = previous or LabelPlan((), (), shared, Roles())
    if (
        tuple(target_ids[: len(old.target_ids)]) != old.target_ids
        or tuple(source_ids[: len(old.source_ids)]) != old.source_ids
    ):
        raise UsageError("the rows that a plan was made for must come first, in their order, when it grows")
    rank = len(old.generations)
    held = held_out_of_pairs(budget, len(target_ids), len(source_ids), shared=shared)
    roles = set_apart(old.roles, _untouched(old, target_ids, source_ids), held, seed, shared=shared)
    axes = Axes(tuple(sorted(target_ids)), tuple(sorted(source_ids)), shared, roles)
    existing = _recoded(old.entries, old.target_ids, old.source_ids, axes.target_ids, axes.source_ids)
    _check_grows(existing, axes, budget)
    adding = Adding(axes, existing)
    training = block if budget.kind == "block" else scatter
    training(adding, budget, seed, rank)
    adding.product(roles.validation_targets, roles.validation_sources, VALIDATION)
    adding.product(roles.test_targets, roles.test_sources, TEST)
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
    axes = Axes(tuple(sorted(plan.target_ids)), tuple(sorted(plan.source_ids)), plan.shared, plan.roles)
    orders = (plan.target_ids, plan.source_ids, axes.target_ids, axes.source_ids)
    adding = Adding(axes, _recoded(plan.entries, *orders))
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
        if shared and axis == "target":
            continue
        fresh = shuffled(fresh_ids, seed, "set apart", axis if not shared else "item")
        for role, bound in (("test", wanted.test), ("validation", wanted.validation)):
            kept: tuple[str, ...] = getattr(roles, f"{role}_{axis}s")
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


def _check_grows(existing: Entries, axes: Axes, budget: LabelBudget) -> None:
    have = int((existing.split == TRAIN).sum())
    asked = budget.pairs(len(axes.target_ids), len(axes.source_ids))
    # A block loses the pairs on the diagonal, so what exists may be a little below the sides' product, never above.
    if have > asked:
        raise UsageError(
            f"this run has {have} training labels, and --labels asks for {asked}; labels are never thrown away: "
            "ask for as many or more, or use another --out"
        )
