"""JSON of every layout as records, whatever the file is called.

| layout | read |
|---|---|
| one row a line (JSON lines), with or without commas between lines | line by line |
| an array of rows, or one in an object (`{"data": [...]}`) | value by value |
| rows over several lines, one after the other | value by value |
| a table by columns: lists, pandas' `to_json` in its forms | whole, up to 512 MiB |
| one row | whole |
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from nncift.data.json_arrays import CHUNK, MOST_VALUE, array_values, first_element, object_entries, survey, value_stream
from nncift.data.opening import opened, suffix_of
from nncift.data.records import (
    MAX_BYTES,
    TURN_ROLES,
    Line,
    Record,
    Row,
    broken,
    check_not_blank,
    from_json,
    from_value,
    kind_of,
    shown,
    too_long,
    too_many_parts,
)
from nncift.errors import DataError

_LINES = (".jsonl", ".ndjson")
_HEAD = 1 << 16
IsRow = Callable[[Row], bool]
OfLine = Callable[[int, bytes], Record | Line]
"""Makes a record of a line's number and text, or leaves that to later (`Line`)."""


def json_records(
    path: Path, row_columns: Collection[str], is_row: IsRow, of_line: OfLine = from_json
) -> Iterator[Record | Line]:
    """Yield the rows of a file of JSON. Other parameters: see `files.file_records`. Raises DataError where it is none."""
    layout = _layout(path, is_row)
    if layout == "empty":
        return
    if layout == "object":
        yield from _of_object(path, row_columns, is_row)
        return
    with _text_of(path) as handle:
        if layout == "lines":
            yield from _lines(handle, of_line)
            return
        start = _beginning(handle)
        if layout == "value":
            (value,) = _read((_whole(start + handle.read(MOST_VALUE)) for _ in range(1)), path)
            raise DataError(f"{str(path)!r} holds {kind_of(value)}, expected an array of objects")
        values = array_values(start, handle) if layout == "array" else value_stream(start, handle)
        for number, row in enumerate(_read(values, path), start=1):
            yield from_value(number, row)


@contextmanager
def _text_of(path: Path) -> Iterator[IO[bytes]]:
    """Open a file of JSON; where lines end with a carriage return alone, it stands for a line feed: no JSON text holds one."""
    with opened(path) as (handle, _):
        head = cast("Any", handle).peek(_HEAD)[:_HEAD]
        if b"\r" in head and b"\n" not in head:
            handle = cast("IO[bytes]", io.BufferedReader(_FedLines(handle), _HEAD))
        yield handle


class _FedLines(io.RawIOBase):
    """Text with line feeds in the place of carriage returns."""

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle = handle

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._handle.read(len(buffer)).replace(b"\r", b"\n")
        buffer[: len(data)] = data
        return len(data)


def _beginning(handle: IO[bytes], size: int | None = None) -> bytes:
    """Return what a document begins with, blanks and then some text."""
    size = CHUNK if size is None else size
    parts = [handle.read(size)]
    while parts[-1].isspace() and (more := handle.read(size)):
        parts.append(more)
    return b"".join(parts)


def _layout(path: Path, is_row: IsRow) -> str:
    """Return how rows are laid out: lines, array, values (over several lines), object, value where it is no row, or empty."""
    named_lines = suffix_of(path).startswith(_LINES)
    with _text_of(path) as handle:
        start = _beginning(handle, min(CHUNK, _HEAD))
        first = start.lstrip()[:1]
        if first not in (b"{", b"["):
            return "empty" if not first else "lines" if named_lines else "value"
        line, feed, rest = start.lstrip().partition(b"\n")
        try:
            if first == b"[" and not _is_row_of_turns(first_element(start, handle)):
                return "array"
            row = _row_of(line) if feed else None
            if row is not None and first == b"{":
                alone = not rest.strip() and not _any_left(handle)
                return "object" if alone and not (named_lines and is_row(row)) else "lines"
            more = first == b"[" or survey(start, handle)[1]
        except (ValueError, RecursionError):
            # The first row may be broken alone; a broken document is reported when it is read.
            if named_lines:
                return "lines"
            return "array" if first == b"[" else "object"
    if not feed:
        with _text_of(path) as handle:
            row = _row_of(handle.readline(MAX_BYTES)) if more or named_lines else None
    if not more:
        return "lines" if row is not None and named_lines and is_row(row) else "object"
    return "lines" if row is not None else "values"


def _row_of(line: bytes) -> Row | None:
    return from_json(1, line.rstrip().rstrip(b",")).row


def _is_row_of_turns(first: list[object]) -> bool:
    """Tell an array that is a row itself, by its first element: a turn, or a text."""
    return any(isinstance(item, str) or (isinstance(item, dict) and bool(TURN_ROLES & item.keys())) for item in first)


def _any_left(handle: IO[bytes]) -> bool:
    return any(part.strip() for part in iter(lambda: handle.read(CHUNK), b""))


def _lines(handle: IO[bytes], of_line: OfLine) -> Iterator[Record | Line]:
    """Yield one record per line; only a line feed ends a line, since JSON text may hold any other separator."""
    blank = 0
    for number, line in enumerate(_bounded(handle), start=1):
        if line is None:
            yield too_long(number)
            continue
        if line.isspace():
            blank += 1
            check_not_blank(blank)
            continue
        # A comma between rows is left over from an array.
        text = line.rstrip(b"\r\n")
        if text.endswith(b",") or text.rstrip().endswith(b","):
            text = text.rstrip()[:-1]
        if text.strip():
            yield of_line(number, text)


def _bounded(handle: IO[bytes]) -> Iterator[bytes | None]:
    """Yield lines, None for one that is longer than any row may be; of that one only a part is in memory at a time."""
    while line := handle.readline(MAX_BYTES + 1):
        if len(line) <= MAX_BYTES:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = handle.readline(MAX_BYTES)
        yield None


def _of_object(path: Path, row_columns: Collection[str], is_row: IsRow) -> Iterator[Record]:
    """Yield the rows of a document that is an object: what is in its list of objects, else a table by columns, else itself.

    The file is read again, since its last name may say what the first list is.
    """
    with _text_of(path) as handle:
        try:
            names, _ = survey(_beginning(handle), handle)
        except (ValueError, RecursionError) as error:
            raise _unreadable(path, error) from error
    place = None if any(name in row_columns for name, _ in names) else _list_of_rows(names, path)
    with _text_of(path) as handle:
        start = _beginning(handle)
        if place is not None:
            entries = object_entries(start, handle)
            values = next(values for at, (_, values) in enumerate(entries) if at == place)
            for number, row in enumerate(_read(values or iter(()), path), start=1):
                yield from_value(number, row)
            return
        data = start + handle.read(MOST_VALUE)
        if len(data) > MOST_VALUE:
            raise DataError(
                f"{str(path)!r} is one object of more than {MOST_VALUE >> 20} MiB without a list of rows in it; write one row "
                "a line (pandas: to_json(path, orient='records', lines=True))"
            )
        (value,) = _read((_whole(data) for _ in range(1)), path)
    record = from_value(1, value)
    table = None if record.row is None or is_row(record.row) else rows_of_table(cast("Row", value))
    if table is None:
        yield record
        return
    for number, row in enumerate(table, start=1):
        yield from_value(number, row)


def _whole(data: bytes) -> object:
    """Return the value of a document. Raises ValueError where it is none, or more than memory should hold of it."""
    text = data.decode("utf-8")
    if why := too_many_parts(text):
        raise json.JSONDecodeError(f"a value of {why}", "", 0)
    found: object = json.loads(text)
    return found


def _list_of_rows(names: list[tuple[str, bool]], path: Path) -> int | None:
    """Return which entry of an object is its list of rows, None where it has none. A name that comes twice counts as its last."""
    found = {name: at if listed else None for at, (name, listed) in enumerate(names)}
    lists = {name: at for name, at in found.items() if at is not None}
    if len(lists) > 1:
        some = ", ".join(shown(name) for name in list(lists)[:5])
        raise DataError(f"{str(path)!r} holds several lists of objects ({some}), expected one; write each to a file")
    return next(iter(lists.values()), None)


def rows_of_table(value: Row) -> Iterator[Row] | None:
    """Return the rows of a table by columns, None where an object is none.

    Forms: lists of one length (`to_dict("list")`), and what pandas' `to_json` writes as columns, index and split.
    """
    if {"columns", "data"} <= value.keys() and _are(list, value["data"]) and isinstance(value["columns"], list):
        names = value["columns"]
        if all(isinstance(name, str) for name in names) and all(len(cells) == len(names) for cells in value["data"]):
            return (dict(zip(names, cells, strict=True)) for cells in value["data"])
    parts = list(value.values())
    if _are(list, parts) and len({len(part) for part in parts}) == 1 and parts[0]:
        return (dict(zip(value, cells, strict=True)) for cells in zip(*parts, strict=True))
    if not _are(dict, parts) or not parts[0]:
        return None
    keys = parts[0].keys()
    if any(part.keys() != keys for part in parts):
        return None
    # Rows under their names, or columns whose cells stand under the names of rows: those are numbers unless they were set.
    if all(key.isdecimal() for key in value) and not all(key.isdecimal() for key in keys):
        return iter(parts)
    return ({name: part[key] for name, part in value.items()} for key in keys)


def _are(kind: type, items: Any) -> bool:
    return isinstance(items, list) and bool(items) and all(isinstance(item, kind) for item in items)


def _read(values: Iterator[object], path: Path) -> Iterator[object]:
    """Yield what a document holds. Raises DataError where it cannot be read."""
    try:
        yield from values
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: ValueError | RecursionError) -> DataError:
    if isinstance(error, UnicodeDecodeError):
        return DataError(
            f"{str(path)!r} is not valid UTF-8 (byte {error.start + 1}): it is in another encoding, such as GBK or Latin-1; "
            f"convert it: iconv -f GBK -t UTF-8 {path.name} > utf8-{path.name}"
        )
    expected = "expected an array of objects, or JSON lines named .jsonl"
    return DataError(f"cannot read {str(path)!r}: {broken(error)}; {expected}")
