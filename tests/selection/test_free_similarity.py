"""Controls that select by similarities: what they see, by hand."""

import numpy as np
import pytest

from nncift.core.pairs import UtilityMatrix
from nncift.models.views import HIDDEN, OUTPUT, STATS, TEXT, Views
from nncift.selection import select
from nncift.selection.objectives import Reference
from nncift.selection.probe_controls import FreeSimilarities

ALL = Views.of({TEXT: 3, HIDDEN: 4, OUTPUT: 2, STATS: 2})


def vectors(n: int, seed: int = 0, views: Views = ALL) -> np.ndarray:
    found = np.random.default_rng(seed).normal(size=(n, views.dim)).astype(np.float32)
    found[:, :3] /= np.linalg.norm(found[:, :3], axis=1, keepdims=True)
    return found


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray((a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T)


def names(prefix: str, n: int) -> tuple[str, ...]:
    return tuple(f"{prefix}{i}" for i in range(n))


def test_a_probe_brings_its_similarities_and_their_sum() -> None:
    rows = vectors(6)
    assert FreeSimilarities(ALL, rows, rows, True).names == ("embedding", "hidden", "output", "sum", "rds")
    text = Views.of({TEXT: 3})
    assert FreeSimilarities(text, rows[:, :3], rows[:, :3], True).names == ("embedding",)


def test_hidden_states_are_centred_over_all_rows_and_the_diagonal_is_masked() -> None:
    rows = vectors(6)
    found = FreeSimilarities(ALL, rows, rows, True)
    hidden = rows[:, 3:7] - rows[:, 3:7].mean(axis=0)
    expected = cosines(hidden, hidden)
    np.fill_diagonal(expected, np.nan)
    np.testing.assert_allclose(found.matrix("hidden", names("r", 6), names("r", 6)).values, expected, atol=1e-5)
    expected = cosines(rows[:, 7:9], rows[:, 7:9])
    np.fill_diagonal(expected, np.nan)
    np.testing.assert_allclose(found.matrix("output", names("r", 6), names("r", 6)).values, expected, atol=1e-5)


def test_a_target_set_is_no_row_of_the_pool() -> None:
    targets, rows = vectors(3, 1), vectors(6)
    found = FreeSimilarities(ALL, targets, rows, False)
    every = np.concatenate([targets, rows])[:, 3:7]
    centre = every.mean(axis=0)
    values = found.matrix("hidden", names("t", 3), names("r", 6)).values
    np.testing.assert_allclose(values, cosines(targets[:, 3:7] - centre, rows[:, 3:7] - centre), atol=1e-5)


def test_in_the_sum_every_cosine_counts_in_units_of_its_spread() -> None:
    rows = vectors(60)
    found = FreeSimilarities(ALL, rows, rows, True)
    axis = names("r", 60)
    total = found.matrix("sum", axis, axis).values
    parts = [found.matrix(name, axis, axis).values for name in ("embedding", "hidden", "output")]
    expected = np.sum([part / np.nanstd(part) for part in parts], axis=0)
    off = ~np.eye(60, dtype=bool)
    # The spread is that of a sample of pairs.
    assert np.corrcoef(total[off], expected[off])[0, 1] > 0.999
    assert float(np.std(total[off]) / np.std(expected[off])) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("objective", ["fl", "fl2mi", "rr", "max", "topk"])
def test_a_similarity_takes_the_place_of_utilities_under_the_same_objective(objective: str) -> None:
    targets, rows = vectors(4, 1), vectors(12)
    found = FreeSimilarities(ALL, targets, rows, False)
    across, along = names("t", 4), names("r", 12)
    values = np.asfortranarray(cosines(targets[:, :3], rows[:, :3]).astype(np.float32))
    alone = select(UtilityMatrix(across, along, values), 5, objective, 2)
    assert found.ids("embedding", objective, across, along, 5, seed=2) == list(alone.ids)


@pytest.mark.parametrize("objective", ["flmi", "flcg", "rr", "max"])
def test_a_second_set_is_told_of_by_similarity_too(objective: str) -> None:
    rows, second = vectors(12), vectors(3, 5)
    found = FreeSimilarities(ALL, rows, rows, True, second)
    axis = names("r", 12)
    values = cosines(rows[:, :3], rows[:, :3]).astype(np.float32)
    np.fill_diagonal(values, np.nan)
    theirs = np.asfortranarray(cosines(rows[:, :3], second[:, :3]).astype(np.float32))
    reference = Reference.of(UtilityMatrix(axis, names("e", 3), theirs))
    alone = select(UtilityMatrix(axis, axis, np.asfortranarray(values)), 4, objective, reference=reference)
    assert found.ids("embedding", objective, axis, axis, 4) == list(alone.ids)


def weighted(rows: np.ndarray) -> np.ndarray:
    """Return the last of the three means of hidden states; here, the last of four numbers."""
    return np.asarray(rows[:, 6:7])


@pytest.mark.parametrize("objective", ["fl", "fl2mi", "rr", "max", "topk", "flmi"])
def test_rds_lets_targets_take_rows_in_turn_under_every_objective(objective: str) -> None:
    views = Views.of({TEXT: 3, HIDDEN: 9, OUTPUT: 2, STATS: 2})
    targets, rows = vectors(4, 1, views), vectors(12, views=views)
    across, along = names("t", 4), names("r", 12)
    if objective == "flmi":
        found, axis = FreeSimilarities(views, rows, rows, True, targets), along
    else:
        found, axis = FreeSimilarities(views, targets, rows, False), across
    values = cosines(targets[:, 9:12], rows[:, 9:12])
    # In whatever order targets take their turns, each has its best row in the first round, where these differ.
    best = {along[s] for s in values.argmax(axis=1)}
    taken = found.ids("rds", objective, axis, along, 4)
    assert best <= set(taken)
    if objective != "flmi":
        alone = select(UtilityMatrix(across, along, np.asfortranarray(values.astype(np.float32))), 6, "rr", 2)
        assert found.ids("rds", objective, across, along, 6, seed=2) == list(alone.ids)


def test_rds_is_no_part_of_the_sum_and_is_not_centred() -> None:
    rows = vectors(6)
    found = FreeSimilarities(ALL, rows, rows, True)
    expected = cosines(weighted(rows), weighted(rows))
    np.fill_diagonal(expected, np.nan)
    np.testing.assert_allclose(found.matrix("rds", names("r", 6), names("r", 6)).values, expected, atol=1e-6)


def test_without_targets_the_rows_are_covered_by_themselves() -> None:
    rows = vectors(12)
    found = FreeSimilarities(ALL, np.zeros((1, 0), np.float32), rows, False)
    axis = names("r", 12)
    values = cosines(rows[:, :3], rows[:, :3]).astype(np.float32)
    np.fill_diagonal(values, np.nan)
    alone = select(UtilityMatrix(axis, axis, np.asfortranarray(values)), 4)
    assert found.ids("embedding", "topk", ("score",), axis, 4) == list(alone.ids)


def test_rows_that_are_removed_are_no_targets_either() -> None:
    rows = vectors(6)
    less = FreeSimilarities(ALL, rows, rows, True).at([0, 2, 4], [0, 2, 4])
    assert less.matrix("embedding", names("r", 3), names("r", 3)).values.shape == (3, 3)
