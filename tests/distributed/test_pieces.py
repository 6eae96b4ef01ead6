"""Files of results: what comes back is what was written, whatever else happens to a file."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from nncift.core.parallel import TaskGroup, TaskResult
from nncift.distributed import piece_cache
from nncift.distributed.piece_cache import PieceCache

GROUP = TaskGroup("label", "label", "key", "")


def result(name: str) -> TaskResult:
    """Return a result whose numbers depend on its task's name."""
    values = np.array([float(ord(letter)) for letter in name] + [np.nan], np.float32)
    keys = np.arange(6, dtype=np.uint8).reshape(2, 3)
    return TaskResult({"values": values, "keys": keys}, 7, 2, 0.25)


def write(pieces: PieceCache, *names: str) -> Path:
    """Write results into one file, and return it."""
    before = set(pieces.folder.rglob("*.safetensors"))
    with pieces.writing(GROUP) as keep:
        for name in names:
            keep(name, result(name))
    (file,) = set(pieces.folder.rglob("*.safetensors")) - before
    return file


def same(one: TaskResult, other: TaskResult) -> bool:
    """Compare results to the byte."""
    arrays = [{name: array.tobytes() for name, array in each.arrays.items()} for each in (one, other)]
    costs = [(each.tokens, each.passes, each.seconds) for each in (one, other)]
    return arrays[0] == arrays[1] and costs[0] == costs[1]


def test_results_come_back(tmp_path: Path) -> None:
    pieces = PieceCache(tmp_path, "1-of-2")
    write(pieces, "a", "b")
    write(pieces, "c")
    assert pieces.names(GROUP) == {"a", "b", "c"}
    found = dict(PieceCache(tmp_path).read(GROUP))
    assert found.keys() == {"a", "b", "c"}
    assert all(same(found[name], result(name)) for name in found)
    assert [name for name, _ in pieces.read(GROUP, {"b"})] == ["b"]
    assert not list(pieces.read(TaskGroup("label", "label", "other", "")))


def test_arrays_keep_their_shapes_and_kinds(tmp_path: Path) -> None:
    arrays = {
        "one": np.array(2.5),
        "none": np.empty((0, 3), np.int8),
        "across": np.arange(6.0).reshape(2, 3).T,
        "apart": np.arange(9)[::2],
        "half": np.ones(3, np.float16),
        "yes": np.array([True, False]),
    }
    pieces = PieceCache(tmp_path)
    with pieces.writing(GROUP) as keep:
        keep("a", TaskResult(arrays))
    ((_, found),) = pieces.read(GROUP)
    for name, array in arrays.items():
        assert (found.arrays[name].shape, found.arrays[name].dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(found.arrays[name], array)


def test_no_flipped_bit_passes_and_what_is_damaged_is_named_and_goes(tmp_path: Path) -> None:
    pieces = PieceCache(tmp_path)
    file = write(pieces, "a")
    data = file.read_bytes()
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1 << at % 8
        file.write_bytes(bytes(damaged))
        found = dict(pieces.read(GROUP))
        assert not found or (same(found["a"], result("a")) and file.exists()), at
        assert file.exists() == bool(found)
        assert bool(found) or str(file) in pieces.notes[-1]


@pytest.mark.parametrize("size", [0, 5, 8, 100, -1])
def test_a_file_that_is_cut_costs_only_its_own_tasks(tmp_path: Path, size: int) -> None:
    pieces = PieceCache(tmp_path)
    write(pieces, "a")
    file = write(pieces, "b", "c")
    file.write_bytes(file.read_bytes()[:size])
    assert pieces.names(GROUP) == {"a"}
    assert dict(pieces.read(GROUP)).keys() == {"a"}
    (note,) = pieces.notes
    assert str(file) in note


def test_a_file_is_written_when_it_is_large_or_old_enough_and_at_the_end_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = PieceCache(tmp_path)
    monkeypatch.setattr(piece_cache, "BYTES", sum(array.nbytes for array in result("a").arrays.values()) * 2)
    monkeypatch.setattr(piece_cache, "SECONDS", math.inf)

    def stopped() -> None:
        with pieces.writing(GROUP) as keep:
            keep("a", result("a"))
            assert pieces.names(GROUP) == set()
            keep("b", result("b"))
            assert pieces.names(GROUP) == {"a", "b"}
            monkeypatch.setattr(piece_cache, "SECONDS", 0.0)
            keep("c", result("c"))
            assert pieces.names(GROUP) == {"a", "b", "c"}
            monkeypatch.setattr(piece_cache, "SECONDS", math.inf)
            keep("d", result("d"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert dict(pieces.read(GROUP)).keys() == {"a", "b", "c", "d"}


def test_a_run_removes_what_it_took_and_names_what_it_did_not_use(tmp_path: Path) -> None:
    pieces = PieceCache(tmp_path)
    groups = [("label", "key"), ("label", "other"), ("score", "fit-1"), ("score", "fit-2"), ("score", "old-1")]
    for stage, key in groups:
        with pieces.writing(TaskGroup(stage, "", key, "")) as keep:
            keep("a", result("a"))
    pieces.tidy([("label", "key"), ("embed", "gone")], "fit")
    assert {path.name for path in pieces.folder.iterdir()} == {"label-other", "score-old-1"}
    assert [note.split("'")[1].split("/")[-1] for note in pieces.notes] == ["label-other", "score-old-1"]
    pieces.tidy([("label", "other")], "old")
    assert not pieces.folder.exists()
