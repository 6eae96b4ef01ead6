"""Files of rows: JSON lines, JSON documents and Parquet to records; rows and rejections back to JSON lines."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from nncift.data.arrays import CHUNK, array_values, object_entries
from nncift.data.examples import Example, Rejection
from nncift.data.records import MAX_BYTES, Record, broken, from_json, from_value, kind_of, shown, too_long
from nncift.data.tables import parquet_records
from nncift.errors import DataError
from nncift.files import atomic

LINE_SUFFIXES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
DOCUMENT_SUFFIXES = (".json", ".json.gz")
SUFFIXES = (*LINE_SUFFIXES, *DOCUMENT_SUFFIXES, ".parquet")
MOST_RATIO, LEAST_UNPACKED = 200, 1 << 24
"""How many times its size a gzip file may unpack to, and how many bytes it may in any case."""

_BOM = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def stem_of(path: Path) -> str:
    """Return the file name without the suffix that says how to read it."""
    suffix = _suffix(path)
    return path.name[: -len(suffix)] if suffix else path.name


def _suffix(path: Path) -> str:
    name = path.name.lower()
    return max((suffix for suffix in SUFFIXES if name.endswith(suffix)), key=len, default="")


def file_records(path: Path, row_columns: Collection[str] = ()) -> Iterator[Record]:
    """Yield the rows of one file, blank lines skipped.

    row_columns: names that mark a lone JSON object as a row, where it could also be a wrapper around a list of rows.
    Raises DataError for a missing path, a directory, an unknown suffix, an empty or damaged file.
    """
    _check(path)
    suffix = _suffix(path)
    try:
        if suffix == ".parquet":
            yield from parquet_records(path)
            return
        with _open(path) as handle:
            if suffix in LINE_SUFFIXES:
                yield from _lines(handle, path)
            else:
                yield from _document(handle, path, row_columns)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"cannot read {str(path)!r}: {type(error).__name__}: {shown(str(error), 160)}; "
            "check its permissions and that it is complete"
        ) from error


def _check(path: Path) -> None:
    given = repr(str(path))
    if path.is_dir():
        raise DataError(f"{given} is a directory, expected a file; name its files, or hub:{path} to load it whole")
    if not path.exists():
        raise DataError(f"no such file: {given}; check the path (data sets of the hub are written hub:org/name)")
    if not path.is_file():
        raise DataError(f"{given} is not a regular file; write the rows to a file first")
    if not _suffix(path):
        raise DataError(f"{given} has an unknown suffix, expected one of {', '.join(SUFFIXES)}; convert or rename it")
    if path.stat().st_size == 0:
        raise DataError(f"{given} is empty, expected rows of instruction data")


def _open(path: Path) -> IO[bytes]:
    if path.name.lower().endswith(".gz"):
        return cast("IO[bytes]", io.BufferedReader(_Unpacked(path), 1 << 16))
    return path.open("rb")


class _Unpacked(io.RawIOBase):
    """A gzip file that is refused once it unpacks to far more than data does: a few kB can hold terabytes of zeros."""

    def __init__(self, path: Path) -> None:
        self._path, self._stream, self._done = path, gzip.open(path, "rb"), 0  # noqa: SIM115 - closed with this
        self._most = max(LEAST_UNPACKED, MOST_RATIO * path.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._stream.readinto(buffer)
        self._done += count
        if self._done > self._most:
            raise DataError(
                f"{str(self._path)!r} unpacks to more than {MOST_RATIO} times its size, which rows of text do not; unpack it "
                "yourself if it is what you think it is"
            )
        return count

    def close(self) -> None:
        self._stream.close()
        super().close()


def _lines(handle: IO[bytes], path: Path) -> Iterator[Record]:
    """Yield one record per line; only a line feed ends a line, since JSON text may hold any other separator."""
    for number, line in enumerate(_bounded(handle), start=1):
        if line is None:
            yield too_long(number)
            continue
        if number == 1:
            _refuse_utf16(line, path)
            line = line.removeprefix(_BOM)
        if line.strip():
            yield from_json(number, line.rstrip(b"\r\n"))


def _bounded(handle: IO[bytes]) -> Iterator[bytes | None]:
    """Yield lines, None for one that is longer than any row may be; of that one only a part is in memory at a time."""
    while line := handle.readline(MAX_BYTES + 1):
        if len(line) <= MAX_BYTES:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = handle.readline(MAX_BYTES)
        yield None


def _refuse_utf16(data: bytes, path: Path) -> None:
    if data.startswith(_UTF16_MARKS):
        raise DataError(f"{str(path)!r} is UTF-16 text, expected UTF-8; convert it (iconv -f UTF-16 -t UTF-8)")


def _document(handle: IO[bytes], path: Path, row_columns: Collection[str]) -> Iterator[Record]:
    """Yield the rows of one JSON document; an array, alone or in an object, is never in memory as a whole."""
    start = _beginning(handle, path)
    if not start.strip():
        return
    if start.lstrip().startswith(b"{"):
        yield from _of_object(start, handle, path, row_columns)
        return
    if not start.lstrip().startswith(b"["):
        (value,) = _told((json.loads((start + handle.read()).decode("utf-8")) for _ in range(1)), path)
        raise DataError(f"{str(path)!r} holds {kind_of(value)}, expected an array of objects")
    for number, row in enumerate(_told(array_values(start, handle), path), start=1):
        yield from_value(number, row)


def _beginning(handle: IO[bytes], path: Path) -> bytes:
    """Return what a document begins with, blanks and then some text."""
    start = handle.read(CHUNK)
    _refuse_utf16(start, path)
    start = start.removeprefix(_BOM)
    while start.isspace() and (more := handle.read(CHUNK)):
        start += more
    return start


def _of_object(start: bytes, handle: IO[bytes], path: Path, row_columns: Collection[str]) -> Iterator[Record]:
    """Yield the rows of a document that begins with an object: what is in its list of objects, else itself, or JSON lines.

    The file is read twice, since its last name may say what the first list is.
    """
    try:
        place = _place_of_rows(object_entries(start, handle), path, row_columns)
    except (ValueError, RecursionError) as error:
        if not _holds_lines(path):
            raise _unreadable(path, error) from error
        lines = True
    else:
        lines = False
    with _open(path) as again:
        if lines:
            yield from _lines(again, path)
        elif place is None:
            (value,) = _told((json.loads(again.read().removeprefix(_BOM).decode("utf-8")) for _ in range(1)), path)
            yield from_value(1, value)
        else:
            entries = object_entries(_beginning(again, path), again)
            values = next(values for at, (_, values) in enumerate(entries) if at == place)
            for number, row in enumerate(_told(values or iter(()), path), start=1):
                yield from_value(number, row)


def _told(values: Iterator[object], path: Path) -> Iterator[object]:
    """Yield what a document holds. Raises DataError where it cannot be read."""
    try:
        yield from values
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: ValueError | RecursionError) -> DataError:
    if isinstance(error, UnicodeDecodeError):
        return DataError(f"{str(path)!r} is not valid UTF-8 (byte {error.start + 1}); convert it to UTF-8")
    return DataError(
        f"cannot read {str(path)!r}: {broken(error)}; expected an array of objects, or JSON lines named .jsonl"
    )


def _holds_lines(path: Path) -> bool:
    """Tell JSON lines under a .json name: a whole object on the first line, and more after it, is no JSON document."""
    with _open(path) as handle:
        head = handle.readline(MAX_BYTES + 1).removeprefix(_BOM)
        while head.isspace():
            head = handle.readline(MAX_BYTES + 1)
        if from_json(1, head.strip()).row is None:
            return False
        return any(part.strip() for part in iter(lambda: handle.read(CHUNK), b""))


def _place_of_rows(
    entries: Iterator[tuple[str, Iterator[object] | None]], path: Path, row_columns: Collection[str]
) -> int | None:
    """Return which entry of an object is the list of rows; None where the object itself is the row."""
    found: dict[str, int | None] = {}
    for at, (name, values) in enumerate(entries):
        found[name] = at if values is not None and any(isinstance(value, dict) for value in values) else None
    if any(column in found for column in row_columns):
        return None
    lists = [name for name, at in found.items() if at is not None]
    if len(lists) > 1:
        names = ", ".join(shown(name) for name in lists[:5])
        raise DataError(f"{str(path)!r} holds several lists of objects ({names}), expected one; write each to a file")
    return found[lists[0]] if lists else None


def write_rows(path: str | Path, examples: Iterable[Example]) -> None:
    """Write the original rows as JSON lines, in the order given; the file appears whole or not at all."""
    _write_lines(Path(path), (example.raw for example in examples))


def write_rejected(path: str | Path, rejected: Iterable[Rejection]) -> None:
    """Write rejections as JSON lines of source, line and reason; the file appears whole or not at all."""
    rows = ({"source": item.source, "line": item.line, "reason": item.reason} for item in rejected)
    _write_lines(Path(path), (json.dumps(row, ensure_ascii=False) for row in rows))


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with atomic(path) as part, part.open("wb") as handle:
        for line in lines:
            handle.write(line.encode("utf-8") + b"\n")
