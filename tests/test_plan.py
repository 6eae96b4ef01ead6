from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nncift.core.amounts import LabelAmount
from nncift.errors import DataError, InfeasibleError, UsageError
from nncift.labels import BASE, Q2, Q3, TEST, TRAIN, VALIDATION, LabelBudget, LabelPlan, describe, grow
from nncift.labels.sampling import CHUNK_TARGETS


def ids(n: int, start: int = 0) -> list[str]:
    return [f"row-{index:05d}" for index in range(start, start + n)]


def planned(
    n: int, share: float | None = 0.1, count: int | None = None, kind: str = "scatter", seed: int = 0
) -> LabelPlan:
    return extended(None, ids(n), LabelBudget(share, count, kind), seed)


def extended(plan: LabelPlan | None, rows: Sequence[str], budget: LabelBudget, seed: int = 0) -> LabelPlan:
    return grow(plan, rows, rows, budget, seed, shared=True, relative=True)


def named(plan: LabelPlan, split: int | None = None) -> set[tuple[str, str]]:
    """Return the pairs with an example in front, by id."""
    entries = plan.entries
    mask = (entries.source >= 0) if split is None else entries.split == split
    return {
        (plan.target_ids[t], plan.source_ids[s])
        for t, s in zip(entries.target[mask], entries.source[mask], strict=True)
    }


def training_counts(plan: LabelPlan, axis: str) -> np.ndarray:
    """Return how many training pairs each row has that may be trained on."""
    entries, roles = plan.entries, plan.roles
    held = {*roles.test_targets, *roles.validation_targets}
    free = [code for code, item in enumerate(plan.target_ids) if item not in held]
    return np.bincount(getattr(entries, axis)[entries.split == TRAIN], minlength=len(plan.target_ids))[free]


@pytest.mark.parametrize("kind", ["block", "scatter"])
def test_a_tenth_of_200_rows_is_a_square_of_20(kind: str) -> None:
    found = describe(planned(200, kind=kind))
    # A block loses what of its diagonal lies in it, at most 20 pairs; a scatter has exactly its number.
    assert found["train"] == 400 if kind == "scatter" else 380 <= found["train"] <= 400


def test_a_block_has_full_rows_and_columns() -> None:
    plan = planned(300, kind="block")
    pairs = named(plan, TRAIN)
    targets, sources = {t for t, _ in pairs}, {s for _, s in pairs}
    assert (len(targets), len(sources)) == (30, 30)
    assert pairs == {(t, s) for t in targets for s in sources if t != s}


def test_default_test_set_is_30_by_30_without_the_diagonal() -> None:
    found = describe(planned(600))
    assert found["test"] == 30 * 29
    assert found["validation"] == 20 * 19
    assert found["q2"] == found["q3"] == 30 * 10


@pytest.mark.parametrize("kind", ["block", "scatter"])
def test_every_pair_once_and_none_on_the_diagonal(kind: str) -> None:
    plan = planned(150, 0.2, kind=kind)
    assert len(named(plan)) == (plan.entries.source >= 0).sum()
    assert all(t != s for t, s in named(plan))


@pytest.mark.parametrize("kind", ["block", "scatter"])
def test_roles_are_disjoint_and_every_split_keeps_to_its_quadrant(kind: str) -> None:
    plan = planned(400, kind=kind)
    test, validation = set(plan.roles.test_targets), set(plan.roles.validation_targets)
    assert not test & validation
    trained = named(plan, TRAIN)
    seen_targets, seen_sources = {t for t, _ in trained}, {s for _, s in trained}
    assert not (seen_targets | seen_sources) & (test | validation)
    assert all(t in validation and s in validation for t, s in named(plan, VALIDATION))
    assert all(t in test and s in test for t, s in named(plan, TEST))
    assert all(t in test and s in seen_sources for t, s in named(plan, Q2))
    assert all(t in seen_targets and s in test for t, s in named(plan, Q3))


@pytest.mark.parametrize("axis", ["target", "source"])
def test_scatter_is_even_over_rows_and_columns(axis: str) -> None:
    counts = training_counts(planned(400, 0.1), axis)
    assert counts.max() - counts.min() <= 1


def test_axes_without_common_rows_have_no_diagonal_and_roles_of_their_own() -> None:
    targets, sources = ids(40), [f"s{index}" for index in range(100)]
    plan = grow(None, targets, sources, LabelBudget(1.0, None, "block"), 0, shared=False, relative=False)
    test, validation = plan.roles.test_targets, plan.roles.validation_targets
    assert set(plan.roles.test_targets) <= set(targets)
    assert set(plan.roles.test_sources) <= set(sources)
    free = (40 - len(test) - len(validation)) * (
        100 - len(plan.roles.test_sources) - len(plan.roles.validation_sources)
    )
    assert describe(plan)["train"] == free
    assert describe(plan)["test"] == len(test) * len(plan.roles.test_sources)
    assert describe(plan)["base"] == 0
    assert plan.full_passes(relative=True) == 40 * 100 + 40


def test_the_same_seed_gives_the_same_plan_and_another_seed_another() -> None:
    assert named(planned(100, seed=1)) == named(planned(100, seed=1))
    assert named(planned(100, seed=1)) != named(planned(100, seed=2))


@pytest.mark.parametrize("kind", ["block", "scatter"])
def test_the_order_of_rows_means_nothing(kind: str) -> None:
    rows = ids(300)
    shuffled = [rows[index] for index in np.random.default_rng(5).permutation(300)]
    one, two = (extended(None, order, LabelBudget(0.9, None, kind)) for order in (rows, shuffled))
    assert named(one) == named(two)
    assert [chunk.task for chunk in one.chunks_of(0)] == [chunk.task for chunk in two.chunks_of(0)]


def test_every_target_is_labelled_once_without_an_example() -> None:
    plan = planned(200)
    base = plan.entries.target[plan.entries.split == BASE]
    assert sorted(base) == sorted({*plan.entries.target[plan.entries.split != BASE]})


def test_chunks_have_one_source_at_most_256_targets_and_those_without_a_source_come_first() -> None:
    plan = planned(700, 1.0, kind="block")
    chunks = [chunk.task for chunk in plan.chunks_of(0)]
    assert [chunk.index for chunk in chunks] == list(range(plan.chunks))
    assert max(len(chunk.targets) for chunk in chunks) == CHUNK_TARGETS
    without = [chunk.index for chunk in chunks if chunk.source is None]
    assert without == list(range(len(without)))
    entries = plan.entries
    for chunk in plan.chunks_of(0):
        assert tuple(plan.target_ids[code] for code in entries.target[chunk.positions]) == chunk.task.targets
        sources = {plan.source_ids[code] if code >= 0 else None for code in entries.source[chunk.positions]}
        assert sources == {chunk.source} == {chunk.task.source}


def test_full_passes_count_every_pair_but_the_diagonal_and_the_targets_alone() -> None:
    assert planned(50).full_passes(relative=True) == 50 * 49 + 50
    assert planned(50).full_passes(relative=False) == 50 * 49


@pytest.mark.parametrize("kind", ["block", "scatter"])
@pytest.mark.parametrize("n", [20, 21, 37, 60])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 1.0])
def test_small_pools_get_every_split(n: int, share: float, kind: str) -> None:
    plan = planned(n, share, kind=kind)
    found = describe(plan)
    assert min(found.values()) > 0
    held = len(plan.roles.test_targets) + len(plan.roles.validation_targets)
    most = (n - held) * (n - held - 1)
    side = max(2, round(share * n))
    assert found["train"] <= min(most, side * side)
    if kind == "scatter":
        assert found["train"] == min(most, side * side)


def test_all_labels_leave_no_free_training_pair() -> None:
    plan = planned(60, 1.0)
    held = len(plan.roles.test_targets) + len(plan.roles.validation_targets)
    assert describe(plan)["train"] == (60 - held) * (59 - held)


@pytest.mark.parametrize("count", [4, 97, 1000, 3001])
def test_a_count_of_scattered_labels_is_met_exactly(count: int) -> None:
    assert describe(planned(200, None, count))["train"] == count


def test_a_count_of_block_labels_is_the_nearest_square() -> None:
    assert 31 * 31 - 31 <= describe(planned(200, None, 1000, "block"))["train"] <= 32 * 32


@settings(max_examples=25)
@given(
    kind=st.sampled_from(["block", "scatter"]),
    n=st.integers(20, 90),
    more_rows=st.integers(0, 60),
    share=st.floats(0.02, 1.0),
    raised=st.floats(0.0, 0.5),
    seed=st.integers(0, 99),
)
def test_growth_keeps_what_exists_and_reaches_what_was_asked(
    kind: str, n: int, more_rows: int, share: float, raised: float, seed: int
) -> None:
    plan = planned(n, share, kind=kind, seed=seed)
    budget = LabelBudget(min(1.0, share + raised), None, kind)
    grown = extended(plan, ids(n + more_rows), budget, seed)
    assert grown.generations[: len(plan.generations)] == plan.generations
    assert grown.source_ids[:n] == plan.source_ids
    assert set(plan.roles.test_targets) <= set(grown.roles.test_targets)
    assert len(named(grown)) == (grown.entries.source >= 0).sum()
    trained = {item for pair in named(grown, TRAIN) for item in pair}
    assert not trained & {*grown.roles.test_targets, *grown.roles.validation_targets}
    assert (np.diff(np.unique(grown.entries.chunk)) == 1).all()
    held = len(grown.roles.test_targets) + len(grown.roles.validation_targets)
    free = len(grown.target_ids) - held
    asked = min(budget.pairs(len(grown.target_ids), len(grown.source_ids)), free * (free - 1))
    if kind == "scatter":
        assert describe(grown)["train"] == max(asked, describe(plan)["train"])


def test_growth_by_labels_stays_even() -> None:
    plan = extended(planned(300, 0.1), ids(300), LabelBudget(0.2, None))
    counts = training_counts(plan, "target")
    assert counts.max() - counts.min() <= 1


def test_few_new_rows_do_not_swallow_the_new_labels() -> None:
    # The four new rows alone cannot take 50 pairs among themselves; the rest goes to older rows.
    plan = planned(60, None, 300)
    assert describe(extended(plan, ids(64), LabelBudget(None, 350)))["train"] == 350


def test_nearly_all_pairs_can_be_topped_up_to_all() -> None:
    plan = extended(planned(40, 0.8), ids(40), LabelBudget(1.0, None))
    held = len(plan.roles.test_targets) + len(plan.roles.validation_targets)
    assert describe(plan)["train"] == (40 - held) * (39 - held)


def test_growing_by_nothing_adds_nothing() -> None:
    plan = planned(80)
    assert extended(plan, ids(80), LabelBudget(0.1, None)) == plan


def test_new_rows_that_need_no_label_still_widen_the_axes() -> None:
    plan = planned(400, None, 900)
    grown = extended(plan, ids(410), LabelBudget(None, 900))
    assert len(grown.source_ids) == 410
    assert len(grown.generations) == 2
    assert len(grown.generations[1]) == 0


def test_fewer_labels_than_exist_are_refused_with_both_numbers() -> None:
    with pytest.raises(UsageError, match=r"400 training labels, and --labels asks for 100"):
        extended(planned(200, 0.1), ids(200), LabelBudget(0.05, None))


def test_earlier_rows_have_to_come_first() -> None:
    with pytest.raises(UsageError, match="come first"):
        extended(planned(40), ids(50)[::-1], LabelBudget(0.1, None))


def test_a_pool_below_twenty_rows_is_refused() -> None:
    with pytest.raises(DataError, match=r"19 usable rows.*at least 20"):
        planned(19)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [("5%", (0.05, None)), (" 100 % ", (1.0, None)), ("0.05", (0.05, None)), ("4000", (None, 4000)), ("4", (None, 4))],
)
def test_labels_are_shares_or_counts(text: str, parsed: tuple[float | None, int | None]) -> None:
    amount = LabelAmount.parse(text)
    assert (amount.share, amount.count) == parsed


@pytest.mark.parametrize("text", ["0%", "-5%", "101%", "0", "3", "-1", "0.0", "1.5", "nan%"])
def test_labels_that_cannot_be_met(text: str) -> None:
    with pytest.raises(InfeasibleError, match="--labels"):
        LabelAmount.parse(text)


@pytest.mark.parametrize("text", ["", "many", "%", "5 percent", "Auto"])
def test_labels_that_cannot_be_read_show_examples(text: str) -> None:
    with pytest.raises(UsageError, match=r"5%.*number of pairs"):
        LabelAmount.parse(text)


def test_fewer_test_items_can_be_asked_for() -> None:
    plan = extended(None, ids(400), replace(LabelBudget(0.1, None), test_items=5, validation_items=4))
    assert describe(plan)["test"] == 5 * 4
    assert describe(plan)["validation"] == 4 * 3
