"""One row as it comes out of a file: its number, its JSON text, and either the parsed object or why there is none.

Everything in a row is untrusted. What is shown of it goes through `shown`, so that a reason stays one short line.
"""

from __future__ import annotations

import base64
import json
import math
from datetime import date, time
from pathlib import Path
from typing import Any, NamedTuple

from nncift.core.texts import rows_of, too_much
from nncift.errors import DataError

# Chat rows with tool schemas nest about 20 deep. The bound keeps a row readable in every later stage: Python's own
# limit depends on its version and on how deep the call stack is at that moment.
MAX_DEPTH = 100
MAX_REASON = 300
MAX_BYTES = 1 << 25
"""Longest row, as JSON text: 32 MiB, some eight million tokens."""

MOST_UNUSABLE = 1_000_000
"""Rows that cannot be used, among few that can, beyond which a file is given up."""

MOST_BLANK = 5_000_000
"""Blank lines of a file; each takes time and holds nothing."""

MOST_PARTS = 2_000_000
"""Lists and objects of a row, by the brackets in its text: each takes thirty times its text in memory."""

Row = dict[str, Any]
TURN_ROLES = frozenset(("role", "from", "speaker"))
"""Keys under which turns name who speaks."""


class Record(NamedTuple):
    """A row of an input. line: 1-based line or record number. row: None where `reason` says what is wrong."""

    line: int
    raw: str
    row: Row | None
    reason: str = ""


class Line(NamedTuple):
    """A line of JSON that nobody has parsed. line: its number, from 1."""

    line: int
    text: bytes

    def parsed(self) -> Record:
        """Return the row, as `from_json` does."""
        return from_json(self.line, self.text)


def shown(value: object, limit: int = 40) -> str:
    """Return untrusted content for a message: its repr, cut to about `limit` characters, always on one line."""
    if isinstance(value, str):
        return repr(value) if len(value) <= limit else f"{value[:limit]!r}..."
    text = repr(value).replace("\n", " ")
    return text if len(text) <= limit else f"{text[:limit]}..."


def kind_of(value: object) -> str:
    """Name the JSON type of a value, with the value where it is a plain number or boolean."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"a boolean ({value})"
    if isinstance(value, (int, float)):
        return f"a number ({shown(value)})"
    names: dict[type, str] = {str: "text", dict: "an object", list: "a list", tuple: "a list"}
    return names.get(type(value), type(value).__name__)


def too_long(line: int) -> Record:
    """Return the record of a row that is longer than any row may be."""
    return Record(line, "", None, f"too long: the row has more than {MAX_BYTES >> 20} MiB")


def check_worth_reading(given: str | Path, unusable: int, usable: int) -> None:
    """Raise DataError where a file holds nearly nothing but rows that cannot be used: each would be kept with its reason."""
    if unusable > MOST_UNUSABLE and usable * 100 < unusable:
        raise DataError(
            f"more than {MOST_UNUSABLE:,} rows of {str(given)!r} cannot be used and nearly none can. Is it a "
            "file of instruction data? Name its columns with --map, or give another"
        )


def check_not_blank(lines: int) -> None:
    """Raise DataError for a file of so many blank lines that it is none of rows."""
    if lines > MOST_BLANK:
        raise DataError(f"more than {MOST_BLANK:,} lines of a file are blank; take them out, or give another file")


def too_many_parts(text: str, start: int = 0) -> str:
    """Return why a JSON text is more values than any row holds, empty where it is not."""
    return too_much(text, start, parts=MOST_PARTS)


def from_json(line: int, data: bytes) -> Record:
    """Parse one line of JSON; what cannot be parsed comes back with its reason."""
    try:
        raw = data.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"byte 0x{data[error.start]:02x} at position {error.start + 1}"
        return Record(line, "", None, f"not valid UTF-8: {found}")
    return from_text(line, raw)


def from_text(line: int, raw: str) -> Record:
    """Parse the JSON text of one row, as `from_json` does.

    A number that is not finite (NaN, an infinity, 1e999) is null, as in tables, and the row's text is written anew then.
    """
    if len(raw) > MOST_PARTS and (why := too_many_parts(raw)):
        return Record(line, "", None, f"too many parts: the row has {why}")
    try:
        try:
            value = _FINITE.decode(raw)
        except _NotFiniteError:
            return from_value(line, _NULLING.decode(raw))
    except (ValueError, RecursionError) as error:
        return Record(line, raw, None, broken(error, raw))
    return _checked(line, raw, value)


class _NotFiniteError(Exception):
    """A JSON text holds a number that is not finite."""


def _refuse(_: str) -> None:
    raise _NotFiniteError


def _finite_float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise _NotFiniteError
    return number


def _float_or_null(text: str) -> float | None:
    number = float(text)
    return None if math.isinf(number) else number


_FINITE = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite_float)
_NULLING = json.JSONDecoder(parse_constant=lambda _: None, parse_float=_float_or_null)


def as_row(value: object) -> Row | None:
    """Return a JSON value as a row: an object as it is, a list of turns or of texts as the row's `messages`; else None."""
    if isinstance(value, dict):
        return value
    if isinstance(value, list) and value and all(isinstance(item, dict) and TURN_ROLES & item.keys() for item in value):
        return {"messages": value}
    if isinstance(value, list) and len(value) > 1 and all(isinstance(item, str) for item in value):
        return {"messages": value}
    return None


def from_value(line: int, value: object) -> Record:
    """Make the record of a row that comes parsed (JSON array, Parquet, hub); its JSON text is written anew.

    The row is what this text says, where JSON has no such value (dates, bytes): what is kept of it is the text.
    """
    try:
        raw, exact = _written(value)
        if not exact and isinstance(value, (dict, list)) and len(raw) <= MAX_BYTES:
            value = json.loads(raw)
    except RecursionError as error:
        return Record(line, "", None, broken(error))
    except TypeError as error:
        return Record(line, "", None, f"not readable: {shown(str(error), 120)}")
    return too_long(line) if len(raw) > MAX_BYTES else _checked(line, raw, value)


def broken(error: ValueError | RecursionError, text: str = "") -> str:
    """Say why a JSON text could not be parsed. text: what it begins with, where that is at hand."""
    if text.lstrip()[:2] in ("{'", "['", "[{") and "'" in text.lstrip()[:4]:
        return "not JSON: it is printed Python (single quotes); write rows with json.dumps"
    if isinstance(error, RecursionError):
        return f"nested too deeply: more than {MAX_DEPTH} levels"
    if isinstance(error, json.JSONDecodeError):
        where = f"character {error.pos + 1}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        return f"broken JSON: {error.msg} ({where})"
    return "number too long: an integer has more digits than Python reads"


def _checked(line: int, raw: str, value: object) -> Record:
    row = as_row(value)
    if row is None:
        return Record(line, raw, None, f"not an object: the row is {kind_of(value)}")
    # Counting brackets is much cheaper than walking, and clears nearly every row.
    if raw.count("{") + raw.count("[") > MAX_DEPTH and _deeper_than(row, MAX_DEPTH):
        return Record(line, raw, None, f"nested too deeply: more than {MAX_DEPTH} levels")
    return Record(line, raw, row)


def _deeper_than(value: Row, limit: int) -> bool:
    level: list[Any] = [value]
    for _ in range(limit):
        children = (child for item in level for child in (item.values() if isinstance(item, dict) else item))
        level = [child for child in children if isinstance(child, (dict, list, tuple))]
        if not level:
            return False
    return True


def kept_row(raw: str) -> Row:
    """Return the row whose JSON text a run has kept. Raises DataError where that is no row: the file is damaged."""
    try:
        # A row that is missing is no text.
        value = json.loads(raw or "")
    except (ValueError, RecursionError) as error:
        raise DataError(f"a row that the run kept is damaged ({broken(error)}): {shown(raw)}; run it again") from error
    row = as_row(value)
    if row is None:
        raise DataError(f"a row that the run kept is damaged ({kind_of(value)}): {shown(raw)}; run it again")
    return row


def kept_lines(path: Path, count: int) -> list[str]:
    """Return the rows of a file that a run wrote, `count` lines of JSON.

    Raises OSError, and ValueError where it holds fewer or more, or one that is longer than rows can be.
    """
    found: list[str] = []
    # A character takes four bytes at most.
    most = 4 * MAX_BYTES
    with path.open("rb") as stream:
        while line := stream.readline(most + 2):
            line = line.removesuffix(b"\n")
            if len(line) > most:
                raise ValueError(f"a row of {path.name} has more than {most >> 20} MiB")
            if len(found) == count and line:
                raise ValueError(f"{path.name} holds more than {rows_of(count)}")
            if line:
                found.append(line.decode("utf-8"))
    if len(found) < count:
        raise ValueError(f"{path.name} holds {rows_of(len(found))} of {count:,}")
    return found


def to_json(value: object) -> str:
    """Write a row as one line of JSON that UTF-8 can hold; raises RecursionError.

    Dates become ISO text, bytes base64, decimals text, numpy values lists and numbers; numbers that JSON does not know
    (NaN, infinities) become null.
    """
    return _written(value)[0]


def _written(value: object) -> tuple[str, bool]:
    """Return the JSON text of a row, and whether it reads back as the row itself."""
    exact = True

    def changed(item: Any) -> object:
        nonlocal exact
        exact = False
        return _jsonable(item)

    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=changed)
    except ValueError:
        return to_json(_finite(value)), False
    if text.isascii():
        return text, exact
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, ensure_ascii=True, default=_jsonable), exact
    return text, exact


def _jsonable(value: Any) -> object:
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=repr)
    # numpy arrays and scalars both have `tolist`; numpy need not be imported to know them.
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _finite(value: Any) -> object:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if hasattr(value, "tolist"):
        return _finite(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
