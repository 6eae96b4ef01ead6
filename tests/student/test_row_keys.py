"""Labelled rows recognised by their keys: the same rows as a tree of all keys finds."""

import sys

import numpy as np
import pytest
from scipy.spatial import KDTree

from nncift.student import row_keys
from nncift.student.row_keys import KEY, SAME, _same


def keys(rows: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(rows, KEY)) / 4).astype(np.float32)


def by_tree(known: np.ndarray, of: np.ndarray) -> tuple[list[int], list[int]]:
    distance, place = (np.asarray(part) for part in KDTree(known).query(of, distance_upper_bound=SAME))
    row = np.flatnonzero(np.isfinite(distance))
    return row.tolist(), place[row].tolist()


def test_rows_are_recognised_as_by_a_tree() -> None:
    of = keys(400)
    # Computed twice, and rows beside them that are just too far off.
    known = of[::3] + np.float32(1e-6)
    known[::2] += np.float32(SAME)
    row, place = _same(known, of)
    assert 50 < len(row) < 100
    assert (row.tolist(), place.tolist()) == by_tree(known, of)


@pytest.mark.parametrize("most", [row_keys.MOST_NEAR, 0])
def test_of_labelled_rows_that_are_the_same_the_tree_decides(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(row_keys, "MOST_NEAR", most)
    of = keys(100)
    known = np.concatenate([of[:20], of[:20], of[50:60]])
    row, place = _same(known, of)
    assert (row.tolist(), place.tolist()) == by_tree(known, of)


def test_no_tree_is_loaded_where_keys_are_distinct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.spatial", None)
    of = keys(50)
    assert _same(of[5:9], of)[0].tolist() == [5, 6, 7, 8]
