"""Progress of long work, reported to whoever shows it; the library itself prints nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]


class Progress(Protocol):
    """Shows how far something is."""

    def __call__(self, what: str, total: int) -> AbstractContextManager[Advance]:
        """Begin work of `total` steps; the context's value is called with the number of steps done."""
        ...


@contextmanager
def silent(what: str, total: int) -> Iterator[Advance]:
    """Show nothing."""
    yield lambda steps: None
