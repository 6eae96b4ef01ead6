from pathlib import Path

import numpy as np
import pytest

from nncift.errors import DataError
from nncift.storage.row_store import RowStore


def test_rows_survive_reopening_and_the_others_stay_unfilled(tmp_path: Path) -> None:
    RowStore.open(tmp_path / "a", 4, 2).write(np.array([1, 3]), [[1, 2], [3, 4]])
    again = RowStore.open(tmp_path / "a", 4, 2)
    assert again.filled.tolist() == [False, True, False, True]
    assert again.values[[1, 3]].tolist() == [[1, 2], [3, 4]]


def test_another_shape_type_or_header_is_refused(tmp_path: Path) -> None:
    RowStore.open(tmp_path / "a", 4, 2, header={"of": "x"})
    for rows, width, dtype, of in (
        (5, 2, "float32", "x"),
        (4, 3, "float32", "x"),
        (4, 2, "float64", "x"),
        (4, 2, "float32", "y"),
    ):
        with pytest.raises(DataError, match="another run"):
            RowStore.open(tmp_path / "a", rows, width, dtype=dtype, header={"of": of})


def test_a_store_without_its_header_was_never_finished_and_starts_anew(tmp_path: Path) -> None:
    RowStore.open(tmp_path / "a", 3, 1).write(0, 7)
    (tmp_path / "a.json").unlink()
    assert not RowStore.open(tmp_path / "a", 3, 1).filled.any()


def test_no_rows_at_all(tmp_path: Path) -> None:
    for _ in range(2):
        assert RowStore.open(tmp_path / "a", 0, 1).values.shape == (0, 1)


@pytest.mark.parametrize("name", ["a.npy", "a.sums.npy", "a.json"])
@pytest.mark.parametrize("damage", ["cut", "empty", "garbage"])
def test_damaged_files_are_named(tmp_path: Path, name: str, damage: str) -> None:
    RowStore.open(tmp_path / "a", 30, 1).write(0, 1)
    path = tmp_path / name
    path.write_bytes({"cut": path.read_bytes()[:-2], "empty": b"", "garbage": b"\x00\xff" * 40}[damage])
    with pytest.raises(DataError, match=rf"{name}.*damaged"):
        RowStore.open(tmp_path / "a", 30, 1)


def test_an_array_of_another_shape_is_not_read(tmp_path: Path) -> None:
    RowStore.open(tmp_path / "a", 30, 1)
    np.save(tmp_path / "a.npy", np.zeros((3, 1), np.float32))
    with pytest.raises(DataError, match=r"a\.npy"):
        RowStore.open(tmp_path / "a", 30, 1)


def test_a_missing_array_is_named(tmp_path: Path) -> None:
    RowStore.open(tmp_path / "a", 30, 1)
    (tmp_path / "a.npy").unlink()
    with pytest.raises(DataError, match=r"a\.npy.*missing"):
        RowStore.open(tmp_path / "a", 30, 1)


@pytest.mark.parametrize("byte", [128, 131, 139])
def test_a_row_with_a_flipped_bit_is_named_and_counts_as_missing(
    tmp_path: Path, byte: int, caplog: pytest.LogCaptureFixture
) -> None:
    RowStore.open(tmp_path / "a", 4, 2).write(np.arange(4), np.ones((4, 2)))
    content = bytearray((tmp_path / "a.npy").read_bytes())
    content[byte] ^= 4
    (tmp_path / "a.npy").write_bytes(content)
    store = RowStore.open(tmp_path / "a", 4, 2)
    assert store.filled.tolist() == [row != (byte - 128) // 8 for row in range(4)]
    assert "a.npy is damaged: 1 of 4 rows" in caplog.text
    store.write(np.flatnonzero(~store.filled), np.ones((1, 2)))
    assert RowStore.open(tmp_path / "a", 4, 2).filled.all()


def test_a_damaged_checksum_counts_as_a_missing_row_also_where_nothing_was_written(tmp_path: Path) -> None:
    RowStore.open(tmp_path / "a", 3, 1).write(0, 7)
    sums = np.load(tmp_path / "a.sums.npy")
    sums[0] ^= 1
    sums[2] = 1
    np.save(tmp_path / "a.sums.npy", sums)
    assert not RowStore.open(tmp_path / "a", 3, 1).filled.any()


def test_rows_that_changed_places_do_not_match(tmp_path: Path) -> None:
    RowStore.open(tmp_path / "a", 2, 1).write(np.arange(2), [[1], [2]])
    for name in ("a.npy", "a.sums.npy"):
        np.save(tmp_path / name, np.load(tmp_path / name)[::-1])
    assert not RowStore.open(tmp_path / "a", 2, 1).filled.any()


def test_space_is_taken_when_a_store_is_made(tmp_path: Path) -> None:
    RowStore.open(tmp_path / "a", 50_000, 4)
    stat = (tmp_path / "a.npy").stat()
    assert stat.st_blocks * 512 >= stat.st_size
