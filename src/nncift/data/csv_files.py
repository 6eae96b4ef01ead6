"""CSV and TSV as records: a header, then one row a record, cells in quotes where they hold separators or line breaks."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from nncift.data.records import MAX_BYTES, Record, from_value, shown
from nncift.errors import DataError

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
        lines = _and_then(header_line, text)
        reader = csv.reader(lines, delimiter=separator, strict=True)
        names = next(reader, [])
        _check_names(names, path)
        before = reader.line_num
        for cells in reader:
            line, before = before + 1, reader.line_num
            if not cells:
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


def _and_then(first: str, rest: io.TextIOWrapper) -> Iterator[str]:
    yield first
    # A record may run over lines; a line without an end must not fill the memory.
    while line := rest.readline(MAX_BYTES):
        yield line


def _separator(header: str, usual: str) -> str:
    return usual if usual in header else next((other for other in _OTHERS if other in header), usual)


def _check_names(names: list[str], path: Path) -> None:
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise DataError(f"the header of {str(path)!r} names the column {shown(twice)} twice; rename one")
    if not any(names):
        raise DataError(f"{str(path)!r} has no header, expected the names of its columns in the first line")
