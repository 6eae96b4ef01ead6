import numpy as np
import pytest

from nncift.errors import UsageError
from nncift.selection import dedup


def test_of_equal_contents_the_lowest_id_stays() -> None:
    twins = dedup.exact(["c", "a", "b", "d"], ["x", "x", "y", "x"])
    assert {item: twin.id for item, twin in twins.items()} == {"c": "a", "d": "a"}
    assert twins["c"].reason() == "Removed before the selection: a has the same content."


def test_rows_that_must_stay_stay() -> None:
    assert dedup.exact(["a", "b", "c"], ["x", "x", "x"], keep={"b", "c"}).keys() == {"a"}
    one = np.ones((3, 1), np.float32)
    assert dedup.near(["a", "b", "c"], one, 0.9, keep={"c"}).keys() == {"a", "b"}


def test_near_duplicates_by_hand() -> None:
    angles = np.radians([0, 10, 20, 90])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    # b is 10 degrees from a and goes; c is 10 from b, which is gone, and 20 from a: cos 20 = 0.94.
    twins = dedup.near(list("abcd"), vectors, 0.95)
    assert {item: twin.id for item, twin in twins.items()} == {"b": "a"}
    assert twins["b"].cosine == pytest.approx(np.cos(np.radians(10)), abs=1e-6)


def test_blocks_and_order_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    vectors = random.normal(size=(300, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = [f"{i:03d}" for i in range(300)]
    whole = dedup.near(ids, vectors, 0.98)
    monkeypatch.setattr(dedup, "_BLOCK", 7)
    mixed = random.permutation(300)
    assert dedup.near([ids[i] for i in mixed], vectors[mixed], 0.98).keys() == whole.keys()
    kept = [i for i, item in enumerate(ids) if item not in whole]
    cosine = vectors[kept] @ vectors[kept].T - 2 * np.eye(len(kept))
    assert cosine.max() < 0.98
    assert 0 < len(whole) < 300


def test_exact_comes_first_and_both_are_told() -> None:
    vectors = np.eye(3, dtype=np.float32)[[0, 0, 1, 1]]
    found = dedup.find(0.9, list("abcd"), ["x", "x", "y", "z"], vectors)
    assert found["b"].cosine is None
    assert found["d"].cosine == 1
    assert dedup.find(None, ["a"], ["x"], None) == {}


@pytest.mark.parametrize("text", ["", "near:", "near:0", "near:1.5", "fuzzy", "near:nan"])
def test_unknown_ways_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"exact, or near:0\.95"):
        dedup.parse(text)


def test_ways_are_read() -> None:
    assert dedup.parse("near:0.9") == 0.9
    assert dedup.parse("near") == 0.95
    assert dedup.parse(None) is None
    assert (dedup.parse("exact") or 0) > 1
