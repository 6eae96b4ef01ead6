"""The sample of `limit`: rows are drawn by their text before any of them is parsed, and read until enough of them are usable."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from nncift.data.records import Line, Record

Place = tuple[int, int]
"""An input, and a row of it."""


def drawing_order(inputs: Sequence[Sequence[Record | Line]], seed: int) -> list[Place]:
    """Return all rows in the order in which they are drawn: in proportion over the inputs, at random within each.

    Within an input rows are ordered by a hash of text and seed; the share of its input that a row completes is its key. So a
    larger limit only adds rows, and neither the order of rows nor that of inputs matters.
    """
    salt = "\x1f".join([str(seed), "limit", ""]).encode()
    keyed: list[tuple[float, bytes, Place]] = []
    for number, rows in enumerate(inputs):
        hashes = sorted((digest, at) for at, digest in enumerate(_hashes(rows, salt)))
        keyed += [((rank + 0.5) / len(rows), digest, (number, at)) for rank, (digest, at) in enumerate(hashes)]
    return [place for _, _, place in sorted(keyed)]


def read_until(
    order: Sequence[Place], sizes: Sequence[int], limit: int, is_usable: Callable[[Place], bool]
) -> tuple[set[Place], set[Place]]:
    """Return the rows that were read, and the first `limit` usable ones among them. sizes: rows of every input.

    Of every input so many rows are read that one of them is usable, where it has one.
    """
    read: set[Place] = set()
    drawn: set[Place] = set()
    unseen = {number for number, size in enumerate(sizes) if size}
    for place in order:
        if len(drawn) < limit or place[0] in unseen:
            read.add(place)
            if is_usable(place):
                unseen.discard(place[0])
                if len(drawn) < limit:
                    drawn.add(place)
    return read, drawn


def _hashes(rows: Sequence[Record | Line], salt: bytes) -> Iterator[bytes]:
    """Yield a hash of every row: of its text, and of how many rows before it have the same."""
    seen: Counter[bytes] = Counter()
    for row in rows:
        digest = hashlib.sha256(salt + _text(row)).digest()
        before = seen[digest]
        seen[digest] += 1
        yield hashlib.sha256(digest + str(before).encode()).digest() if before else digest


def _text(row: Record | Line) -> bytes:
    """Return what a row is drawn by; one that has no text is known by its number."""
    if isinstance(row, Line):
        return row.text
    return row.raw.encode("utf-8", "surrogatepass") or str(row.line).encode()
