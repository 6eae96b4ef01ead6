"""The cache of vectors: what is encoded, what is kept, and what is made again."""

import os
import tracemalloc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file, save_file

from nncift.core.lazily import Lazily
from nncift.errors import DataError
from nncift.models.embedding_cache import EmbeddingCache
from nncift.models.encoders import HashEncoder
from nncift.storage.atomic import cache_folder, read_arrays

TEXTS = ["sort the red list", "name a cat", "long cat\n\nand dog", "", "sort the red list!"]


class Counting:
    """A hashing encoder with a limit, that notes every text it is given."""

    def __init__(self, limit: int | None = None, name: str = "counting") -> None:
        self._inner, self._limit, self._name = HashEncoder(16), limit, name
        self.seen: list[str] = []

    def encode(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
        self.seen.extend(texts)
        return self._inner.encode(texts)

    def describe(self) -> Mapping[str, Any]:
        return {"encoder": self._name, "dim": 16, "max_tokens": self._limit}


def blocks() -> list[Path]:
    return sorted(cache_folder().rglob("*.safetensors"))


def test_only_new_texts_are_encoded() -> None:
    encoder = Counting()
    first = EmbeddingCache(encoder).embed(["a b", "c"])
    second = EmbeddingCache(encoder).embed(["c", "d e f", "a b"])
    assert encoder.seen == ["a b", "c", "d e f"]
    assert (first.fresh, first.tokens, second.fresh, second.tokens) == (2, 3, 1, 3)
    np.testing.assert_array_equal(second.vectors[[2, 0]], first.vectors)
    np.testing.assert_array_equal(second.vectors, encoder._inner.encode(["c", "d e f", "a b"])[0])


def test_a_text_that_comes_twice_is_encoded_once() -> None:
    encoder = Counting()
    found = EmbeddingCache(encoder).embed(["a", "b", "a", "a"])
    assert encoder.seen == ["a", "b"]
    assert found.fresh == 2
    np.testing.assert_array_equal(found.vectors[[0, 0]], found.vectors[[2, 3]])


def test_blocks_that_hold_nothing_of_what_is_asked_for_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, read = Counting(), list[Path]()

    def noted(path: Path) -> Mapping[str, npt.NDArray[Any]]:
        read.append(path)
        return read_arrays(path)

    for text in TEXTS[:3]:
        EmbeddingCache(encoder).embed([text])
    monkeypatch.setattr("nncift.models.embedding_cache.read_arrays", noted)
    cache = EmbeddingCache(encoder)
    expected = cache.embed(TEXTS[:3]).vectors
    assert sorted(read) == blocks()
    for place, text in enumerate(TEXTS[:3]):
        np.testing.assert_array_equal(cache.embed([text]).vectors[0], expected[place])
    assert len(read) == 6
    # What another process adds is found, and what it takes away is made again.
    EmbeddingCache(encoder).embed(TEXTS[3:])
    assert cache.embed(TEXTS).fresh == 0
    for path in blocks():
        path.unlink()
    assert cache.embed(TEXTS[:2]).fresh == 2


def test_what_killed_processes_left_aside_is_removed() -> None:
    cache = EmbeddingCache(Counting())
    with cache.aside() as mine:
        assert mine is not None
        left, young = (mine.parent.parent / f"aside-{name}" for name in ("left", "young"))
        for folder in (left, young):
            folder.mkdir()
            (folder / "vectors.npy").write_bytes(b"0" * 9)
        for folder in (left, mine.parent):
            os.utime(folder, (0, 0))
        with cache.aside() as other:
            assert other is not None
            assert mine.parent.exists()
            assert young.exists()
            assert not left.exists()
    assert not mine.parent.exists()


def test_the_order_of_texts_does_not_matter() -> None:
    there = EmbeddingCache(Counting()).embed(TEXTS)
    back = EmbeddingCache(Counting()).embed(TEXTS[::-1])
    assert back.fresh == 0
    np.testing.assert_array_equal(back.vectors[::-1], there.vectors)


def test_another_encoder_has_a_cache_of_its_own() -> None:
    EmbeddingCache(Counting(name="one")).embed(["a"])
    assert EmbeddingCache(Counting(name="two")).embed(["a"]).fresh == 1


def test_progress_reaches_the_number_of_texts() -> None:
    done: list[int] = []
    EmbeddingCache(Counting()).embed(["a", "b", "a"], done.append)
    EmbeddingCache(Counting()).embed(["a", "b", "c"], done.append)
    assert done == [1, 2, 2, 1]


def test_truncated_texts_are_counted() -> None:
    texts = ["a", "a b", "a b c", "a b c d", "a b c"]
    found = EmbeddingCache(Counting(limit=2)).embed(texts)
    assert (found.truncated, found.tokens) == (3, 1 + 2 + 2 + 2)
    assert EmbeddingCache(Counting(limit=2)).embed(texts).truncated == 3
    assert EmbeddingCache(Counting()).embed(texts).truncated == 0


def test_no_texts_are_no_vectors() -> None:
    assert EmbeddingCache(Counting()).embed([]).vectors.shape == (0, 16)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def change(path: Path, **arrays: npt.NDArray[Any]) -> None:
    save_file({**load_file(path), **arrays}, path)


def fewer_vectors(path: Path) -> None:
    change(path, vectors=np.zeros((1, 16), np.float32))


def narrower(path: Path) -> None:
    change(path, vectors=np.zeros((2, 8), np.float32))


def not_numbers(path: Path) -> None:
    change(path, vectors=np.full((2, 16), np.nan, np.float32))


def without_keys(path: Path) -> None:
    save_file({"vectors": np.zeros((2, 16), np.float32)}, path)


@pytest.mark.parametrize("damage", [cut_short, emptied, fewer_vectors, narrower, not_numbers, without_keys])
def test_a_damaged_block_is_made_again(damage: Any) -> None:
    good = EmbeddingCache(Counting()).embed(["a", "b"])
    (path,) = blocks()
    damage(path)
    encoder = Counting()
    again = EmbeddingCache(encoder).embed(["a", "b"])
    assert encoder.seen == ["a", "b"]
    np.testing.assert_array_equal(again.vectors, good.vectors)
    assert EmbeddingCache(Counting()).embed(["a", "b"]).fresh == 0


def test_vectors_that_are_no_numbers_are_refused_and_not_kept() -> None:
    class Broken(Counting):
        def encode(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
            vectors, counts = super().encode(texts)
            return vectors * np.float32("nan"), counts

    with pytest.raises(DataError, match="not finite"):
        EmbeddingCache(Broken()).embed(["a"])
    assert blocks() == []


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NNCIFT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "nncift"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "nncift"


def test_vectors_in_a_file_are_those_in_memory(tmp_path: Path) -> None:
    texts = [f"word{k % 40} and {k % 7}" for k in range(1500)]
    held = EmbeddingCache(Counting()).embed(texts)
    np.save(tmp_path / "held.npy", held.vectors)
    for name, cache in (("warm", None), ("cold", tmp_path / "cache")):
        found = EmbeddingCache(Counting(), cache).embed(texts, into=tmp_path / f"{name}.npy")
        assert (tmp_path / f"{name}.npy").read_bytes() == (tmp_path / "held.npy").read_bytes()
        np.testing.assert_array_equal(found.counts, held.counts)
        assert isinstance(found.vectors.base, np.memmap) or isinstance(found.vectors, np.memmap)


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    class Failing(Counting):
        def encode(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
            if self.seen:
                raise KeyboardInterrupt
            return super().encode(texts)

    texts = [f"text {k}" for k in range(600)]
    with pytest.raises(KeyboardInterrupt):
        EmbeddingCache(Failing()).embed(texts, into=tmp_path / "x.npy")
    assert list(tmp_path.glob("x.npy*")) == []
    # What the first block was is kept.
    assert EmbeddingCache(Counting()).embed(texts, into=tmp_path / "x.npy").fresh == 600 - 512


def test_embedding_into_a_file_holds_neither_texts_nor_vectors(tmp_path: Path) -> None:
    texts = Lazily(lambda k: f"{k} " + "word " * 200, range(4000))
    tracemalloc.start()
    found = EmbeddingCache(Wide()).embed(texts, into=tmp_path / "x.npy")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.vectors.nbytes == 4 * 1024 * 4000
    # Eight blocks; one is held, with what becomes of it.
    assert peak < found.vectors.nbytes / 2


class Wide:
    """Gives vectors of many numbers."""

    def encode(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
        return np.full((len(texts), 1024), 1 / 32, np.float32), np.full(len(texts), 201, np.int32)

    def describe(self) -> Mapping[str, Any]:
        return {"encoder": "wide", "dim": 1024, "max_tokens": None}
