"""Files of results: what comes back is what was written, whatever else happens to the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nncift.core.tasks import TaskResult
from nncift.distributed.piece_records import Damage, Record, Writer, names, pack, read, unpack


def record(name: str) -> Record:
    """Return a record whose numbers depend on its name."""
    values = np.array([float(ord(letter)) for letter in name] + [np.nan], np.float32)
    keys = np.arange(6, dtype=np.uint8).reshape(2, 3)
    return Record("job", name, TaskResult({"values": values, "keys": keys}, 7, 2, 0.25, {"shortened": True}))


def same(one: Record, other: Record) -> bool:
    """Compare records."""
    return pack(one) == pack(other)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a file of three records."""
    path = tmp_path / "label-job.pieces"
    writer = Writer(path)
    for name in "abc":
        writer.add(record(name))
    writer.close()
    return path


def test_records_come_back(file: Path) -> None:
    found = [part for part in read(file) if isinstance(part, Record)]
    assert [part.task for part in found] == ["a", "b", "c"] == list(names(file))
    assert same(found[1], record("b"))
    np.testing.assert_array_equal(found[1].result.arrays["values"], [98, np.nan])
    assert found[1].result.details == {"shortened": True}


def test_arrays_keep_their_shapes_and_kinds() -> None:
    arrays = {
        "one": np.array(2.5),
        "none": np.empty((0, 3), np.int8),
        "across": np.arange(6.0).reshape(2, 3).T,
        "apart": np.arange(9)[::2],
    }
    found = unpack(pack(Record("job", "a", TaskResult(arrays)))).result.arrays
    for name, array in arrays.items():
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(found[name], array)


def test_no_flipped_bit_passes() -> None:
    data = pack(record("a"))
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1 << at % 8
        with pytest.raises(ValueError, match="checksum"):
            unpack(bytes(damaged))


def test_a_damaged_record_costs_only_itself(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    parts = list(read(file))
    assert [part.task for part in parts if isinstance(part, Record)] == ["a", "c"]
    assert [part.at for part in parts if isinstance(part, Damage)] == [len(data) // 3]


def test_whatever_a_file_is_cut_to_its_beginning_is_read_and_it_goes_on(file: Path) -> None:
    data = file.read_bytes()
    each = len(data) // 3
    for size in range(0, len(data), 5):
        file.write_bytes(data[:size])
        writer = Writer(file)
        whole = size // each
        assert writer.names == set("abc"[:whole])
        assert bool(writer.damage) == bool(size % each)
        writer.add(record("d"))
        writer.close()
        assert [part.task for part in read(file) if isinstance(part, Record)] == [*"abc"[:whole], "d"]
