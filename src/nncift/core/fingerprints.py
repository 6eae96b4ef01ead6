"""Fingerprints: short hashes of what a result depends on, by which stages, caches and pieces know whether it still holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

_AT_ONCE = 1 << 14
"""Elements that are hashed at once."""


def fingerprint(*parts: Any) -> str:
    """Hash JSON-able parts to 16 hex digits; the order of keys does not matter.

    An iterator counts as the list of what it yields, of which only a part is in memory at a time.
    """
    found = hashlib.sha256(b"[")
    for number, part in enumerate(parts):
        found.update(b", " if number else b"")
        for text in _json_of(part):
            found.update(text.encode("ascii"))
    found.update(b"]")
    return found.hexdigest()[:16]


def _json_of(part: Any) -> Iterator[str]:
    dumps = partial(json.dumps, sort_keys=True, ensure_ascii=True, default=str)
    if not isinstance(part, Iterator):
        yield dumps(part)
        return
    yield "["
    between = ""
    while some := list(islice(part, _AT_ONCE)):
        yield between + dumps(some)[1:-1]
        between = ", "
    yield "]"
