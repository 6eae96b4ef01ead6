"""How many items are held out, and how many passes a plan takes: from the sizes of both axes and the labels asked for.

What is held out grows with the labels: pairs that measure (validation, test, `q2`, `q3`) never outnumber those that train, and
where rows are labelled, the held-out rows of an axis are never more than its training rows. Only plans of fewer than 8 training
pairs or 4 training rows hold out more: two items of each role are the least.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from nncift.labels.label_budget import LabelBudget

TEST_PART, VALIDATION_PART = 10, 15
"""An axis gives at most a tenth of its items for test and a fifteenth for validation."""

SEEN_BESIDE_TEST = 10
"""Training items of each axis that test items are paired with, at most."""

LEAST = 2
"""Least test and validation items of an axis that has as many."""

FEW_ROWS, FEW_LABELS = 300, 100
"""Rows of a pool, and labels to learn from, below which a run says what it cannot know."""

FEW_TARGETS = 50
"""A set of targets up to this size is measured whole by teachers that label rows."""

FEWEST_APART = 20
"""Rows of a target set below which none is set apart: there is no unseen target to speak of, and every one has labels."""


@dataclass(frozen=True)
class HeldOut:
    """Items held out of one axis. seen: training items of the axis that test items of the other are paired with.

    apart: whether they are set apart; otherwise all items of the axis have every role.
    """

    test: int
    validation: int
    seen: int
    apart: bool = True

    @property
    def items(self) -> int:
        """Items that are not learned from."""
        return self.test + self.validation if self.apart else 0


def none_apart(targets: int) -> HeldOut:
    """Return that all of so many targets have every role."""
    return HeldOut(targets, targets, 0, apart=False)


def sets_apart(targets: int, *, shared: bool) -> bool:
    """Tell whether a fresh plan for so many targets sets some apart. shared: they are the rows of the pool."""
    return shared or targets >= FEWEST_APART


def _shrinking(budget: LabelBudget, items: int) -> Iterator[HeldOut]:
    """Yield what an axis of so many items gives, from the bounds of the settings down to the least."""
    whole = max(budget.test_items, budget.validation_items)
    for part in range(whole, 0, -1):
        test, validation = (
            max(LEAST, math.ceil(bound * part / whole)) for bound in (budget.test_items, budget.validation_items)
        )
        yield HeldOut(
            min(test, math.ceil(items / TEST_PART)),
            min(validation, math.ceil(items / VALIDATION_PART)),
            min(SEEN_BESIDE_TEST, max(LEAST, math.ceil(3 * SEEN_BESIDE_TEST * part / whole))),
        )


def held_out_of_pairs(
    budget: LabelBudget, targets: int, sources: int, *, shared: bool, apart: bool | None = None
) -> tuple[HeldOut, HeldOut]:
    """Return what is held out of targets and sources where pairs are labelled: as much as measures no more pairs than train.

    apart: whether targets are set apart; None = as a fresh plan does.
    """
    training = budget.pairs(targets, sources)
    if not (sets_apart(targets, shared=shared) if apart is None else apart):
        every = none_apart(targets)
        for of_sources in _shrinking(budget, sources):
            held = every, replace(of_sources, seen=0)
            if measuring_pairs(*held, shared=shared) <= training:
                break
        return held
    for held in zip(_shrinking(budget, targets), _shrinking(budget, sources), strict=True):
        if measuring_pairs(*held, shared=shared) <= training:
            return held
    return replace(held[0], seen=1), replace(held[1], seen=1)


def measuring_pairs(target: HeldOut, source: HeldOut, *, shared: bool) -> int:
    """Return the pairs that measure: blocks of test and of validation items, and test items with seen ones."""
    masked = target.test + target.validation if shared else 0
    blocks = target.test * source.test + target.validation * source.validation - masked
    return blocks + target.test * source.seen + target.seen * source.test


def held_out_of_rows(budget: LabelBudget, items: int, training: int) -> HeldOut:
    """Return what is held out of an axis where rows are labelled: at most as many rows as train."""
    for held in _shrinking(budget, items):
        if held.items <= training:
            return held
    return held


def side(budget: LabelBudget, rows: int, *, few: bool) -> int:
    """Return how many rows of an axis are asked for where rows are labelled. few: a small axis is taken whole."""
    asked = round(budget.share * rows) if budget.share is not None else budget.count or 0
    return min(max(asked, FEW_TARGETS if few else 2), rows)


def pair_passes(budget: LabelBudget, targets: int, sources: int, *, shared: bool, relative: bool) -> int:
    """Return the passes of a fresh plan of pairs: exact for scattered ones, at most so many for a block and for rounds.

    relative: every target that is planned takes a pass without an example.
    """
    held = held_out_of_pairs(budget, targets, sources, shared=shared)
    free = max(0, targets - held[0].items), max(0, sources - held[1].items)
    if budget.kind == "block":
        height, width = (min(size, most) for size, most in zip(budget.sides(targets, sources), free, strict=True))
        training, lines = height * width, height
    else:
        training = min(budget.pairs(targets, sources), free[0] * free[1] - (min(free) if shared else 0))
        lines = min(training, free[0])
    alone = (lines + held[0].items if held[0].apart else targets) if relative else 0
    return training + measuring_pairs(*held, shared=shared) + alone


def pair_chunks(budget: LabelBudget, targets: int, sources: int, *, shared: bool) -> int:
    """Return the sources that a fresh plan of pairs puts in front of targets: the chunks of a scatter, about those of others."""
    held = held_out_of_pairs(budget, targets, sources, shared=shared)[1].items
    width = budget.sides(targets, sources)[1] if budget.kind == "block" else budget.pairs(targets, sources)
    return held + min(width, max(0, sources - held))


def measured_rows(budget: LabelBudget, targets: int | None, sources: int) -> int:
    """Return the rows that a fresh plan of rows measures. targets: rows of a target set, None without one."""
    return _measured(budget, sources, few=False) + (0 if targets is None else _measured(budget, targets, few=True))


def _measured(budget: LabelBudget, items: int, *, few: bool) -> int:
    training = side(budget, items, few=few)
    held = held_out_of_rows(budget, items, training).items
    return min(training, items - held) + held


def too_little(counts: Mapping[str, int], rows: int, *, by_row: bool) -> list[str]:
    """Return what a plan cannot tell and what to do, nothing where it is large enough.

    counts: labels by split. rows: of the pool. by_row: the teacher labels rows.
    """
    training = counts["train"]
    measuring = sum(counts.get(split, 0) for split in ("validation", "q2", "q3", "test"))
    other = (
        "" if by_row else ", take a teacher that labels rows, of which a few give many pairs (--teacher rds or less),"
    )
    instead = f"Raise --labels{other} or select on embeddings alone (--teacher delift-se)."
    if training < FEW_LABELS:
        return [
            f"The student learns from {training} labels and is measured by {measuring}: from fewer than {FEW_LABELS} it "
            f"is unknown whether it agrees with the teacher, or selects better than what is free. {instead}"
        ]
    if rows < FEW_ROWS:
        return [
            f"The pool has {rows} rows, and {measuring} labels measure the student: in pools of fewer than {FEW_ROWS} rows its "
            f"agreement with the teacher is known roughly, see the intervals. {instead}"
        ]
    return []
