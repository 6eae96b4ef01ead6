"""The values of JSON arrays, one by one: a file of a million rows is never in memory as a whole."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import IO

from nncift.data.records import too_many_parts

CHUNK = 1 << 20
MOST_VALUE = 1 << 29
"""Longest value that is held: a table by columns is one."""
MANY_BYTES = 1 << 23
"""Text that is counted before it becomes a value; of more than a row there is never so much in memory."""

MOST_LISTED, MOST_NAMES = 4_000_000, 1_000_000
"""Values in the lists of an object that are no objects, and names in it, that are gone through to find its list of rows."""

MOST_TINY, LEAST_ROW = 1_000_000, 20
"""Objects of a list beyond which they are at least so many characters each: rows are."""

_DECODER = json.JSONDecoder()
_NUMBER = re.compile(r"[0-9.eE+-]*")
_BLANK = re.compile(r"[ \t\n\r]*")
_MARGIN = 16
"""An error this close to the end of what was read, or about a string, may be gone once more is read."""


def array_values(start: bytes, handle: IO[bytes]) -> Iterator[object]:
    """Yield the values of a UTF-8 document that is one array. start: what was read of it already.

    Raises json.JSONDecodeError and UnicodeDecodeError with positions in the whole document, ValueError for integers with too many
    digits, RecursionError.
    """
    text = _Window(start, handle)
    yield from _elements(text)
    if text.next():
        raise text.error("Extra data")


def object_entries(start: bytes, handle: IO[bytes]) -> Iterator[tuple[str, Iterator[object] | None]]:
    """Yield the names of a UTF-8 document that is one object, with the values of those that are arrays; None for others.

    What is not taken of an array is passed over. Raises as `array_values`.
    """
    text = _Window(start, handle)
    yield from _entries(text)
    if text.next():
        raise text.error("Extra data")


def value_stream(start: bytes, handle: IO[bytes]) -> Iterator[object]:
    """Yield the values of a UTF-8 text that stand one after the other, on lines or not, with or without commas between them.

    Raises as `array_values`.
    """
    text = _Window(start, handle)
    while text.next():
        yield text.value()
        if text.next() == ",":
            text.skip()


def first_element(start: bytes, handle: IO[bytes]) -> list[object]:
    """Return the first value of a text that begins with an array, in a list; an empty one where the array has none."""
    text = _Window(start, handle)
    for value in _elements(text):
        return [value]
    return []


def survey(start: bytes, handle: IO[bytes]) -> tuple[list[tuple[str, bool]], bool]:
    """Return the names of the object that a text begins with, and whether more follows it.

    With every name stands whether its value is an array with objects in it. Raises as `array_values`.
    """
    text, left = _Window(start, handle), MOST_LISTED
    names = []
    for name, values in _entries(text):
        rows = 0
        for value in values or ():
            rows += isinstance(value, dict)
            left -= not rows
            if left < 0:
                raise text.error(f"an object with more than {MOST_LISTED:,} values in lists")
            if rows > MOST_TINY and text.characters < LEAST_ROW * rows:
                raise text.error(f"a list of more than {MOST_TINY:,} objects that are too small for rows")
        names.append((name, rows > 0))
        if len(names) > MOST_NAMES:
            raise text.error(f"an object of more than {MOST_NAMES:,} names")
    return names, bool(text.next())


def _entries(text: _Window) -> Iterator[tuple[str, Iterator[object] | None]]:
    text.expect("{", "Expecting value")
    if text.next() != "}":
        yield from _entry(text)
        while text.next() == ",":
            text.skip()
            yield from _entry(text)
    text.expect("}", "Expecting ',' delimiter")


def _entry(text: _Window) -> Iterator[tuple[str, Iterator[object] | None]]:
    if text.next() != '"':
        raise text.error("Expecting property name enclosed in double quotes")
    name = str(text.value())
    text.expect(":", "Expecting ':' delimiter")
    if text.next() == "[":
        values = _elements(text)
        yield name, values
        for _ in values:
            pass
    else:
        text.value()
        yield name, None


def _elements(text: _Window) -> Iterator[object]:
    text.expect("[", "Expecting value")
    if text.next() != "]":
        yield text.value()
        while text.next() == ",":
            text.skip()
            yield text.value()
    text.expect("]", "Expecting ',' delimiter")


class _Window:
    """The part of a document that is being read, and how much of the document came before it."""

    def __init__(self, start: bytes, handle: IO[bytes]) -> None:
        self._handle, self._decoder = handle, codecs.getincrementaldecoder("utf-8")()
        self._text, self._at, self._whole = "", 0, False
        # Whether the lists and objects of the text have been counted: once, or many short values would each count them all.
        self._counted = False
        # Before the text: bytes that were decoded, characters, lines, and characters of the line that it begins in.
        self._bytes, self._before, self._lines, self._column = 0, 0, 0, 0
        self._text = self._decoded(start)

    def next(self) -> str:
        """Return the next character that is not blank, empty at the end."""
        while True:
            match = _BLANK.match(self._text, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    @property
    def characters(self) -> int:
        """How much of the document has been read."""
        return self._before + self._at

    def skip(self) -> None:
        """Go on behind the next character."""
        self._at += 1

    def expect(self, character: str, complaint: str) -> None:
        """Go on behind a character. Raises JSONDecodeError where another one is next."""
        if self.next() != character:
            raise self.error(complaint)
        self.skip()

    def value(self) -> object:
        """Return the next value."""
        self.next()
        while True:
            # What was read may hold the next values too, which then are as long.
            if not self._counted and len(self._text) - self._at > MANY_BYTES:
                if why := too_many_parts(self._text, self._at):
                    raise self.error(f"a value of {why}")
                self._counted = True
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                late = "string" in error.msg or error.pos + _MARGIN >= len(self._text)
                if late and self._more():
                    continue
                raise self.error(error.msg, error.pos) from None
            # A number that ends with what was read, or before a part of itself there, may go on.
            if _NUMBER.fullmatch(self._text, end) and self._more():
                continue
            self._at = end
            return value

    def error(self, complaint: str, at: int | None = None) -> json.JSONDecodeError:
        """Return an error about a place, as a place in the whole document."""
        error = json.JSONDecodeError(complaint, self._text, self._at if at is None else at)
        if error.lineno == 1:
            error.colno += self._column
        error.pos += self._before
        error.lineno += self._lines
        return error

    def _more(self) -> bool:
        """Read on, as much again as a value takes so far, and let go what is behind; tell whether anything came."""
        if self._whole:
            return False
        if len(self._text) - self._at > MOST_VALUE:
            raise self.error(f"a value of more than {MOST_VALUE >> 20} MiB")
        data = self._handle.read(max(CHUNK, len(self._text) - self._at))
        self._whole = not data
        fresh = self._decoded(data)
        if self._whole:
            return False
        done = self._text[: self._at]
        last = done.rfind("\n")
        self._before += len(done)
        self._lines += done.count("\n")
        self._column = len(done) + (self._column if last < 0 else -last - 1)
        self._text, self._at, self._counted = self._text[self._at :] + fresh, 0, False
        return True

    def _decoded(self, data: bytes) -> str:
        held = len(self._decoder.getstate()[0])
        try:
            text = self._decoder.decode(data, final=self._whole)
        except UnicodeDecodeError as error:
            error.start += self._bytes - held
            raise
        self._bytes += len(data)
        return text
