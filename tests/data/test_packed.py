"""Packed files, whatever they are called: read as they unpack, bounded, and refused by name where they cannot be."""

import bz2
import gzip
import io
import json
import lzma
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nncift.data import read
from nncift.data.opening import opened
from nncift.errors import DataError

ROWS = [{"prompt": f"Q{k}", "completion": "größer " * k} for k in range(1, 4)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def zstandard(data: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(data, asbytes=True))


def zipped(data: bytes, *names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names or ("a.jsonl",):
            archive.writestr(name, data)
    return stream.getvalue()


PACK: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard,
    "zip": zipped,
}


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("named", [True, False])
def test_every_packing_is_known_by_its_bytes(tmp_path: Path, suffix: str, named: bool) -> None:
    path = tmp_path / (f"a.jsonl.{suffix}" if named else "a.jsonl")
    path.write_bytes(PACK[suffix](LINES))
    found = read(path)
    assert [row.row for row in found] == ROWS
    assert {row.source for row in found} == {"a"}


@pytest.mark.parametrize("suffix", PACK)
def test_documents_and_tables_of_text_are_packed_too(tmp_path: Path, suffix: str) -> None:
    table = "prompt,completion\n" + "".join(f"{row['prompt']},{row['completion']}\n" for row in ROWS)
    for name, data in (("a.json", json.dumps({"rows": ROWS}, indent=1).encode("utf-16")), ("a.csv", table.encode())):
        path = tmp_path / f"{name}.{suffix}"
        path.write_bytes(PACK[suffix](data))
        assert [row.row for row in read(path)] == ROWS


def test_parts_of_a_packed_file_that_follow_each_other_are_all_read(tmp_path: Path) -> None:
    for suffix in ("gz", "bz2", "xz", "zst"):
        path = tmp_path / f"a.jsonl.{suffix}"
        path.write_bytes(PACK[suffix](LINES[:30]) + PACK[suffix](LINES[30:]))
        assert [row.row for row in read(path)] == ROWS


@pytest.mark.parametrize("suffix", PACK)
def test_what_unpacks_to_far_more_than_data_does_is_refused(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nncift.data.opening.LEAST_UNPACKED", 1 << 20)
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(PACK[suffix](b'{"prompt": "a", "completion": "b"}\n' * 60_000))
    with pytest.raises(DataError, match="unpacks to more than 200 times its size"):
        read(path)


def unpack(path: Path) -> None:
    with opened(path) as (file, _):
        while file.read(1 << 16):
            pass


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_beginning_that_unpacks_to_too_much_is_refused_there(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl.{suffix}"
    begins, behind = b"a" * 40_000_000, random.Random(0).randbytes(600_000)
    path.write_bytes(PACK[suffix](begins) + PACK[suffix](behind))
    # As a whole it is within the bound.
    assert len(begins) + len(behind) < 200 * path.stat().st_size
    with pytest.raises(DataError, match="unpacks to more than 200 times its size"):
        unpack(path)


def test_parts_that_unpack_to_nothing_end_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nncift.data.opening.MOST_EMPTY", 1 << 17)
    for suffix in ("gz", "bz2", "xz"):
        path = tmp_path / f"a.jsonl.{suffix}"
        nothing = PACK[suffix](b"")
        path.write_bytes(nothing * 2 + PACK[suffix](LINES) + nothing * 2)
        assert len(read(path)) == len(ROWS)
        path.write_bytes(nothing * (600_000 // len(nothing)) + PACK[suffix](LINES))
        with pytest.raises(DataError, match="unpack to nothing"):
            unpack(path)


@pytest.mark.parametrize("suffix", PACK)
def test_a_packed_file_that_is_cut_short_is_refused(tmp_path: Path, suffix: str) -> None:
    data = PACK[suffix](LINES * 50)
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(DataError, match="cannot read"):
        read(path)


def test_a_zip_holds_one_file(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(zipped(LINES, "a.jsonl", "b.jsonl"))
    with pytest.raises(DataError, match=r"holds 2 files \('a.jsonl', 'b.jsonl'\), expected one; unzip it"):
        read(path)
    path.write_bytes(zipped(LINES, "a.jsonl", "__MACOSX/a.jsonl", ".DS_Store"))
    assert len(read(path)) == 3


def test_a_file_without_a_name_in_a_zip_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    # A name as long as its central record says, none.
    data = bytearray(zipped(LINES, "a.jsonl", "b"))
    record = data.rindex(b"PK\x01\x02")
    data[record + 28] = 0
    del data[record + 46]
    end = data.rindex(b"PK\x05\x06")
    size = int.from_bytes(data[end + 12 : end + 16], "little") - 1
    data[end + 12 : end + 16] = size.to_bytes(4, "little")
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="holds 2 files"):
        read(path)


def test_a_zip_with_a_password_and_a_table_in_a_packing_are_refused(tmp_path: Path) -> None:
    data = bytearray(zipped(LINES))
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.jsonl.zip").write_bytes(data)
    with pytest.raises(DataError, match="encrypted"):
        read(tmp_path / "a.jsonl.zip")
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress((tmp_path / "a.parquet").read_bytes()))
    with pytest.raises(DataError, match="a packed parquet table; unpack it first"):
        read(tmp_path / "a.parquet.gz")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(gzip.compress(LINES)))
    with pytest.raises(DataError, match="packed twice"):
        read(tmp_path / "b.jsonl.gz")


@given(
    data=st.binary(max_size=80),
    magic=st.sampled_from([b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd", b"PK\x03\x04", b"ARROW1"]),
    name=st.sampled_from(["a.jsonl", "a.csv", "a.zst", "a.arrow", "a"]),
)
def test_noise_behind_a_mark_ends_in_an_error_of_ours(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, magic: bytes, name: str
) -> None:
    path = tmp_path_factory.mktemp("noise") / name
    path.write_bytes(magic + data)
    with pytest.raises(DataError):
        read(path)
