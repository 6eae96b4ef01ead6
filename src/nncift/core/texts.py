"""Text files that people write: ids, settings, prompts. Editors put byte order marks in front of them."""

from __future__ import annotations

import codecs
import difflib
import json
from collections.abc import Callable, Iterable, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

MOST_BYTES = 1 << 29
"""Bytes of a text file that is read whole. A file with holes takes no place on a disk, and all of memory."""

MOST_PARTS = 4_000_000
"""Lists and objects in a JSON file of a run; each takes thirty times its text in memory."""

MOST_HELD, LEAST_TIMES = 1 << 28, 4
"""Bytes that values of a JSON text may take in memory, or so many times its own where that is more."""

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""UTF-32 first: its little-endian mark begins with that of UTF-16."""


def read_bytes(path: Path | Traversable, most: int = MOST_BYTES) -> bytes:
    """Return what a file holds. Raises OSError, and ValueError for one of more than `most` bytes."""
    if not isinstance(path, Path):
        # It comes with a package.
        return path.read_bytes()
    if path.stat().st_size > most:
        raise ValueError(f"it has more than {most >> 20} MiB")
    if path.is_file():
        return path.read_bytes()
    # What is no file says no size.
    with path.open("rb") as stream:
        data = stream.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it has more than {most >> 20} MiB")
    return data


def read_text(path: Path | Traversable, most: int = MOST_BYTES) -> str:
    """Return a text in UTF-8, or in the Unicode encoding that its byte order mark names, without that mark.

    Line ends are line feeds. Raises OSError, UnicodeError, and ValueError for one of more than `most` bytes.
    """
    data = read_bytes(path, most)
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8-sig")
    return data.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")


def parsed(text: str) -> Any:
    """Return what a JSON text of a run holds. Raises ValueError where it is none, or far more in memory than as text."""
    if why := too_much(text, parts=MOST_PARTS):
        raise ValueError(f"it holds {why}")
    return json.loads(text)


def parsed_file(path: Path, most: int = MOST_BYTES) -> Any:
    """Return what a JSON file holds. Raises OSError, RecursionError, and ValueError as `read_bytes` and `parsed`."""
    return parsed(read_bytes(path, most).decode("utf-8"))


def too_much(text: str, start: int = 0, *, parts: int) -> str:
    """Return why a JSON text is more than memory should hold as values, by its signs alone; empty where it is not.

    parts: most lists and objects.
    """
    lists = text.count("[", start) + text.count("{", start)
    if lists > parts:
        return f"more than {parts:,} lists and objects"
    # A short text takes 51 bytes and its place in a list 8, a name and its place in an object about 100.
    held = 60 * (lists + text.count(",", start)) + 100 * text.count(":", start)
    if held > max(MOST_HELD, LEAST_TIMES * (len(text) - start)):
        return f"so many values that they take more than {MOST_HELD >> 20:,} MiB"
    return ""


AT_ONCE = 1 << 19
"""Characters that a tokenizer is given at once: it holds more than a hundred bytes for each."""


def counted(texts: Iterable[str], count: Callable[[list[str]], Iterable[int]]) -> list[int]:
    """Return the tokens of every text; a text beyond `AT_ONCE` has as many more as it is longer than its beginning.

    count: what counts the tokens of some texts.
    """
    found: list[int] = []
    part: list[str] = []
    longer: list[float] = []
    held = 0

    def finish() -> None:
        if part:
            found.extend(round(tokens * more) for tokens, more in zip(count(part), longer, strict=True))
        part.clear()
        longer.clear()

    for text in texts:
        size = min(len(text), AT_ONCE)
        if held + size > AT_ONCE:
            finish()
            held = 0
        part.append(text[:AT_ONCE])
        longer.append(max(1.0, len(text) / AT_ONCE))
        held += size
    finish()
    return found


def seconds(value: float) -> str:
    """Return a duration in the unit that reads best."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if value >= 2 * size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.1f} s"


def first_line(error: BaseException) -> str:
    """Return what an error says in one line of at most 300 characters, or its kind where it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__


def rows_of(count: int) -> str:
    """Return a number of rows in words."""
    return "1 row" if count == 1 else f"{count:,} rows"


def one_line(text: str, most: int) -> str:
    """Return a text of a row for a terminal: on one line, of about `most` characters, control characters written out.

    What a terminal obeys, such as the escape in front of a colour or a title, must not come from data.
    """
    line = " ".join(text.split())
    line = line if len(line) <= most else f"{line[:most]} ..."
    return "".join(mark if mark.isprintable() else repr(mark)[1:-1] for mark in line)


def plain(text: str) -> str:
    """Return text that means nothing to Markdown or HTML: names come from files."""
    return "".join(" " if mark in "`<>|\n\r[]" else mark for mark in text)


def some(names: Sequence[str]) -> str:
    """Return the first five names, and how many there are beside: `a, b and 3 more`."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint at the nearest known name, or at all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(names)}"


def listed(names: Sequence[str]) -> str:
    """Return names as a sentence has them: `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def bullets(lines: Iterable[str]) -> str:
    """Return lines as a list in Markdown."""
    return "\n".join(f"- {line}" for line in lines)


def figure(value: float | None, form: str) -> str:
    """Return a number in a format such as `+.2f`, a dash for none."""
    return "-" if value is None else format(value, form)


def span(bounds: Sequence[float] | None, form: str = ".2f") -> str:
    """Return an interval as `low to high`, a dash for none."""
    return "-" if bounds is None else f"{format(bounds[0], form)} to {format(bounds[1], form)}"
