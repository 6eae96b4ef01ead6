"""What decides the outcome of a calculation, as a hash: the name under which its parts lie in files (docs/scale.md)."""

from __future__ import annotations

import hashlib
from dataclasses import fields, is_dataclass
from pickle import PickleBuffer, Pickler, PicklingError
from typing import Any

from nncift.core.parallel import Calculation, arithmetic

PROTOCOL = 5


class _Hash(Pickler):
    """Hashes what another process would be sent, which is never kept. Arrays are read where they lie."""

    def __init__(self) -> None:
        self.found = hashlib.sha256()
        super().__init__(self, PROTOCOL, buffer_callback=self._take)
        # Equal things give equal bytes, also where one object stands in two places; what holds itself is refused.
        self.fast = True

    def write(self, data: bytes) -> None:
        self.found.update(data)

    def _take(self, buffer: PickleBuffer) -> None:
        self.found.update(buffer.raw())

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, type) or not is_dataclass(value):
            return NotImplemented
        # Its fields alone: what it has worked out of them and kept is no part of what it is.
        return dict, ([("", type(value)), *((field.name, getattr(value, field.name)) for field in fields(value))],)


def content_of(calculation: Calculation) -> str | None:
    """Hash the function, all that its parts share, every task and the versions that calculate to 32 hex digits.

    None where something cannot be sent to another process, such as what a network from elsewhere may hold: who cannot tell
    calculates alone.
    """
    hashing = _Hash()
    try:
        hashing.dump((dict(arithmetic()), calculation.do, calculation.shared, list(calculation.tasks)))
    except (TypeError, ValueError, AttributeError, PicklingError, RecursionError):
        return None
    return hashing.found.hexdigest()[:32]
