"""JSON documents that are one object: read piece by piece they hold what the whole document holds."""

import gzip
import json
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nncift.data.file_rows import file_records
from nncift.data.records import from_json
from nncift.errors import DataError

COLUMNS = ("prompt", "completion")
ROWS = st.lists(
    st.fixed_dictionaries({"prompt": st.text(max_size=5)}) | st.integers() | st.lists(st.none(), max_size=2)
)
VALUES = ROWS | st.integers() | st.text(max_size=5) | st.dictionaries(st.text(max_size=2), ROWS, max_size=2)
NAMES = st.sampled_from(["data", "rows", "meta", "prompt", 'a"b', ""])


@contextmanager
def chunks_of(size: int) -> Iterator[None]:
    with mock.patch("nncift.data.json_arrays.CHUNK", size), mock.patch("nncift.data.json_files.CHUNK", size):
        yield


def concatenated(data: bytes) -> list[Any] | None:
    """Return the values of a text in which they stand one after the other, None where it is no such text."""
    try:
        text, values = data.decode("utf-8").strip(), []
        while text:
            value, end = json.JSONDecoder().raw_decode(text)
            values.append(value)
            text = text[end:].strip().removeprefix(",").strip()
    except ValueError:
        return None
    return values


def whole(data: bytes) -> Any:
    """Return the rows of a document by reading it whole, or what kind of error it has."""
    try:
        value = json.loads(data.decode("utf-8"))
    except ValueError as error:
        head, _, rest = data.lstrip().partition(b"\n")
        if rest.strip() and from_json(1, head).row is not None:
            return [json.loads(line) for line in data.splitlines() if line.strip()]
        values = concatenated(data)
        return type(error).__name__ if values is None else values
    if any(name in value for name in COLUMNS):
        return [value]
    lists = [item for item in value.values() if isinstance(item, list) and any(isinstance(x, dict) for x in item)]
    return "several" if len(lists) > 1 else lists[0] if lists else [value]


def read(path: Path) -> Any:
    try:
        return [json.loads(record.raw) for record in file_records(path, COLUMNS)]
    except DataError as error:
        names = {"several lists": "several", "UTF-8": "UnicodeDecodeError", "cannot read": "JSONDecodeError"}
        return next(name for said, name in names.items() if said in str(error))


def written(entries: list[tuple[str, Any]], blank: str) -> bytes:
    """Return an object with its entries as they are given: a name may come twice."""
    between = f",{blank}".join(f"{json.dumps(name)}:{blank}{json.dumps(value)}" for name, value in entries)
    return f"{blank}{{{blank}{between}{blank}}}{blank}".encode()


@example([("data", [{"prompt": ""}]), ("data", 1)], " ", 1)
@example([("data", [1, {}]), ("rows", [2]), ("data", [{}, 3])], "\n", 2)
@example([("data", [{}]), ("rows", [{}])], "", 5)
@example([("data", [{}]), ("prompt", 1)], "", 5)
@given(
    st.lists(st.tuples(NAMES, VALUES), min_size=1, max_size=4), st.sampled_from(["", " ", "\n\t"]), st.integers(1, 60)
)
def test_pieces_of_any_size_give_the_rows_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[str, Any]], blank: str, chunk: int
) -> None:
    path, data = tmp_path_factory.mktemp("one") / "a.json", written(entries, blank)
    path.write_bytes(data)
    with chunks_of(chunk):
        assert read(path) == whole(data)


@pytest.mark.parametrize("chunk", [1, 4, 1000])
@pytest.mark.parametrize(
    "text",
    [
        b'{"data": [{}, {}',
        b'{"data": [{}] "x": 1}',
        b'{"data": [{}],}',
        b"{",
        b"{1: 2}",
        b'{"data" [{}]}',
        b'{"data": [{},]}',
        b'{"data": [{}]} 1',
        b'{"data": [{}]}\n{"data": 1}',
        b'{"prompt": "a"}\n\n{"prompt": "b"}',
        b'\n{"a": 1}\n{"a": 2}\n',
        b'{"data":\n[{}]}\n{"a": 1}',
        b'{"a": 1} {"b": 2}',
        b'{"a": "\xff"}',
        b'{"data": [{}, "\xe9"]}',
        b'{"a": 1}\n{"a": 2',
        b"{}",
        b'{"data": []}',
    ],
)
def test_broken_documents_and_lines_are_what_they_are_as_a_whole(tmp_path: Path, text: bytes, chunk: int) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(text)
    expected = whole(text) if text != b'{"a": 1}\n{"a": 2' else [{"a": 1}]
    with chunks_of(chunk):
        if text.endswith(b'{"a": 2'):
            assert [record.reason.partition(":")[0] for record in file_records(path)] == ["", "broken JSON"]
        else:
            assert read(path) == expected


def test_a_packed_object_is_read_twice(tmp_path: Path) -> None:
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress(b'\xef\xbb\xbf{"data": [{"prompt": "a"}, 3, {"prompt": "b"}], "n": {"x": [{}]}}'))
    assert read(path) == [{"prompt": "a"}, 3, {"prompt": "b"}]


def test_a_large_list_in_an_object_is_never_whole_in_memory(tmp_path: Path) -> None:
    path, rows = tmp_path / "a.json", 40_000
    with path.open("w") as stream:
        stream.write('{"version": 1, "data": [')
        stream.writelines(f'{{"prompt": "{k} {"x" * 400}"}}{"," if k + 1 < rows else ""}' for k in range(rows))
        stream.write('], "end": true}')
    tracemalloc.start()
    count = sum(1 for _ in file_records(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == rows
    # 17 MB as text, of which two pieces of 1 MiB and their text are held.
    assert path.stat().st_size > 16_000_000
    assert peak < 8_000_000
