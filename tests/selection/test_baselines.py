from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from nncift.core.pairs import UtilityMatrix
from nncift.errors import InfeasibleError, UsageError
from nncift.selection import select
from nncift.selection.controls import embedding_ids, longest_ids, random_ids, similarities, stratified_ids
from nncift.selection.objectives import facility_location_value

IDS = [f"r{i:03d}" for i in range(200)]


def test_random_draws_without_replacement_and_follow_the_seed() -> None:
    drawn = random_ids(IDS, 50, seed=3)
    assert len(set(drawn)) == 50
    assert drawn == random_ids(IDS[::-1], 50, seed=3)
    assert drawn != random_ids(IDS, 50, seed=4)
    assert drawn[:10] == random_ids(IDS, 10, seed=3)


def test_random_is_about_uniform() -> None:
    drawn = Counter(item for seed in range(300) for item in random_ids(IDS[:10], 3, seed))
    assert all(60 <= drawn[item] <= 120 for item in IDS[:10])


def test_random_control_is_valued_as_facility_location() -> None:
    values = np.asfortranarray(np.random.default_rng(0).normal(size=(30, 200)).astype(np.float32))
    utility = UtilityMatrix(tuple(f"t{i}" for i in range(30)), tuple(IDS), values)
    control, greedy = select(utility, 20, "random", seed=5), select(utility, 20)
    assert control.ids == tuple(random_ids(IDS, 20, seed=5))
    assert control.value == facility_location_value(utility, control.ids)
    assert control.value < greedy.value <= control.upper_bound
    assert control.reasons[control.ids[0]].startswith("Drawn at random (seed 5) at rank 1 of 20: adds ")


def test_strata_keep_their_shares_by_largest_remainder() -> None:
    # 10 of 24 rows: 12 * 10 / 24 = 5, 7 * 10 / 24 = 2.92, 5 * 10 / 24 = 2.08.
    strata = ["a"] * 12 + ["b"] * 7 + ["c"] * 5
    chosen = stratified_ids(IDS[:24], strata, 10, seed=0)
    source = dict(zip(IDS, strata, strict=False))
    assert Counter(source[item] for item in chosen) == {"a": 5, "b": 3, "c": 2}
    assert chosen == stratified_ids(IDS[:24][::-1], strata[::-1], 10, seed=0)
    assert chosen != stratified_ids(IDS[:24], strata, 10, seed=1)


def test_strata_with_equal_remainders_go_by_name() -> None:
    assert stratified_ids(["x", "y"], ["second", "first"], 1, seed=0) == ["y"]
    assert sorted(stratified_ids(["x", "y"], ["second", "first"], 2, seed=0)) == ["x", "y"]


def test_longest_first_and_ties_by_id() -> None:
    assert longest_ids(["d", "c", "b", "a"], [3, 9, 3, 1], 3) == ["c", "b", "d"]


def test_embeddings_choose_one_of_each_cluster_first_and_no_row_for_itself() -> None:
    # Rows e, d, b are alike, f and a are, and c is like none: b serves two others, a one, then e or d serves b again.
    embeddings = np.zeros((6, 3), np.float32)
    embeddings[[0, 1, 2, 3, 4, 5], [1, 0, 0, 2, 0, 1]] = 1
    assert embedding_ids(list("fedcba"), embeddings, 3) == ["b", "a", "d"]


def test_the_diagonal_of_similarities_is_masked_where_the_axes_are_the_same_rows() -> None:
    embeddings = np.array([[1, 0], [0.6, 0.8], [0, 1]], np.float32)
    plain = similarities("xyz", "abc", embeddings, embeddings, shared=False).values
    np.testing.assert_allclose(plain, [[1, 0.6, 0], [0.6, 1, 0.8], [0, 0.8, 1]], atol=1e-6)
    masked = similarities("abc", "abc", embeddings, embeddings, shared=True).values
    np.testing.assert_array_equal(np.isnan(masked), np.eye(3, dtype=bool))
    np.testing.assert_array_equal(masked[~np.eye(3, dtype=bool)], plain[~np.eye(3, dtype=bool)])


def test_embeddings_do_not_depend_on_the_order_of_rows() -> None:
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(200, 8)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    order = rng.permutation(200)
    assert embedding_ids(IDS, embeddings, 30) == embedding_ids([IDS[i] for i in order], embeddings[order], 30)


@pytest.mark.parametrize("k", [0, 4])
def test_impossible_counts_are_refused(k: int) -> None:
    ids, ones = ["a", "b", "c"], np.ones((3, 1), np.float32)
    choices: list[Callable[[], list[str]]] = [
        lambda: random_ids(ids, k, 0),
        lambda: stratified_ids(ids, ids, k, 0),
        lambda: longest_ids(ids, [1, 2, 3], k),
        lambda: embedding_ids(ids, ones, k),
    ]
    for choose in choices:
        with pytest.raises(InfeasibleError):
            choose()


def test_one_entry_per_id() -> None:
    with pytest.raises(UsageError, match="2 ids and 1 lengths"):
        longest_ids(["a", "b"], [1], 1)
