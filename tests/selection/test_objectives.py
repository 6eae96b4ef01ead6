"""flmi, fl2mi and flcg against their definitions, by brute force over every set of small problems."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nncift.core.arrays import Floats
from nncift.core.pairs import UtilityMatrix
from nncift.errors import DataError, UsageError
from nncift.selection import Given, pose, select
from nncift.selection.facility import ConditionalGain, MutualInformation, TargetMutualInformation
from nncift.selection.objectives import Reference

NAN = float("nan")
Value = Callable[[Sequence[int]], int]


def matrix(values: npt.ArrayLike, source: str = "s") -> UtilityMatrix:
    rows = np.asfortranarray(np.array(values, np.float32))
    targets, sources = rows.shape
    return UtilityMatrix(tuple(f"t{i}" for i in range(targets)), tuple(f"{source}{i}" for i in range(sources)), rows)


def definition(objective: str, utility: Floats, second: Floats) -> Value:
    """Return the objective as method.md writes it; matrices hold small integers or NaN."""
    used = [utility] if objective == "fl2mi" else [utility, second]
    known = [float(v) for part in used for v in part.ravel() if not np.isnan(v)]
    low = min(known, default=0.0)

    def sim(part: Floats, t: int, s: int) -> int:
        return 0 if np.isnan(part[t, s]) else int(part[t, s] - low)

    def value(chosen: Sequence[int]) -> int:
        rows = range(len(utility))
        best = [max((sim(utility, t, s) for s in chosen), default=0) for t in rows]
        if objective == "fl2mi":
            return sum(best) + sum(max(sim(utility, t, s) for t in rows) for s in chosen)
        other = [max(sim(second, t, e) for e in range(second.shape[1])) for t in rows]
        if objective == "flmi":
            return sum(min(b, o) for b, o in zip(best, other, strict=True))
        return sum(max(b - o, 0) for b, o in zip(best, other, strict=True))

    return value


def greedy(value: Value, utility: Floats, k: int) -> list[int]:
    """Take what adds most, and by mean utility where nothing adds."""
    chosen: list[int] = []
    mean = [float(np.nanmean(column)) if np.isfinite(column).any() else -np.inf for column in utility.T]
    for _ in range(k):
        rest = [s for s in range(len(mean)) if s not in chosen]
        best = max(rest, key=lambda s: (value([*chosen, s]), -s))
        if value([*chosen, best]) == value(chosen):
            best = max(rest, key=lambda s: (mean[s], -s))
        chosen.append(best)
    return chosen


entries = st.one_of(st.integers(-3, 5).map(float), st.just(NAN))


@st.composite
def problems(draw: st.DrawFn) -> tuple[Floats, Floats]:
    targets, sources, others = draw(st.integers(1, 5)), draw(st.integers(1, 8)), draw(st.integers(1, 3))
    return (
        draw(hnp.arrays(np.float32, (targets, sources), elements=entries)),
        draw(hnp.arrays(np.float32, (targets, others), elements=entries)),
    )


@pytest.mark.parametrize("objective", ["flmi", "fl2mi", "flcg"])
@given(problem=problems(), data=st.data())
@settings(max_examples=60)
def test_equals_plain_greedy_on_the_definition(
    objective: str, problem: tuple[Floats, Floats], data: st.DataObject
) -> None:
    utility, second = problem
    n = utility.shape[1]
    k = data.draw(st.integers(1, n))
    value = definition(objective, utility, second)
    reference = Reference.of(matrix(second, "q"))
    subset = select(matrix(utility), k, objective, reference=reference)
    chosen = [int(item[1:]) for item in subset.ids]
    assert chosen == greedy(value, utility, k)
    assert subset.value == value(chosen) == subset.gains.sum()
    assert pose(matrix(utility), objective, Given(reference)).value(subset.ids) == subset.value
    optimum = max(value(some) for some in itertools.combinations(range(n), k))
    assert (1 - 1 / np.e) * optimum <= subset.value <= optimum <= subset.upper_bound
    assert set(subset.final_gain) == {f"s{s}" for s in range(n)} - set(subset.ids)
    assert all(subset.final_gain[f"s{s}"] == value([*chosen, s]) - subset.value for s in set(range(n)) - set(chosen))


def test_mutual_information_by_hand() -> None:
    # The target set serves t0 to 2 and t1 to 0 (the lowest of all), so s0's 5 counts 2 and s1's 4 for t1 nothing.
    subset = select(matrix([[5, 1], [0, 4]]), 1, "flmi", reference=Reference.of(matrix([[2], [0]], "q")))
    assert (subset.ids, subset.value) == (("s0",), 2)


def test_conditional_gain_leaves_out_what_exists() -> None:
    reference = Reference.of(matrix([[5], [0]], "e"))
    subset = select(matrix([[5, 1], [0, 3]]), 1, "flcg", reference=reference)
    assert (subset.ids, subset.value) == (("s1",), 3)
    assert "t0 (utility 5), is served best by the existing set (utility 5)" in subset.reasons["s0"]


def test_one_constant_is_shared_with_the_second_set() -> None:
    # Alone, the first matrix would be shifted by 0; the second set's -2 shifts both.
    reference = Reference.of(matrix([[-2, 1]], "e"))
    assert select(matrix([[0, 3]]), 2, "flcg", reference=reference).value == 5 - 3
    assert select(matrix([[0, 3]]), 2, "flmi", reference=reference).value == 3


def test_weights_scale_the_second_set() -> None:
    utility, reference = matrix([[4, 2], [0, 2]]), Reference.of(matrix([[2], [0]], "q"))
    assert MutualInformation(eta=0.5).pose(utility, Given(reference)).value(["s0"]) == 1
    assert ConditionalGain(nu=0.5).pose(utility, Given(reference)).value(["s0"]) == 3
    assert TargetMutualInformation(eta=0.0).pose(utility).value(["s0"]) == 4


def test_a_reason_tells_coverage_from_relevance() -> None:
    subset = select(matrix([[4, 2], [0, 3]]), 1, "fl2mi")
    assert subset.reasons["s0"].startswith("Chosen at rank 1 of 1: adds 4 of coverage")
    assert subset.reasons["s0"].endswith("; counts 4 for its best target.")


def test_order_of_targets_in_the_reference_changes_nothing() -> None:
    utility = matrix([[5, 1], [0, 4]])
    one = Reference(("t0", "t1"), np.array([2.0, 0.0]), 0.0)
    other = Reference(("t1", "t0"), np.array([0.0, 2.0]), 0.0)
    assert select(utility, 2, "flmi", reference=one).value == select(utility, 2, "flmi", reference=other).value == 2


@pytest.mark.parametrize("objective", ["flmi", "flcg"])
def test_a_second_set_is_needed(objective: str) -> None:
    with pytest.raises(UsageError, match="none was given"):
        select(matrix([[1, 2]]), 1, objective)
    with pytest.raises(UsageError, match="other targets"):
        select(matrix([[1, 2]]), 1, objective, reference=Reference(("x",), np.array([1.0]), 0.0))


def test_infinity_in_the_second_set_is_refused_with_its_target() -> None:
    with pytest.raises(DataError, match="t0"):
        Reference(("t0",), np.array([float("inf")]), 0.0)
    with pytest.raises(DataError, match="target t0 with source q0"):
        Reference.of(matrix([[float("-inf")]], "q"))


def test_a_second_set_without_any_utility_serves_nothing() -> None:
    reference = Reference.of(matrix([[NAN]], "e"))
    assert select(matrix([[1, 3]]), 1, "flcg", reference=reference).value == 2
    assert select(matrix([[1, 3]]), 1, "flmi", reference=reference).value == 0
