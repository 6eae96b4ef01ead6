import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nncift.core.pairs import UtilityMatrix
from nncift.errors import InfeasibleError, UsageError
from nncift.selection import Rules, select
from nncift.selection.facility import FacilityLocation
from nncift.selection.quota import Quota, QuotaBound, one_column

GROUP = {f"s{i}": "ab"[i % 2] if i < 6 else "c" for i in range(8)}


def quota(*texts: str) -> Quota:
    limits = one_column(texts)
    return Quota(limits[0].column, limits, GROUP)


def random_matrix(seed: int, n: int = 8) -> UtilityMatrix:
    values = np.random.default_rng(seed).integers(0, 9, size=(5, n)).astype(np.float32)
    return UtilityMatrix(tuple(f"t{i}" for i in range(5)), tuple(f"s{i}" for i in range(n)), np.asfortranarray(values))


def test_rows_that_must_be_in_come_first_and_the_rest_adds_to_them() -> None:
    utility = UtilityMatrix(("t0", "t1"), ("s0", "s1", "s2"), np.array([[9, 1, 8], [0, 5, 0]], np.float32, order="F"))
    subset = select(utility, 2, rules=Rules(include=frozenset({"s2"})))
    assert subset.ids == ("s2", "s1")
    assert subset.reasons["s2"].startswith("Required by --include at rank 1 of 2")


@pytest.mark.parametrize("objective", ["fl", "topk", "random", "fl2mi"])
def test_excluded_rows_stay_out_and_say_so(objective: str) -> None:
    subset = select(random_matrix(0), 4, objective, rules=Rules(exclude=frozenset({"s1", "s2"})))
    assert not {"s1", "s2"} & set(subset.ids)
    assert len(subset) == 4
    assert subset.reasons["s1"].startswith("Not chosen: must not be in")


def test_an_excluded_row_is_still_a_target() -> None:
    ids = ("a", "b")
    utility = UtilityMatrix(ids, ids, np.array([[3, 0], [0, 0]], np.float32, order="F"))
    assert select(utility, 1, rules=Rules(exclude=frozenset({"a"}))).final_gain["a"] == 3


@pytest.mark.parametrize("objective", ["fl", "topk", "random"])
@given(seed=st.integers(0, 10_000), k=st.integers(3, 8))
@settings(max_examples=25)
def test_quotas_hold_and_every_place_is_filled(objective: str, seed: int, k: int) -> None:
    budget = quota("kind:min=1,max=60%")
    rules = Rules(quota=budget)
    try:
        rules.check(tuple(GROUP), k)
    except InfeasibleError:
        bounds = [budget.bounds(name, k) for name in "abc"]
        assert sum(min(most, size) for (_, most), size in zip(bounds, (3, 3, 2), strict=True)) < k
        return
    subset = select(random_matrix(seed), k, objective, seed, rules=rules)
    assert len(subset) == k
    for name in "abc":
        least, most = budget.bounds(name, k)
        assert least <= sum(GROUP[item] == name for item in subset.ids) <= most


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20)
def test_without_a_binding_rule_nothing_changes(seed: int) -> None:
    utility = random_matrix(seed)
    plain = select(utility, 4)
    loose = Rules(quota=quota("kind:min=0%,max=100%"))
    priced = Rules(cost=dict.fromkeys(utility.source_ids, 7), capacity=28)
    assert select(utility, 4, rules=loose).ids == plain.ids == select(utility, 8, rules=priced).ids


@given(seed=st.integers(0, 10_000))
@settings(max_examples=30)
def test_tokens_are_kept_and_the_bound_holds(seed: int) -> None:
    random = np.random.default_rng(seed)
    utility = random_matrix(seed)
    cost = {item: int(c) for item, c in zip(utility.source_ids, random.integers(1, 9, 8), strict=True)}
    rules = Rules(cost=cost, capacity=12)
    subset = select(utility, 8, rules=rules)
    spent = sum(cost[item] for item in subset.ids)
    problem = FacilityLocation().pose(utility)
    sets = [some for r in range(9) for some in itertools.combinations(utility.source_ids, r)]
    optimum = max(problem.value(some) for some in sets if sum(cost[item] for item in some) <= 12)
    assert spent <= 12
    # The better of both greedy rules is at least (1 - 1/e) / 2 of the best (Leskovec et al. 2007).
    assert (1 - 1 / np.e) / 2 * optimum <= subset.value <= optimum <= subset.upper_bound
    assert all(cost[item] > 12 - spent for item in subset.final_gain)


def test_the_better_of_gain_and_gain_per_token_is_taken() -> None:
    # Per token s0 is best and then fills the budget so that s1 no longer fits; by gain s1 comes first.
    utility = UtilityMatrix(("t0", "t1"), ("s0", "s1"), np.array([[2, 0], [0, 10]], np.float32, order="F"))
    dear = Rules(cost={"s0": 1, "s1": 10}, capacity=10)
    assert select(utility, 2, rules=dear).ids == ("s1",)
    # By gain s0 comes first and leaves no room for the two that together serve more.
    values = np.array([[3, 0, 0], [0, 2, 0], [0, 0, 2]], np.float32, order="F")
    utility = UtilityMatrix(("t0", "t1", "t2"), ("s0", "s1", "s2"), values)
    subset = select(utility, 3, rules=Rules(cost={"s0": 4, "s1": 2, "s2": 2}, capacity=4))
    assert subset.ids == ("s1", "s2")
    assert subset.reasons["s1"].startswith("Chosen by gain per token at rank 1 of 2")


def test_highest_means_within_tokens() -> None:
    utility = UtilityMatrix(("t",), ("s0", "s1", "s2"), np.array([[5, 3, 3]], np.float32, order="F"))
    rules = Rules(cost={"s0": 10, "s1": 5, "s2": 5}, capacity=10)
    # Above the lowest mean, s0 is worth 2 and the two others nothing.
    assert select(utility, 3, "topk", rules=rules).ids == ("s0",)


@pytest.mark.parametrize(
    ("rules", "k", "said"),
    [
        (Rules(include=frozenset({"s0"}), exclude=frozenset({"s0"})), 2, "both must and must not be chosen: s0"),
        (Rules(include=frozenset({"s0", "s1"})), 1, "2 rows must be chosen, and the budget is 1"),
        (Rules(exclude=frozenset({"s0"})), 8, "1 must not be chosen, and 7 are left"),
        (Rules(quota=quota("kind:min=3")), 8, "at least 3 of 8 rows with kind c, and there are 2"),
        (Rules(quota=quota("kind:min=3", "kind=c:min=0")), 5, "ask for 6 rows together, and the budget is 5"),
        (Rules(quota=quota("kind:max=20%")), 5, "allow 3 rows together, and the budget is 5"),
        (Rules(quota=quota("kind=a:min=50%,max=20%")), 4, "allows 0 of 4 rows with kind a, and its minimum is 2"),
        (
            Rules(quota=quota("kind=a:max=1"), include=frozenset({"s0", "s2"})),
            4,
            "allows 1 of 4 rows with kind a, and 2 rows of it must be chosen",
        ),
        (Rules(cost=dict.fromkeys(GROUP, 5), capacity=4), 8, "the shortest row alone has 5"),
        (
            Rules(cost=dict.fromkeys(GROUP, 5), capacity=9, include=frozenset({"s0", "s1"})),
            8,
            "rows that must be chosen have 10 tokens, and the budget is 9",
        ),
    ],
)
def test_conflicts_are_named(rules: Rules, k: int, said: str) -> None:
    with pytest.raises(InfeasibleError, match=said):
        rules.check(tuple(GROUP), k)


@pytest.mark.parametrize("rules", [Rules(include=frozenset({"nowhere"})), Rules(exclude=frozenset({"nowhere"}))])
def test_unknown_ids_are_refused(rules: Rules) -> None:
    with pytest.raises(UsageError, match="not in the pool: nowhere"):
        rules.check(tuple(GROUP), 2)


def test_quotas_do_not_join_with_tokens_and_unknown_values_are_refused() -> None:
    with pytest.raises(UsageError, match="cannot be joined"):
        Rules(quota=quota("kind:min=1"), cost=dict.fromkeys(GROUP, 1), capacity=4).check(tuple(GROUP), 8)
    with pytest.raises(UsageError, match="kind=z, and no row has it; there are a, b, c"):
        Rules(quota=quota("kind=z:min=1")).check(tuple(GROUP), 2)


@pytest.mark.parametrize(
    "text", ["", "source", "source:", ":min=5%", "source:min=5%,min=6%", "source:mean=5%", "a:min=-1"]
)
def test_a_quota_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected COLUMN:min"):
        QuotaBound.parse(text)


def test_a_quota_is_read_and_shares_round_to_what_they_promise() -> None:
    budget = quota("kind:min=10%,max=40%", "kind=c:max=2")
    assert budget.bounds("a", 7) == (1, 2)
    assert budget.bounds("c", 7) == (1, 2)
    assert budget.bounds("c", 30) == (3, 2)
    assert QuotaBound.parse("a:b=x:y:max=3").column == "a:b"
    with pytest.raises(UsageError, match="several columns"):
        one_column(["a:min=1", "b:min=1"])


def test_a_group_whose_rows_must_all_be_left_out_keeps_no_place() -> None:
    quota = Quota("g", (QuotaBound.parse("g:min=1"),), {"a": "x", "b": "x", "c": "y"})
    rules = Rules(exclude=frozenset({"c"}), quota=quota)
    rules.check(["a", "b", "c"], 2)
    assert rules.take(["c", "b", "a"], 2) == ["b", "a"]
