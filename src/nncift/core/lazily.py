"""Sequences and mappings whose elements are made each time they are asked for: a million texts are never in memory at once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar, overload

Item = TypeVar("Item")
Result = TypeVar("Result", covariant=True)
Made = TypeVar("Made")


class Lazily(Sequence[Result], Generic[Item, Result]):
    """What a function makes of every item of a sequence. Sent to another process it is a tuple of all."""

    def __init__(self, make: Callable[[Item], Result], of: Sequence[Item]) -> None:
        self._make, self._of = make, of

    @overload
    def __getitem__(self, index: int) -> Result: ...
    @overload
    def __getitem__(self, index: slice) -> Lazily[Item, Result]: ...
    def __getitem__(self, index: int | slice) -> Result | Lazily[Item, Result]:
        if isinstance(index, slice):
            return Lazily(self._make, self._of[index])
        return self._make(self._of[index])

    def __len__(self) -> int:
        return len(self._of)

    def __iter__(self) -> Iterator[Result]:
        return map(self._make, self._of)

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (tuple(self),)


class LazilyBy(Mapping[str, Made], Generic[Made]):
    """What a function makes of every key of a collection, in its order; the function raises KeyError for other keys."""

    def __init__(self, make: Callable[[str], Made], keys: Collection[str]) -> None:
        self._make, self._keys = make, keys

    def __getitem__(self, key: str) -> Made:
        return self._make(key)

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)
