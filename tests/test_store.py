from pathlib import Path

import numpy as np
import pytest

from nncift.errors import DataError
from nncift.store import RowStore


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


@pytest.mark.parametrize("name", ["a.npy", "a.filled.npy", "a.json"])
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
