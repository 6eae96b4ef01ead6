"""Round-robin and highest utility against their definitions, done one turn at a time in plain Python."""

import itertools
import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nncift.core.arrays import Floats
from nncift.core.pairs import UtilityMatrix
from nncift.core.seeds import shuffled
from nncift.errors import InfeasibleError, UsageError
from nncift.selection import Given, Rules, pose, select
from nncift.selection import round_robin as module
from nncift.selection.objectives import Reference
from nncift.selection.problem import Sets, default_objective
from nncift.selection.quota import Quota, QuotaBound
from nncift.selection.rules import NO_RULES
from nncift.selection.sparse import Graph
from nncift.selection.sparse_round_robin import SparseTurns, highest_on
from nncift.selection.topk import best_subtask

NAN = float("nan")


def matrix(values: npt.ArrayLike, source: str = "s") -> UtilityMatrix:
    rows = np.asfortranarray(np.array(values, np.float32))
    targets, sources = rows.shape
    return UtilityMatrix(tuple(f"t{i}" for i in range(targets)), tuple(f"{source}{i}" for i in range(sources)), rows)


def by_hand(
    utility: UtilityMatrix,
    k: int,
    seed: int = 0,
    subtask_of: Mapping[str, str] | None = None,
    rules: Rules = NO_RULES,
    existing: Floats | None = None,
) -> list[str]:
    """Return the rows that targets take in turn, by the words of the definition."""
    ids, values = list(utility.source_ids), utility.values
    score = {item: mean(values[:, s]) for s, item in enumerate(ids)}
    chosen = sorted(rules.include, key=lambda item: (-score[item], item))

    def may(item: str) -> bool:
        if item in chosen or item in rules.exclude:
            return False
        if rules.capacity is not None and sum(rules.cost[i] for i in [*chosen, item]) > rules.capacity:
            return False
        if rules.quota is None:
            return True
        count = {rules.quota.group[other]: 0 for other in ids if other not in rules.exclude}
        for other in [*chosen, item]:
            count[rules.quota.group[other]] += 1
        bounds = {name: rules.quota.bounds(name, k) for name in count}
        owed = sum(max(0, bounds[name][0] - count[name]) for name in count)
        return all(count[name] <= bounds[name][1] for name in count) and len(chosen) + 1 + owed <= k

    queues: dict[str, list[str]] = {}
    for item in shuffled(utility.target_ids, seed, "select", "turns"):
        queues.setdefault("" if subtask_of is None else subtask_of[item], []).append(item)
    groups = [queues[name] for name in shuffled(queues, seed, "select", "subtasks")]
    while any(groups) and len(chosen) < k:
        for queue in groups:
            for _ in range(len(queue)):
                target = queue.pop(0)
                t = utility.target_ids.index(target)
                enough = -math.inf if existing is None or np.isnan(existing[t]) else existing[t]
                known = [i for i in ids if not np.isnan(values[t, ids.index(i)]) and values[t, ids.index(i)] > enough]
                free = [item for item in known if may(item)]
                if free and len(chosen) < k:
                    chosen.append(min(free, key=lambda item: (-values[t, ids.index(item)], item)))
                    queue.append(target)
                    break
    for item in sorted(ids, key=lambda item: (-score[item], item)):
        if len(chosen) < k and may(item):
            chosen.append(item)
    return chosen


def mean(column: Floats) -> float:
    return float(np.nanmean(column)) if np.isfinite(column).any() else -math.inf


def mean_of_best(utility: UtilityMatrix, chosen: list[str], existing: Floats | None = None) -> float:
    """Return the mean over targets that have a utility of the best chosen one; the lowest of all where none is chosen."""
    parts: list[Floats] = [utility.values.ravel(), *([] if existing is None else [existing])]
    known = np.concatenate(parts)
    low = float(np.nanmin(known)) if np.isfinite(known).any() else 0.0
    columns = [utility.source_ids.index(item) for item in chosen]
    best = []
    for t, row in enumerate(utility.values):
        given_already = [] if existing is None or np.isnan(existing[t]) else [float(existing[t])]
        if np.isfinite(row).any() or given_already:
            best.append(max([float(x) for x in row[columns] if not np.isnan(x)] + given_already, default=low))
    return float(np.mean(best)) if best else low


entries = st.one_of(st.integers(-3, 4).map(float), st.just(NAN))
small = hnp.arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 9)), elements=entries)


@st.composite
def rules_of(draw: st.DrawFn, n: int) -> tuple[int, Rules]:
    """Draw a size and rules that can be kept."""
    ids = [f"s{i}" for i in range(n)]
    free = draw(st.permutations(ids))
    out = frozenset(free[: draw(st.integers(0, n - 1))])
    rest = [item for item in ids if item not in out]
    k = draw(st.integers(1, len(rest)))
    include = frozenset(draw(st.permutations(rest))[: draw(st.integers(0, min(2, k)))])
    kind = draw(st.sampled_from(["plain", "tokens", "quota"]))
    if kind == "tokens":
        cost = {item: draw(st.integers(1, 5)) for item in ids}
        capacity = sum(cost[item] for item in include) + draw(st.integers(5, 20))
        return n, Rules(include, out, None, cost, capacity)
    if kind == "quota":
        group = {item: "ab"[i % 2] for i, item in enumerate(ids)}
        quota = Quota(
            "g", (QuotaBound.parse(draw(st.sampled_from(["g=a:min=1", "g=a:max=1", "g:min=1", "g=b:max=50%"]))),), group
        )
        return k, Rules(include, out, quota)
    return k, Rules(include, out)


def possible(utility: UtilityMatrix, k: int, rules: Rules) -> bool:
    """Tell whether rules can be kept; what is refused is tested with the rules."""
    try:
        rules.check(utility.source_ids, k)
    except (InfeasibleError, UsageError):
        return False
    return True


@given(small, st.data())
@settings(max_examples=80, deadline=None)
def test_turns_are_those_of_the_definition_under_all_rules(values: Floats, data: st.DataObject) -> None:
    utility = matrix(values)
    k, rules = data.draw(rules_of(values.shape[1]))
    seed = data.draw(st.integers(0, 3))
    subtask_of = data.draw(st.sampled_from([None, {f"t{i}": "xyz"[i % 3 if i else 0] for i in range(len(values))}]))
    second = data.draw(st.one_of(st.none(), hnp.arrays(np.float32, (len(values), 1), elements=entries)))
    existing = None if second is None else second[:, 0].astype(np.float64)
    assume(possible(utility, k, rules))
    reference = None if second is None else Reference.of(matrix(second, "e"))
    subset = select(utility, k, "rr", seed, reference=reference, subtask_of=subtask_of, rules=rules)
    assert list(subset.ids) == by_hand(utility, k, seed, subtask_of, rules, existing)
    value = mean_of_best(utility, list(subset.ids), existing)
    assert subset.value == pytest.approx(value, abs=1e-6)
    assert pose(utility, "rr", Given(reference)).value(subset.ids) == pytest.approx(value, abs=1e-6)
    assert subset.gains.sum() + subset.floor == pytest.approx(subset.value, abs=1e-6)
    if rules.capacity is None:
        allowed = [item for item in utility.source_ids if item not in rules.exclude]
        every = [some for some in itertools.combinations(allowed, k) if rules.include <= set(some)]
        best = max(mean_of_best(utility, list(some), existing) for some in every)
        assert best <= subset.upper_bound + 1e-6
    assert set(subset.reasons) == set(utility.source_ids)
    assert set(subset.final_gain) == set(utility.source_ids) - set(subset.ids)
    for item, gain in subset.final_gain.items():
        assert gain == pytest.approx(mean_of_best(utility, [*subset.ids, item], existing) - value, abs=1e-6)


@given(small, st.data())
@settings(max_examples=60, deadline=None)
def test_a_graph_with_all_edges_takes_the_same_rows(values: Floats, data: st.DataObject) -> None:
    utility = matrix(values)
    k, rules = data.draw(rules_of(values.shape[1]))
    assume(possible(utility, k, rules))
    subtask_of = data.draw(st.sampled_from([None, {f"t{i}": "xy"[i % 2] for i in range(len(values))}]))
    graph = whole_graph(utility, data.draw(st.permutations(range(values.shape[1]))))
    problem = SparseTurns(graph, subtask_of=subtask_of)
    record = problem.choose(k, 1, rules)
    dense = select(utility, k, "rr", 1, subtask_of=subtask_of, rules=rules)
    assert record.ids == dense.ids
    assert record.by_score == dense.by_score
    for name in ("value", "upper_bound", "floor"):
        assert getattr(record, name) == pytest.approx(getattr(dense, name), abs=1e-6)
    assert record.final_gain == pytest.approx(dict(dense.final_gain), abs=1e-6)
    assert problem.value(record.ids) == pytest.approx(dense.value, abs=1e-6)
    assert set(record.reasons) == set(dense.reasons)
    assert all(record.reasons.values())


def whole_graph(utility: UtilityMatrix, order: list[int]) -> Graph:
    """Return a graph with an edge for every pair, in some order."""
    codes = np.tile(np.array(order, np.int32), (len(utility.target_ids), 1))
    return Graph(utility.target_ids, utility.source_ids, codes, np.ascontiguousarray(utility.values[:, order]))


@given(small, st.data())
@settings(max_examples=60, deadline=None)
def test_max_goes_by_the_highest_utility_under_all_rules(values: Floats, data: st.DataObject) -> None:
    utility = matrix(values)
    k, rules = data.draw(rules_of(values.shape[1]))
    assume(possible(utility, k, rules))
    highest = {f"s{s}": float(np.fmax.reduce(values[:, s])) for s in range(values.shape[1])}
    ranked = sorted(highest, key=lambda item: (-highest[item] if not math.isnan(highest[item]) else math.inf, item))
    subset = select(utility, k, "max", rules=rules)
    if rules.capacity is None:
        assert list(subset.ids) == rules.take(ranked, k)
    known = [highest[item] for item in subset.ids if not math.isnan(highest[item])]
    assert subset.value == pytest.approx(sum(known))
    assert subset.value <= subset.upper_bound + 1e-9
    there = highest_on(whole_graph(utility, list(range(values.shape[1])))).choose(k, 0, rules)
    assert (there.ids, there.value) == (subset.ids, subset.value)


def test_turns_by_hand() -> None:
    # Both want s0 first. Who comes first takes it; the other takes its second best.
    utility = matrix([[5, 4, 1], [6, 2, 3]])
    first = shuffled(["t0", "t1"], 0, "select", "turns")[0]
    subset = select(utility, 2, "rr")
    assert subset.ids == (("s0", "s2") if first == "t0" else ("s0", "s1"))
    assert subset.value == (5 + 6) / 2
    assert subset.upper_bound == (5 + 6) / 2
    assert subset.reasons["s0"].startswith(
        f"Taken at rank 1 of 2 in the turn of {first}, as its best row not yet taken"
    )
    left = ({"s0", "s1", "s2"} - set(subset.ids)).pop()
    assert "no target came to it in its turns; the target that it serves best" in subset.reasons[left]


def test_one_target_takes_its_rows_from_the_best_down() -> None:
    assert select(matrix([[1, 3, NAN, 2]]), 3, "rr").ids == ("s1", "s3", "s0")


def test_with_fewer_rows_than_targets_the_first_targets_of_the_order_take() -> None:
    values = np.eye(6, dtype=np.float32)
    order = shuffled([f"t{i}" for i in range(6)], 3, "select", "turns")
    assert select(matrix(values), 2, "rr", 3).ids == tuple(f"s{item[1:]}" for item in order[:2])


def test_subtasks_take_turns_whatever_their_size() -> None:
    # One row of the subtask y against five of x: each second turn is y's.
    values = np.zeros((6, 12), np.float32)
    values[5, 6:] = 10 - np.arange(6)
    values[:5, :6] = 5
    subset = select(matrix(values), 6, "rr", subtask_of={f"t{i}": "y" if i == 5 else "x" for i in range(6)})
    assert sum(item in {f"s{i}" for i in range(6, 12)} for item in subset.ids) == 3


def test_equal_utilities_go_by_id_in_every_turn() -> None:
    assert select(matrix(np.ones((3, 8))), 5, "rr").ids == ("s0", "s1", "s2", "s3", "s4")
    assert select(matrix(np.ones((3, 8))), 5, "max").ids == ("s0", "s1", "s2", "s3", "s4")


def test_missing_utilities_are_never_taken_by() -> None:
    # No target has a utility for s1 and s2: these come last, by score, which they lack, and so by id.
    subset = select(matrix([[NAN, NAN, NAN, 1], [2, NAN, NAN, NAN]]), 3, "rr")
    assert set(subset.ids[:2]) == {"s0", "s3"}
    assert (subset.ids[2], subset.by_score) == ("s1", 1)
    assert (
        subset.reasons["s1"]
        == "Taken by score at rank 3 of 3: no row adds anything to the 2 before it; no utility is known for it."
    )


def test_existing_rows_serve_their_targets_already() -> None:
    # t0 has 4 from an existing row: only s1 serves it better.
    reference = Reference.of(matrix([[4], [0]], "e"))
    subset = select(matrix([[4, 5, 3], [1, 2, 3]]), 2, "rr", reference=reference)
    assert subset.ids in (("s1", "s2"), ("s2", "s1"))
    assert subset.floor == (4 + 0) / 2
    assert subset.value == (5 + 3) / 2
    top = select(matrix([[4, 5, 3], [1, 2, 3]]), 1, "max", reference=reference)
    assert (top.ids, top.value) == (("s2",), 3)
    assert top.reasons["s2"] == "Chosen at rank 1 of 1: highest utility beyond the existing set's 3 for target t1."


def test_max_with_subtasks_is_the_best_subtasks_mean() -> None:
    utility = matrix([[4, 0, 1], [0, 0, 5], [0, 3, 0]])
    subtask_of = {"t0": "a", "t1": "a", "t2": "b"}
    subset = select(utility, 3, "max", subtask_of=subtask_of)
    # Means within a: 2, 0, 3; within b: 0, 3, 0.
    assert subset.gains.tolist() == [3, 3, 2]
    assert subset.ids == ("s1", "s2", "s0")
    assert best_subtask(utility, subtask_of).values.tolist() == [[2, 3, 3]]
    assert subset.reasons["s1"] == "Chosen at rank 1 of 3: highest utility 3 for subtask b."


def test_rows_on_no_edge_come_last_and_by_score() -> None:
    graph = Graph(("t0",), ("a", "b", "c", "d"), np.array([[2, -1]], np.int32), np.array([[0.5, NAN]], np.float32))
    score = {"a": 0.1, "b": 0.3, "c": 0.2, "d": NAN}
    found = SparseTurns(graph, score).choose(4)
    assert (found.ids, found.by_score) == (("c", "b", "a", "d"), 3)
    assert found.reasons["b"] == "Taken by score at rank 2 of 4: no target had a neighbour left after the 1 before it."
    highest = highest_on(graph, score).choose(4)
    assert (highest.ids, highest.by_score) == (("c", "b", "a", "d"), 3)
    assert highest.reasons["b"] == "Taken by score at rank 2 of 4: it is no target's neighbour."


@pytest.mark.parametrize("rounds", [0, 100])
@pytest.mark.parametrize("alike", [True, False])
def test_lists_that_run_out_are_filled_again(rounds: int, alike: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # Targets that all want the same rows use their lists up; short ones show it in little.
    monkeypatch.setattr(module, "_FEW_ROUNDS", rounds)
    monkeypatch.setattr(module, "_LISTED", 1)
    rng = np.random.default_rng(0)
    values = rng.integers(0, 50, size=(20, 300)).astype(np.float32)
    utility = matrix(np.tile(values[:1], (20, 1)) if alike else values)
    assert list(select(utility, 200, "rr", 5).ids) == by_hand(utility, 200, 5)


def test_a_larger_budget_goes_on_where_a_smaller_one_ended() -> None:
    utility = matrix(np.random.default_rng(1).normal(size=(7, 40)))
    assert select(utility, 30, "rr").ids[:12] == select(utility, 12, "rr").ids


def test_rows_that_must_be_in_are_no_targets_turn() -> None:
    utility = matrix([[3, 2, 1], [3, 2, 1]])
    subset = select(utility, 2, "rr", rules=Rules(include=frozenset({"s2"})))
    assert subset.ids == ("s2", "s0")
    assert subset.reasons["s2"] == "Required by --include at rank 1 of 2: adds 0 to the mean over targets."


def test_impossible_counts_are_refused() -> None:
    for objective in ("rr", "max"):
        with pytest.raises(InfeasibleError):
            select(matrix([[1, 2]]), 3, objective)


@pytest.mark.parametrize(
    ("teacher", "expected"),
    [(name, "rr") for name in ("rds", "less", "ekfac", "logra", "trackstar")]
    + [(name, "fl2mi") for name in ("delift", "ica")],
)
def test_targets_take_turns_by_default_where_a_row_has_a_vector(teacher: str, expected: str) -> None:
    assert default_objective(Sets(pointwise=False, target=True, existing=False), teacher) == expected
    assert default_objective(Sets(pointwise=False, target=False, existing=False), teacher) == "fl"
    assert default_objective(Sets(pointwise=False, target=True, existing=True), teacher) == "flcg"
