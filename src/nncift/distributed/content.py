"""What decides the result of a calculation, as a hash: the name under which its parts lie in files (docs/scale.md)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from copyreg import __newobj__  # type: ignore[attr-defined]
from dataclasses import fields, is_dataclass
from pickle import PicklingError
from types import FunctionType
from typing import Any

import numpy as np
import numpy.typing as npt

from nncift.core.parallel import Calculation
from nncift.core.tasks import arithmetic

DEPTH = 40
"""How deep arrays may lie in what parts share."""
AT_ONCE = 1 << 24
"""Bytes that are copied at once where an array does not lie in one task."""


def content_of(calculation: Calculation) -> str | None:
    """Hash the function, all that its parts share, every task and the versions that calculate to 32 hex digits.

    Arrays are read where they lie. None where something is of a kind that cannot be told by its
    content, such as what a network from elsewhere may hold: who cannot tell calculates alone.
    """
    found = hashlib.sha256()
    whole = (dict(arithmetic()), calculation.do, calculation.shared, list(calculation.tasks))
    try:
        for part in _told(whole, 0):
            found.update(part)
    except (TypeError, PicklingError):
        return None
    return found.hexdigest()[:32]


def _told(value: Any, depth: int) -> Iterator[bytes | memoryview]:
    """Yield what tells a value from every other one. Raises TypeError for kinds that are not known here."""
    if depth > DEPTH:
        raise TypeError("it lies too deep, or holds itself")
    if value is None or isinstance(value, bool | int | float | str | bytes | np.generic):
        text = repr(value)
        yield f"{type(value).__name__} {len(text)} {text}\n".encode("utf-8", "surrogatepass")
    elif isinstance(value, np.ndarray):
        yield from _array(value)
    elif isinstance(value, slice):
        yield f"slice {value.start!r} {value.stop!r} {value.step!r}\n".encode()
    elif isinstance(value, tuple | list):
        yield f"sequence {len(value)}\n".encode()
        for part in value:
            yield from _told(part, depth + 1)
    elif isinstance(value, Mapping):
        yield f"mapping {len(value)}\n".encode()
        for name in sorted(value, key=repr):
            yield from _told(name, depth + 1)
            yield from _told(value[name], depth + 1)
    else:
        yield from _thing(value, depth)


def _thing(value: Any, depth: int) -> Iterator[bytes | memoryview]:
    """Yield what tells a function or class of a module, or an object by what it would be made of again."""
    if isinstance(value, type | FunctionType):
        if "<" in value.__qualname__:
            raise TypeError(f"{value.__qualname__} has no name that another process knows")
        yield f"named {value.__module__}.{value.__qualname__}\n".encode()
        return
    if is_dataclass(value):
        # Its fields alone: what it has worked out of them and kept is no part of what it is.
        made: Any = (type(value), {field.name: getattr(value, field.name) for field in fields(value)})
    else:
        # As another process would get it. Raises TypeError for what cannot be sent.
        made = value.__reduce_ex__(4)
        if isinstance(made, str):
            raise TypeError(f"{made} cannot be told by its content")
        if made[0] is __newobj__:
            made = made[1:]
        made = tuple(part if not hasattr(part, "__next__") else list(part) for part in made)
    yield b"object\n"
    yield from _told(made, depth + 1)


def _array(array: npt.NDArray[Any]) -> Iterator[bytes | memoryview]:
    if array.dtype.hasobject:
        raise TypeError("an array of objects cannot be told by its content")
    # How an array lies in memory can decide the last bits of a product.
    order = "C" if array.flags.c_contiguous else "F" if array.flags.f_contiguous else "apart"
    yield f"array {array.dtype.str} {array.shape} {order}\n".encode()
    if not array.size:
        return
    lying = np.asarray(array.T if order == "F" else array)
    if order != "apart":
        yield lying.reshape(-1).view(np.uint8).data
        return
    step = max(1, AT_ONCE // max(1, array.nbytes // len(array)))
    for start in range(0, len(lying), step):
        yield np.ascontiguousarray(lying[start : start + step]).reshape(-1).view(np.uint8).data
