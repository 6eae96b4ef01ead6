"""Files of rows to records, whatever they are; rows and rejections back to JSON lines."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import IO

from nncift.data.examples import Example, Rejection
from nncift.data.json_files import IsRow, OfLine, json_records
from nncift.data.opening import opened, suffix_of
from nncift.data.records import MAX_BYTES, Line, Record, check_not_blank, from_json, from_value, shown
from nncift.data.tables import arrow_records, is_saved, parquet_records, saved_records
from nncift.errors import DataError
from nncift.storage.atomic import atomic

_TABLES = (".csv", ".tsv")
MOST_CELLS = 2_000_000
"""Separators in a line of a table: text of such a length has far fewer."""


def file_records(path: Path, row_columns: Collection[str] = (), is_row: IsRow = lambda _: True) -> Iterator[Record]:
    """Yield the rows of one file, or of a folder that `datasets` saved; blank lines are skipped. See `lines_or_records`."""
    for found in lines_or_records(path, row_columns, is_row, from_json):
        yield found if isinstance(found, Record) else found.parsed()


def lines_or_records(
    path: Path, row_columns: Collection[str] = (), is_row: IsRow = lambda _: True, of_line: OfLine = Line
) -> Iterator[Record | Line]:
    """Yield the rows of one file, those of JSON lines unparsed, so that most of a large file need not be.

    What a file is follows from its bytes; its name tells tables of text (`.csv`, `.tsv`) alone.
    row_columns: names that mark a lone JSON object as a row or a table by columns, where it could also be a wrapper around a
    list of rows; bytes in these columns are text. is_row: whether such an object is one row that can be used. of_line: what
    becomes of a line of JSON.
    Raises DataError for a missing path, another directory, an unknown kind, an empty or damaged file.
    """
    _check(path)
    if path.is_dir():
        yield from saved_records(path, row_columns)
        return
    with opened(path) as (handle, kind):
        if not kind and suffix_of(path).startswith(_TABLES):
            yield from csv_records(handle, path, tabs=suffix_of(path).startswith(".tsv"))
            return
        start = handle.read(1 << 16).lstrip()[:1] if not kind and not suffix_of(path) else b"{"
    if start not in (b"{", b"["):
        raise DataError(
            f"{str(path)!r} has an unknown suffix and holds neither JSON nor a table; expected JSON lines, JSON, CSV, Parquet or "
            "Arrow, also packed; convert it, or give it the suffix of what it is"
        )
    if kind == "parquet":
        yield from parquet_records(path, row_columns)
    elif kind in ("arrow file", "arrow stream"):
        yield from arrow_records([path], row_columns)
    elif kind or suffix_of(path) in (".parquet", ".arrow", ".feather"):
        what = "Parquet" if suffix_of(path) == ".parquet" else "Arrow"
        raise DataError(f"cannot read {str(path)!r} as {what}: its first bytes say otherwise; is the file complete?")
    else:
        yield from json_records(path, row_columns, is_row, of_line)


def _check(path: Path) -> None:
    given = repr(str(path))
    if path.is_dir():
        if is_saved(path):
            return
        inside = sorted(item for item in path.iterdir() if suffix_of(item))[:1]
        raise DataError(
            f"{given} is a directory, expected a file or a folder of save_to_disk; name its files"
            f"{f' ({inside[0]}, ...)' if inside else ''}, or hub:{path} to load it whole"
        )
    if not path.exists():
        raise DataError(f"no such file: {given}; check the path (data sets of the hub are written hub:org/name)")
    if not path.is_file():
        raise DataError(f"{given} is not a regular file; write the rows to a file first")
    if path.stat().st_size == 0:
        raise DataError(f"{given} is empty, expected rows of instruction data")


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


_OTHERS = (";", "\t", ",")


def csv_records(handle: IO[bytes], path: Path, *, tabs: bool) -> Iterator[Record]:
    """Yield the rows of a table as text; an empty cell is null. Raises DataError where it is no table with a header.

    A comma is taken for the separator of `.csv`, a tab for that of `.tsv`; where the header has none of it, a semicolon or the
    other one.
    """
    csv.field_size_limit(MAX_BYTES)
    text = io.TextIOWrapper(handle, encoding="utf-8", newline="")
    try:
        header_line = text.readline(MAX_BYTES)
        separator = _separator(header_line, "\t" if tabs else ",")
        lines = _and_then(header_line, text, separator, path)
        reader = csv.reader(lines, delimiter=separator, strict=True)
        names = next(reader, [])
        _check_names(names, path)
        before, blank = reader.line_num, 0
        for cells in reader:
            line, before = before + 1, reader.line_num
            if not cells:
                blank += 1
                check_not_blank(blank)
                continue
            if len(cells) != len(names):
                reason = f"wrong number of cells: the row has {len(cells)}, and the header {len(names)}"
                yield Record(line, "", None, f"{reason}; put cells with {separator!r} into double quotes")
            else:
                yield from_value(line, {name: cell or None for name, cell in zip(names, cells, strict=True)})
    except csv.Error as error:
        raise DataError(
            f"cannot read {str(path)!r} as a table (line {reader.line_num}): {error}; is a double quote left open?"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{str(path)!r} is not valid UTF-8: it is in another encoding, such as GBK or Latin-1; convert it: "
            f"iconv -f GBK -t UTF-8 {path.name} > utf8-{path.name}"
        ) from error
    finally:
        # The file is closed by who opened it.
        text.detach()


def _and_then(first: str, rest: io.TextIOWrapper, separator: str, path: Path) -> Iterator[str]:
    # A record may run over lines; a line without an end must not fill the memory, and neither must its cells.
    line = first
    while line:
        if len(line) == MAX_BYTES:
            # Read on, the rest of it would look like a row of its own.
            raise DataError(f"a line of {str(path)!r} has more than {MAX_BYTES >> 20} MiB; is it a table?")
        if len(line) > MOST_CELLS and line.count(separator) > MOST_CELLS:
            raise DataError(
                f"a line of {str(path)!r} has more than {MOST_CELLS:,} cells; is {separator!r} what parts its columns?"
            )
        yield line
        line = rest.readline(MAX_BYTES)


def _separator(header: str, usual: str) -> str:
    return usual if usual in header else next((other for other in _OTHERS if other in header), usual)


def _check_names(names: list[str], path: Path) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DataError(f"the header of {str(path)!r} names the column {shown(name)} twice; rename one")
        seen.add(name)
    if not any(names):
        raise DataError(f"{str(path)!r} has no header, expected the names of its columns in the first line")
