import itertools
import os
import subprocess
import sys
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nncift.core.arrays import Floats
from nncift.core.pairs import UtilityMatrix
from nncift.errors import DataError, InfeasibleError, UsageError
from nncift.selection import select
from nncift.selection.objectives import Scale, facility_location_value, similarity

NAN = float("nan")


def matrix(rows: npt.ArrayLike, targets: Iterable[str] = (), sources: Iterable[str] = ()) -> UtilityMatrix:
    values = np.asfortranarray(np.array(rows, dtype=np.float32))
    n_targets, n_sources = values.shape
    return UtilityMatrix(
        tuple(targets) or tuple(f"t{i}" for i in range(n_targets)),
        tuple(sources) or tuple(f"s{i}" for i in range(n_sources)),
        values,
    )


def clustered(n: int, seed: int = 0) -> UtilityMatrix:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(n // 20, 8))[rng.integers(0, n // 20, n)] + 0.5 * rng.normal(size=(n, 8))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    ids = [f"r{i:04d}" for i in range(n)]
    return matrix(points @ points.T, ids, ids)


def plain_coverage(values: Floats, chosen: list[int]) -> int:
    """Facility location by its definition, in integers (the matrices here hold small integers)."""
    low = np.nanmin(values) if np.isfinite(values).any() else 0
    rows = [[int(v - low) for v in row[chosen] if not np.isnan(v)] for row in values]
    return sum(max(row, default=0) for row in rows)


def plain_greedy(values: Floats, k: int) -> tuple[list[int], int]:
    """Return the sources that greedy takes, and how many of them were taken by mean utility since none added anything."""
    chosen: list[int] = []
    by_score = 0
    for _ in range(k):
        rest = [s for s in range(values.shape[1]) if s not in chosen]
        best = max(rest, key=lambda s: (plain_coverage(values, [*chosen, s]), -s))
        if plain_coverage(values, [*chosen, best]) == plain_coverage(values, chosen):
            best = max(rest, key=lambda s: (plain_mean(values[:, s]), -s))
            by_score += 1
        chosen.append(best)
    return chosen, by_score


def plain_mean(column: Floats) -> float:
    return float(np.nanmean(column)) if np.isfinite(column).any() else -np.inf


small = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 6), st.integers(1, 9)),
    elements=st.one_of(st.integers(-3, 3).map(float), st.just(NAN)),
)


def test_choices_gains_and_bound_by_hand() -> None:
    # Lowest utility -1, so the similarities are s0: 3 0 0, s1: 0 2 2, s2: 2 1 0.
    subset = select(matrix([[2, -1, 1], [-1, 1, 0], [-1, 1, -1]]), 2)
    assert subset.ids == ("s1", "s0")
    assert subset.gains.tolist() == [4, 3]
    assert subset.value == 7
    assert subset.upper_bound == 7
    assert subset.final_gain == {"s2": 0}
    assert select(matrix([[2, -1, 1], [-1, 1, 0], [-1, 1, -1]]), 1).upper_bound == 4 + 3


def test_reasons_by_hand() -> None:
    subset = select(matrix([[2, -1, 1], [-1, 1, 0], [-1, 1, -1]]), 1)
    assert subset.reasons == {
        "s1": "Chosen at rank 1 of 1: adds 4 of coverage; serves 2 of 3 targets better than all rows before it, "
        "most of all t1 (by 2).",
        "s0": "Not chosen: would still add 3 of coverage, the last chosen row added 4; the target that it serves best, "
        "t0 (utility 2), is served by no chosen row.",
        "s2": "Not chosen: would still add 2 of coverage, the last chosen row added 4; the target that it serves best, "
        "t0 (utility 1), is served by no chosen row.",
    }


def test_reason_names_the_selected_rival() -> None:
    subset = select(matrix([[5, 3, 0], [5, 4, 0], [0, 0, 2]]), 2)
    assert subset.ids == ("s0", "s2")
    assert "t1 (utility 4), is served best by s0 (rank 1, utility 5)" in subset.reasons["s1"]


@given(small, st.data())
@settings(max_examples=80)
def test_equals_plain_greedy_and_keeps_its_promises(values: Floats, data: st.DataObject) -> None:
    n = values.shape[1]
    k = data.draw(st.integers(1, n))
    subset = select(matrix(values), k)
    expected, by_score = plain_greedy(values, k)
    assert subset.ids == tuple(f"s{s}" for s in expected)
    assert subset.by_score == by_score
    assert (np.diff(subset.gains) <= 0).all()
    assert subset.gains.sum() == subset.value
    assert subset.value == plain_coverage(values, [int(item[1:]) for item in subset.ids])
    assert subset.value == facility_location_value(matrix(values), subset.ids)
    optimum = max(plain_coverage(values, list(some)) for some in itertools.combinations(range(n), k))
    assert (1 - 1 / np.e) * optimum <= subset.value <= optimum <= subset.upper_bound
    assert set(subset.reasons) == {f"s{s}" for s in range(n)}
    assert set(subset.final_gain) == set(subset.reasons) - set(subset.ids)


@given(st.integers(0, 1000))
@settings(max_examples=10)
def test_order_of_rows_and_columns_changes_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    utility = clustered(60, seed)
    t, s = rng.permutation(60), rng.permutation(60)
    shuffled = matrix(
        utility.values[np.ix_(t, s)], [utility.target_ids[i] for i in t], [utility.source_ids[i] for i in s]
    )
    a, b = select(utility, 20), select(shuffled, 20)
    assert a.ids == b.ids
    assert a.gains.tolist() == b.gains.tolist()
    assert a.reasons == b.reasons


def test_gains_brought_up_to_date_by_changes_equal_gains_from_scratch() -> None:
    # Large enough for both ways of updating a gain, the ring of changes and the whole column.
    utility = clustered(400)
    sim = similarity(utility)
    subset = select(utility, 120)
    best = np.zeros(400, np.int64)
    for item, gain in zip(subset.ids, subset.gains, strict=True):
        every = np.maximum(sim.levels - best[:, None], 0).sum(axis=0)
        first = int(np.argmax(every))
        assert (sim.source_ids[first], every[first] * sim.scale.unit) == (item, gain)
        best = np.maximum(best, sim.levels[:, first])


def test_ties_go_to_the_lower_id() -> None:
    assert select(matrix([[1, 1, 1, 0]], sources="cbad"), 2).ids == ("a", "b")


def test_diagonal_of_nan_gives_no_coverage() -> None:
    # Serving itself, s0 wins; masked, it serves nothing and s1 wins.
    rows = [[9, 2], [1, 3]]
    assert select(matrix(rows), 1).ids == ("s0",)
    masked = select(matrix([[NAN, 2], [1, NAN]]), 1)
    assert masked.ids == ("s1",)
    assert masked.value == 1


def test_source_without_any_utility_comes_last_and_says_so() -> None:
    subset = select(matrix([[NAN, 1, 2], [NAN, 2, 1]]), 2)
    assert subset.ids == ("s1", "s2")
    assert "no utility is known for it" in subset.reasons["s0"]


@pytest.mark.parametrize("value", [0.0, 0.7, NAN])
def test_equal_utilities_are_ordered_by_id(value: float) -> None:
    subset = select(matrix(np.full((3, 4), value), sources="dbca"), 4)
    assert subset.ids == ("a", "b", "c", "d")
    assert subset.value == 0
    assert subset.share_of_optimum == 1


@pytest.mark.parametrize("bad", [float("inf"), float("-inf")])
@pytest.mark.parametrize("objective", ["fl", "topk", "random"])
def test_infinity_is_refused_with_its_ids(bad: float, objective: str) -> None:
    with pytest.raises(DataError, match="target t1 with source s2"):
        select(matrix([[0.0, 1.0, 2.0], [0.0, 1.0, bad]]), 1, objective)


def test_ids_that_occur_twice_are_refused() -> None:
    with pytest.raises(DataError, match="source ids that occur twice: a"):
        select(matrix([[1, 2, 3]], sources="aba"), 1)


@pytest.mark.parametrize("objective", ["fl", "topk", "random"])
def test_no_candidate_one_candidate_all_candidates(objective: str) -> None:
    assert select(UtilityMatrix((), (), np.empty((0, 0), np.float32)), 0, objective).ids == ()
    assert select(matrix([[0.5]]), 1, objective).ids == ("s0",)
    everything = select(matrix([[1, 2, 3], [3, 1, 2]]), 3, objective)
    assert sorted(everything.ids) == ["s0", "s1", "s2"]
    assert everything.upper_bound == everything.value
    assert not everything.final_gain


@pytest.mark.parametrize("k", [-1, 0, 3])
def test_impossible_counts_are_refused(k: int) -> None:
    with pytest.raises(InfeasibleError, match="1 to 2 rows"):
        select(matrix([[1, 2]]), k)


def test_unknown_objective_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'topk'"):
        select(matrix([[1]]), 1, "topkk")


def test_duplicates_by_the_thousand() -> None:
    rng = np.random.default_rng(0)
    two = rng.normal(size=(50, 2)).astype(np.float32)
    subset = select(matrix(two[:, np.arange(4000) % 2], sources=[f"s{i:04d}" for i in range(4000)]), 1200)
    assert sorted(subset.ids[:2]) == ["s0000", "s0001"]
    # The rest adds nothing: the column with the higher mean comes first, its copies by id.
    better = int(two.mean(axis=0).argmax())
    assert subset.ids[2:] == tuple(f"s{i:04d}" for i in range(2 + better, 2400, 2) if i > 1)[:1198]
    assert (subset.gains[2:] == 0).all()
    assert subset.by_score == 1198


def test_memory_order_does_not_matter() -> None:
    utility = clustered(60)
    by_row = UtilityMatrix(utility.target_ids, utility.source_ids, np.ascontiguousarray(utility.values))
    assert select(by_row, 10).ids == select(utility, 10).ids


def test_similarity_is_utility_minus_its_minimum_without_clipping() -> None:
    sim = similarity(matrix([[-0.25, NAN], [0.5, 1.25]], "ab", "xy"))
    assert (sim.levels * sim.scale.unit).tolist() == [[0, 0], [0.75, 1.5]]
    assert sim.known.tolist() == [2, 1]


def test_matrices_of_one_objective_share_a_scale() -> None:
    low, high = matrix([[-1, 0]]), matrix([[0, 3]])
    scale = Scale.of(low, high)
    assert scale.low == -1
    assert (similarity(high, scale).levels * scale.unit).tolist() == [[1, 4]]


def test_levels_are_as_fine_as_float32() -> None:
    values = np.random.default_rng(0).uniform(-1, 1, size=(30, 30)).astype(np.float32)
    sim = similarity(matrix(values, sources=[f"s{i:02d}" for i in range(30)], targets=[f"t{i:02d}" for i in range(30)]))
    assert np.abs(sim.levels * sim.scale.unit - (values.astype(np.float64) - values.min())).max() <= sim.scale.unit / 2


@pytest.mark.parametrize("seed", range(3))
def test_levels_in_the_memory_of_the_matrix_are_the_same(seed: int) -> None:
    random = np.random.default_rng(seed)
    values = random.normal(size=(7, 9)).astype(np.float32)
    values[random.random((7, 9)) < 0.2] = NAN
    ids = [f"r{i}" for i in random.permutation(9)]
    fresh = similarity(matrix(values, ids[:7], ids))
    given = matrix(values, ids[:7], ids)
    reused = similarity(given, reuse=True)
    assert np.shares_memory(reused.levels, given.values)
    assert (reused.source_ids, reused.target_ids) == (fresh.source_ids, fresh.target_ids)
    assert np.array_equal(reused.levels, fresh.levels)
    assert reused.known.tolist() == fresh.known.tolist()


def test_values_of_unknown_ids_are_refused() -> None:
    with pytest.raises(UsageError, match="nowhere"):
        facility_location_value(matrix([[1, 2]]), ["s0", "nowhere"])


def test_selection_loads_neither_torch_nor_numba_too_early() -> None:
    code = (
        "import sys, nncift.selection as s; assert 'numba' not in sys.modules; s.selector('fl');"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))
