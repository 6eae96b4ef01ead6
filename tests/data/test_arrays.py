"""JSON arrays that are read piece by piece: the same values, the same complaints, and little of them in memory."""

import io
import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nncift.data import json_arrays as arrays
from nncift.data.json_arrays import array_values

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def values(data: bytes, chunk: int) -> list[Any]:
    before = arrays.CHUNK
    arrays.CHUNK = chunk
    try:
        return list(array_values(data[:chunk], io.BytesIO(data[chunk:])))
    finally:
        arrays.CHUNK = before


def outcome(read: Any) -> Any:
    try:
        return read()
    except json.JSONDecodeError as error:
        return error.msg, error.pos, error.lineno, error.colno
    except UnicodeDecodeError as error:
        return error.start


@example([0.5, -1e-300, 1e300], None, False, 1)
@given(st.lists(VALUES), st.sampled_from([None, 1]), st.booleans(), st.integers(1, 40))
def test_pieces_of_any_size_give_the_values_of_the_whole(
    wanted: list[Any], indent: int | None, ascii_: bool, chunk: int
) -> None:
    text = json.dumps(wanted, indent=indent, ensure_ascii=ascii_)
    data = f" \n{text}\n".encode("utf-8", "surrogatepass" if ascii_ else "replace")
    assert values(data, chunk) == json.loads(data)


@pytest.mark.parametrize("chunk", [1, 3, 7, 1000])
@pytest.mark.parametrize(
    "text",
    [
        "[1, 2",
        "[1 2]",
        "[,]",
        "[",
        '["abc',
        '[{"a": tru}]',
        '[{"a": 1},\n {"b" 2}]',
        "[1] 2",
        "[\n\n1,\n  2 3]",
        '["\n"]',
        '["\\x"]',
        "[1]\n]",
    ],
)
def test_complaints_name_the_place_in_the_whole(text: str, chunk: int) -> None:
    found = outcome(lambda: values(text.encode(), chunk))
    assert isinstance(found, tuple)
    assert found == outcome(lambda: json.loads(text))


def test_a_comma_before_the_end_is_refused_as_python_refuses_it() -> None:
    # Python 3.13 has words of its own for it.
    for read in (lambda: values(b"[1,]", 1), lambda: json.loads("[1,]")):
        with pytest.raises(json.JSONDecodeError):
            read()


@pytest.mark.parametrize("chunk", [1, 2, 5, 1000])
def test_bytes_that_are_no_text_are_named_by_their_place(chunk: int) -> None:
    for data in ('["é", "'.encode() + b'\xff"]', '["é'.encode()[:-1]):
        assert outcome(lambda data=data: values(data, chunk)) == outcome(lambda data=data: data.decode())


def test_a_large_array_is_never_whole_in_memory() -> None:
    data = b"[" + b",\n".join(b'{"text": "%s"}' % (b"x" * 1000) for _ in range(8000)) + b"]"
    handle = io.BytesIO(data)
    tracemalloc.start()
    count = sum(1 for _ in array_values(b"", handle))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 8000
    assert peak < len(data)
