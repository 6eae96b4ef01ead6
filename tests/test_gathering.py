"""Vectors put together in memory and in a file: the same bytes, whatever comes in whichever order."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nncift.errors import ResourceError
from nncift.storage.vector_store import (
    Distinct,
    Gathering,
    InFile,
    InMemory,
    Table,
    bytes_of,
    hex_of,
    keys_of,
    packed,
    raw_of,
)


def vectors_of(texts: list[str]) -> np.ndarray:
    """Return vectors that are a function of the text."""
    return np.array([[len(text), sum(map(ord, text)), 1] for text in texts], np.float32).reshape(-1, 3)


def gather(texts: list[str], parts: list[list[str]], table: Table) -> np.ndarray:
    known = Gathering(Distinct(texts), table)
    for part in parts:
        known.put(keys_of(part), vectors_of(part), np.array([len(text) for text in part], np.int32))
    return known.finish()


@given(st.lists(st.text("ab", max_size=3), max_size=30), st.randoms(use_true_random=False), st.integers(1, 7))
def test_file_and_memory_hold_what_numpy_would_save(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], draw: object, size: int
) -> None:
    order = [*texts, "none of them", *texts[:3]]
    draw.shuffle(order)  # type: ignore[attr-defined]
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    folder = tmp_path_factory.mktemp("gathered")
    held = InMemory(len(texts), 3)
    with InFile.at(folder / "a.npy", len(texts), 3) as written:
        counts = gather(texts, parts, written)
    np.testing.assert_array_equal(counts, gather(texts, parts, held))
    np.testing.assert_array_equal(counts, [len(text) for text in texts])
    np.testing.assert_array_equal(held.vectors, vectors_of(texts))
    np.save(folder / "b.npy", vectors_of(texts))
    assert (folder / "a.npy").read_bytes() == (folder / "b.npy").read_bytes()


@given(st.lists(st.text("ab", max_size=2), max_size=20))
def test_different_texts_come_in_the_order_of_their_first(texts: list[str]) -> None:
    wanted = list(dict.fromkeys(texts))
    found = Distinct(texts)
    assert [texts[first] for first in found.first] == wanted
    assert [wanted[at] for at in found.at] == texts
    assert found.places(keys_of([*wanted, "other"])).tolist() == [*range(len(wanted)), -1]


def test_hashes_that_end_in_zeros_stay_whole() -> None:
    digits = ("ab" + "00" * 15, "00" * 16, "ab" * 16)
    assert hex_of(bytes_of(digits)) == digits
    assert hex_of(packed(raw_of(bytes_of(digits)))) == digits
    with pytest.raises(ValueError, match="shape"):
        packed(np.zeros((2, 8), np.uint8))


def test_texts_without_a_vector_are_refused() -> None:
    with pytest.raises(ResourceError, match="1 of 2 texts came back without a vector"):
        gather(["a", "b", "a"], [["b"]], InMemory(3, 3))


def test_vectors_of_another_size_are_refused(tmp_path: Path) -> None:
    for table in (InMemory(2, 3), InFile((tmp_path / "x.npy").open("w+b"), 2, 3)):
        with pytest.raises(ValueError, match="shape"):
            table.write(np.array([0, 1]), np.zeros((2, 4), np.float32))
