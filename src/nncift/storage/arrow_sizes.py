"""What Arrow values take as Python objects, from their lengths and before any is made.

Lengths are read from Arrow's buffers: the import of pyarrow.compute takes tens of megabytes, and ends the process where it is
refused memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

OBJECT, LIST, STRUCT = 56, 64, 232
"""Bytes of a text or number beside its content, of a list beside its items, and of a dict."""

FEW = 1 << 10
"""So many nested values are measured one by one, of more each counts as all together."""


def python_bytes(held: Any) -> int:
    """Return about how many bytes the values of an Arrow array, batch or table take as Python objects, at most."""
    import pyarrow as pa

    if isinstance(held, (pa.Table, pa.RecordBatch)):
        return int(held.num_rows) * STRUCT + sum(python_bytes(column) for column in held.columns)
    if isinstance(held, pa.ChunkedArray):
        return sum(python_bytes(chunk) for chunk in held.chunks)
    return _of_array(held)


def _of_array(array: Any) -> int:
    import pyarrow as pa

    kind, types = array.type, pa.types
    if isinstance(array, pa.ExtensionArray):
        return _of_array(array.storage)
    if not len(array) or types.is_null(kind):
        return 8 * len(array)
    if types.is_dictionary(kind):
        return 8 * len(array) + _of_repeated(array.dictionary, _numbers(array.indices)[_known(array.indices)])
    if types.is_run_end_encoded(kind):
        return len(array) * int(_each(array.values).max(initial=0))
    if types.is_struct(kind) or types.is_union(kind):
        return len(array) * STRUCT + sum(_of_array(array.field(at)) for at in range(kind.num_fields))
    if types.is_map(kind):
        begin, end = int(array.offsets[0].as_py()), int(array.offsets[-1].as_py())
        inside = sum(_of_array(part.slice(begin, end - begin)) for part in (array.keys, array.items))
        return (len(array) + end - begin) * LIST + inside
    if types.is_nested(kind):
        return len(array) * LIST + _of_lists(array)
    return int(_each(array).sum())


def _of_lists(array: Any) -> int:
    if hasattr(array, "sizes"):
        # Views of lists may show the same values many times over.
        return int(_numbers(array.sizes).sum()) * int(_each(array.values).max(initial=0))
    return _of_array(array.flatten())


def _of_repeated(values: Any, places: npt.NDArray[np.int64]) -> int:
    """Return the bytes of values that stand once and are meant in many places."""
    each = _each(values)
    if len(places) and not (int(places.min()) >= 0 and int(places.max()) < len(each)):
        raise ValueError("a place in its dictionary does not exist")
    return int(each[places].sum())


def _each(array: Any) -> npt.NDArray[np.int64]:
    """Return the bytes of every value, `(n,)`."""
    import pyarrow as pa

    kind, types = array.type, pa.types
    if str(kind) in ("string_view", "binary_view"):
        return OBJECT + _viewed(array)
    if types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind) or types.is_large_binary(kind):
        wide = types.is_large_string(kind) or types.is_large_binary(kind)
        return OBJECT + np.diff(_buffer(array, "i8" if wide else "i4", 1)).astype(np.int64)
    if types.is_nested(kind) or types.is_dictionary(kind) or isinstance(array, pa.ExtensionArray):
        if len(array) > FEW:
            return np.full(len(array), _of_array(array), np.int64)
        return np.array([_of_array(array.slice(at, 1)) for at in range(len(array))], np.int64)
    return np.full(len(array), 8 if types.is_null(kind) else OBJECT, np.int64)


def _viewed(array: Any) -> npt.NDArray[np.int64]:
    """Return the lengths of views of texts, `(n,)`: many may show the same bytes, and nothing is made of them here."""
    # A view has 16 bytes, and its length is the first four.
    held, start, end = array.buffers()[1], 4 * array.offset, 4 * (array.offset + len(array))
    found = np.frombuffer(held, "<i4", count=len(held) // 4)[start:end:4].astype(np.int64)
    lengths = np.where(_known(array), found, 0) if len(found) == len(array) else np.array([-1])
    if lengths.min(initial=0) < 0:
        raise ValueError("lengths of its texts are cut off")
    return lengths


def _numbers(array: Any) -> npt.NDArray[np.int64]:
    """Return the whole numbers of an array, 0 for those that are missing."""
    import pyarrow as pa

    if isinstance(array, np.ndarray):
        return array.astype(np.int64)
    unsigned = pa.types.is_unsigned_integer(array.type)
    found = _buffer(array, f"{'u' if unsigned else 'i'}{array.type.bit_width // 8}").astype(np.int64)
    return np.where(_known(array), found, 0)


def _known(array: Any) -> npt.NDArray[np.bool_]:
    """Return which values of an array are there."""
    bits = array.buffers()[0]
    if not array.null_count or bits is None:
        return np.ones(len(array), bool)
    start, end = array.offset, array.offset + len(array)
    return np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")[start:end].astype(bool)


def _buffer(array: Any, dtype: str, more: int = 0) -> npt.NDArray[Any]:
    """Return the numbers in the second buffer of an array, one for each value and `more` behind them."""
    held, wanted = array.buffers()[1], len(array) + more
    if held is None:
        return np.zeros(wanted, dtype)
    found = np.frombuffer(held, dtype, count=len(held) // np.dtype(dtype).itemsize)[
        array.offset : array.offset + wanted
    ]
    if len(found) < wanted:
        raise ValueError("its numbers are cut off")
    return found
