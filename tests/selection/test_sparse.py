import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nncift.core.arrays import Floats
from nncift.core.pairs import UtilityMatrix
from nncift.errors import DataError, InfeasibleError, ResourceError
from nncift.selection import select
from nncift.selection.neighbours import cells, lifted, nearest
from nncift.selection.sparse import Graph, SparseCoverage

NAN = float("nan")


def points(n: int, seed: int = 0, dim: int = 16) -> Floats:
    random = np.random.default_rng(seed)
    found = random.normal(size=(max(n // 25, 1), dim))[random.integers(0, max(n // 25, 1), n)]
    found = found + 0.4 * random.normal(size=(n, dim))
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float32)


def full(values: Floats, ids: tuple[str, ...] | None = None) -> Graph:
    """Return the graph that has every pair."""
    n_targets, n = values.shape
    ids = ids or tuple(f"s{i:03d}" for i in range(n))
    return Graph(
        tuple(f"t{i:03d}" for i in range(n_targets)), ids, np.tile(np.arange(n, dtype=np.int32), (n_targets, 1)), values
    )


def dense(graph: Graph) -> UtilityMatrix:
    return UtilityMatrix(graph.target_ids, graph.source_ids, np.asfortranarray(graph.utility))


@given(st.integers(0, 10_000))
@settings(max_examples=30)
def test_on_all_pairs_it_is_dense_greedy(seed: int) -> None:
    random = np.random.default_rng(seed)
    values = random.integers(-3, 6, size=(6, 9)).astype(np.float32)
    values[random.random((6, 9)) < 0.2] = NAN
    graph = full(values, tuple(f"s{i}" for i in random.permutation(9)))
    one, other = SparseCoverage(graph).choose(4), select(dense(graph), 4)
    assert one.ids == other.ids
    assert one.gains.tolist() == other.gains.tolist()
    assert (one.value, one.upper_bound) == (other.value, other.upper_bound)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25)
def test_the_bound_holds(seed: int) -> None:
    random = np.random.default_rng(seed)
    values = random.integers(0, 6, size=(5, 8)).astype(np.float32)
    problem = SparseCoverage(full(values))
    found = problem.choose(3)
    optimum = max(problem.value(some) for some in itertools.combinations(problem.source_ids, 3))
    assert len(set(found.ids)) == 3
    assert found.value == problem.value(found.ids) == found.gains.sum() <= optimum <= found.upper_bound


def test_a_graph_of_neighbours_keeps_the_value() -> None:
    vectors = points(1500)
    known = nearest(vectors, 40)
    ids = tuple(f"s{i:04d}" for i in range(1500))
    # A row serves itself here, as in the matrix of cosines.
    sources = np.concatenate([np.arange(1500, dtype=np.int32)[:, None], known.codes], axis=1)
    utility = np.concatenate([np.ones((1500, 1), np.float32), known.cosine], axis=1)
    graph = Graph(ids, ids, sources, utility)
    matrix = UtilityMatrix(ids, ids, np.asfortranarray(vectors @ vectors.T))
    from nncift.selection.objectives import facility_location_value

    for share, least in ((0.01, 0.97), (0.1, 0.99), (0.3, 0.99)):
        k = int(1500 * share)
        found = facility_location_value(matrix, SparseCoverage(graph).choose(k).ids)
        assert found >= least * select(matrix, k).value


def test_a_disconnected_graph_is_served_part_by_part() -> None:
    graph = Graph(
        ("a", "b", "c"), ("x", "y", "z"), np.array([[0], [0], [1]], np.int32), np.array([[3], [2], [4]], np.float32)
    )
    # The lowest utility is 2: x gives a 1, y gives c 2, z gives nothing.
    found = SparseCoverage(graph).choose(3)
    assert found.ids == ("y", "x", "z")
    assert found.gains.tolist() == [2, 1, 0]


def test_zero_one_and_all_candidates() -> None:
    none = Graph((), (), np.empty((0, 0), np.int32), np.empty((0, 0), np.float32))
    assert SparseCoverage(none).choose(0).ids == ()
    one = Graph(("a",), ("a",), np.array([[0]], np.int32), np.array([[NAN]], np.float32))
    assert SparseCoverage(one).choose(1).ids == ("a",)
    found = SparseCoverage(full(np.ones((4, 4), np.float32))).choose(4)
    assert sorted(found.ids) == ["s000", "s001", "s002", "s003"]
    assert found.share_of_optimum == 1


def test_bad_values_and_sizes_are_refused() -> None:
    values = np.zeros((3, 3), np.float32)
    values[1, 2] = np.inf
    with pytest.raises(DataError, match="target t001 with source s002"):
        SparseCoverage(full(values))
    problem = SparseCoverage(full(np.eye(3, dtype=np.float32)))
    with pytest.raises(InfeasibleError, match="only 3 rows"):
        problem.choose(4)


def test_exact_neighbours_are_the_highest_cosines() -> None:
    vectors = points(300)
    cosine = vectors @ vectors.T
    np.fill_diagonal(cosine, -np.inf)
    known = nearest(vectors, 5, cap=4 * 300 * 7)
    assert known.recall == 1
    assert np.array_equal(known.codes, np.argsort(-cosine, axis=1, kind="stable")[:, :5])


def test_neighbours_by_cells_tell_what_they_miss() -> None:
    vectors = points(3000)
    known = nearest(vectors, 10, probes=12)
    true = nearest(vectors, 10, probes=0)
    share = np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(known.codes, true.codes, strict=True)])
    assert 0.9 <= known.recall <= 1
    # The sample holds 200 rows of 10: three standard errors of a share of 0.95 are 0.015.
    assert known.recall == pytest.approx(share, abs=0.02)
    poor = nearest(vectors, 10, probes=1)
    assert poor.recall < known.recall
    assert (known.codes != np.arange(3000)[:, None]).all()


@pytest.mark.parametrize("exact", [True, False])
def test_the_highest_products_of_two_projections_are_found(exact: bool) -> None:
    random = np.random.default_rng(1)
    targets = points(2000)
    # Lengths differ, so that the highest product is not the highest cosine.
    sources = targets * random.uniform(0.5, 2.0, size=(2000, 1)).astype(np.float32)
    queries, vectors = lifted(targets, sources)
    known = nearest(vectors, 10, queries=queries, probes=0 if exact else 12)
    product = targets @ sources.T
    np.fill_diagonal(product, -np.inf)
    true = np.argsort(-product, axis=1, kind="stable")[:, :10]
    share = np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(known.codes, true, strict=True)])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(2000), abs=1e-3)
    assert share == pytest.approx(1.0 if exact else known.recall, abs=0.03)
    assert share > 0.8
    by_cosine = nearest(points(2000), 10).codes
    assert np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(by_cosine, true, strict=True)]) < 0.8


def test_rows_are_in_cells_whose_centres_are_near() -> None:
    vectors = points(3000)
    centre, of = cells(vectors, 100, 0)
    product = vectors @ centre.T
    assert 90 <= len(centre) <= 110
    assert np.linalg.norm(centre, axis=1) == pytest.approx(np.ones(len(centre)), abs=1e-5)
    # Only groups that are near are looked at: most rows lose nothing by that, and the others little.
    own = product[np.arange(3000), of]
    assert np.mean(of == product.argmax(axis=1)) > 0.9
    assert np.mean(product.max(axis=1) - own) < 0.01
    assert cells(vectors, 100, 0)[1].tobytes() == of.tobytes()


def test_duplicates_by_the_thousand_and_few_rows() -> None:
    same = np.ones((2000, 1), np.float32)
    assert nearest(same, 3).codes[5].tolist() == [0, 1, 2]
    assert (nearest(same, 3, probes=12).codes >= 0).all()
    assert nearest(same[:2], 3).codes.tolist() == [[1, -1, -1], [0, -1, -1]]
    centre, of = cells(same, 4, 0)
    assert (len(centre), set(of.tolist())) == (4, {0})


def test_a_cap_below_one_row_is_refused() -> None:
    with pytest.raises(ResourceError, match="one row of cosines takes 1200"):
        nearest(points(300), 5, cap=1199)
