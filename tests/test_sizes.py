"""How much is held out, and how many passes a plan takes, beside plans as they are made."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nncift.labels import SCORE, LabelBudget, describe, grow, grow_rows
from nncift.labels.plan import TEST, TRAIN, VALIDATION
from nncift.labels.sizes import (
    HeldOut,
    held_out_of_pairs,
    held_out_of_rows,
    measured_rows,
    measuring_pairs,
    pair_passes,
)


def ids(n: int, head: str = "row") -> list[str]:
    return [f"{head}-{index:04d}" for index in range(n)]


@pytest.mark.parametrize(
    ("rows", "labels", "held", "measuring"),
    [  # 60 rows at 10 %: 36 pairs train; 3 test items (6 pairs), 2 validation items (2), 2 x 3 x 3 with seen ones.
        (60, LabelBudget(0.1, None), HeldOut(3, 2, 3), 26),
        # 600 rows at 5 %: 900 pairs train; 19 x 18 + 13 x 12 + 2 x 19 x 10. With 20 test items it would be 962.
        (600, LabelBudget(0.05, None), HeldOut(19, 13, 10), 878),
        # Enough labels: the bounds of the settings, 30 x 29 + 20 x 19 + 2 x 30 x 10.
        (600, LabelBudget(0.1, None), HeldOut(30, 20, 10), 1850),
        # A tenth and a fifteenth of few rows: 4 x 3 + 3 x 2 + 2 x 4 x 10.
        (40, LabelBudget(0.5, None), HeldOut(4, 3, 10), 98),
        # The least: 2 x 1 + 2 x 1 + 2 x 2 x 1.
        (60, LabelBudget(None, 4), HeldOut(2, 2, 1), 8),
    ],
)
def test_held_out_items_by_hand(rows: int, labels: LabelBudget, held: HeldOut, measuring: int) -> None:
    assert held_out_of_pairs(labels, rows, rows, shared=True) == (held, held)
    assert measuring_pairs(held, held, shared=True) == measuring


def test_rows_are_held_out_up_to_those_that_train() -> None:
    # 12 of 240 rows train: 7 test rows and 5 for validation, where a tenth and a fifteenth would be 24 and 16.
    assert held_out_of_rows(LabelBudget(0.05, None), 240, 12) == HeldOut(7, 5, 7)
    assert held_out_of_rows(LabelBudget(0.2, None), 240, 48) == HeldOut(24, 16, 10)
    assert measured_rows(LabelBudget(0.05, None), None, 240) == 24
    # A target set of 24 rows is measured whole.
    assert measured_rows(LabelBudget(0.05, None), 24, 240) == 24 + 24
    assert measured_rows(LabelBudget(1.0, None), None, 240) == 240


@settings(max_examples=60, deadline=None)
@given(st.integers(20, 130), st.integers(8, 4000), st.sampled_from(["block", "scatter"]), st.integers(0, 3))
def test_pairs_that_measure_never_outnumber_those_that_train(rows: int, labels: int, kind: str, seed: int) -> None:
    plan = grow(None, ids(rows), ids(rows), LabelBudget(None, labels, kind), seed, shared=True, relative=True)
    found = describe(plan)
    measuring = sum(found[split] for split in ("validation", "q2", "q3", "test"))
    # A block loses the pairs of a row with itself.
    assert measuring <= found["train"] + (0 if kind == "scatter" else 2 * round(labels**0.5) + 2)
    assert all(found[split] > 0 for split in ("train", "validation", "q2", "q3", "test"))


@settings(max_examples=60, deadline=None)
@given(st.integers(20, 130), st.integers(20, 4000), st.sampled_from(["block", "scatter"]), st.integers(1, 19))
def test_of_few_targets_every_one_is_learned_from_and_measured_by(
    rows: int, labels: int, kind: str, targets: int
) -> None:
    names = ids(targets, "target")
    plan = grow(None, names, ids(rows), LabelBudget(None, labels, kind), 0, shared=False, relative=True)
    found, entries = describe(plan), plan.entries
    assert found["q2"] == found["q3"] == 0
    for split in (VALIDATION, TEST):
        assert set(entries.target[entries.split == split]) == set(range(targets))
    sources = [set(entries.source[entries.split == split]) for split in (TRAIN, VALIDATION, TEST)]
    assert not sources[0] & sources[1] | sources[0] & sources[2] | sources[1] & sources[2]
    grown = grow(plan, ids(30, "target"), ids(rows), LabelBudget(None, 9000, kind), 0, shared=False, relative=True)
    assert not grown.roles.targets_apart


@settings(max_examples=60, deadline=None)
@given(st.integers(20, 130), st.integers(4, 4000), st.integers(0, 65), st.booleans())
def test_passes_are_those_of_the_plan(rows: int, labels: int, count: int, relative: bool) -> None:
    shared = count == 0
    targets = ids(rows) if shared else ids(count, "target")
    budget = LabelBudget(None, labels, "scatter")
    plan = grow(None, targets, ids(rows), budget, 0, shared=shared, relative=relative)
    assert pair_passes(budget, len(targets), rows, shared=shared, relative=relative) == len(plan.entries)
    block = LabelBudget(None, labels, "block")
    made = grow(None, targets, ids(rows), block, 0, shared=shared, relative=relative)
    most = pair_passes(block, len(targets), rows, shared=shared, relative=relative)
    assert most - min(len(targets), rows) <= len(made.entries) <= most


@settings(max_examples=60, deadline=None)
@given(st.integers(20, 200), st.floats(0.01, 1.0), st.sampled_from(["shared", "score", "target"]), st.integers(1, 90))
def test_measured_rows_are_those_of_the_plan(rows: int, share: float, kind: str, targets: int) -> None:
    axis = {"shared": ids(rows), "score": SCORE, "target": ids(targets, "target")}[kind]
    plan = grow_rows(None, axis, ids(rows), LabelBudget(share, None, "rows"), 0, shared=kind == "shared")
    assert measured_rows(LabelBudget(share, None, "rows"), targets if kind == "target" else None, rows) == len(
        plan.measured
    )
    train, held = len(plan.train_sources), len(plan.roles.test_sources) + len(plan.roles.validation_sources)
    assert held <= max(train, 4)


def test_more_labels_hold_out_more_items_that_no_label_is_about() -> None:
    rows = ids(400)
    small = grow(None, rows, rows, LabelBudget(None, 60), 0, shared=True, relative=False)
    large = grow(small, rows, rows, LabelBudget(None, 1000), 0, shared=True, relative=False)
    assert len(small.roles.test_sources) < len(large.roles.test_sources)
    kept = len(small.roles.test_sources)
    assert large.roles.test_sources[:kept] == small.roles.test_sources
    before = small.entries
    touched = {small.source_ids[code] for code in {*before.source.tolist(), *before.target.tolist()}}
    assert not touched & set(large.roles.test_sources[kept:])
    assert grow(large, rows, rows, LabelBudget(None, 1000), 0, shared=True, relative=False) == large
