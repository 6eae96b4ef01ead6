"""Arrow values as Python values that mean the same: JSON columns decoded, maps as objects, text kept as bytes as text."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from typing import Any

from nncift.data.records import MAX_DEPTH

Decode = Callable[[Any], Any]
_UNREADABLE = (ValueError, OverflowError, RecursionError, TypeError)
"""What Arrow and decoders raise for a value that Python cannot hold: bad UTF-8 or JSON, a date after the year 9999."""

_NAME = b"ARROW:extension:name"


def batch_values(batch: Any, text_columns: Collection[str] = ()) -> Iterator[Any]:
    """Yield the rows of an Arrow batch or table as dicts; in the place of a row that cannot be read, the exception.

    text_columns: columns whose bytes are text, since no other value makes sense there.
    """
    decoders = {
        field.name: decode
        for field in batch.schema
        if (decode := _decoder(field, bytes_are_text=field.name in text_columns)) is not None
    }
    try:
        yield from [_row(row, decoders) for row in batch.to_pylist()]
    except _UNREADABLE:
        # One row would otherwise cost the whole batch.
        for position in range(batch.num_rows):
            try:
                yield _row(batch.slice(position, 1).to_pylist()[0], decoders)
            except _UNREADABLE as error:
                yield error


def _row(row: dict[str, Any], decoders: dict[str, Decode]) -> dict[str, Any]:
    for name, decode in decoders.items():
        if row[name] is not None:
            row[name] = decode(row[name])
    return row


def _decoder(field: Any, *, bytes_are_text: bool) -> Decode | None:
    """Return what makes a value of a field into what it means, None where it is that already."""
    # Releases of Arrow that do not know a type leave its name beside the type that holds it.
    if (field.metadata or {}).get(_NAME) == b"arrow.json":
        return _from_json
    return _decoder_of_type(field.type, bytes_are_text=bytes_are_text)


def _decoder_of_type(kind: Any, *, bytes_are_text: bool) -> Decode | None:
    import pyarrow as pa

    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return _from_json if kind.extension_name == "arrow.json" else None
    if bytes_are_text and (types.is_binary(kind) or types.is_large_binary(kind) or _is_binary_view(kind)):
        return _as_text
    if types.is_dictionary(kind):
        return _decoder_of_type(kind.value_type, bytes_are_text=bytes_are_text)
    if types.is_map(kind):
        key, item = kind.key_type, _decoder(kind.item_field, bytes_are_text=bytes_are_text)
        return _map_of(item) if types.is_string(key) or types.is_large_string(key) else None
    if types.is_struct(kind):
        # An image keeps its bytes under this name.
        fields = [kind.field(place) for place in range(kind.num_fields)]
        inner = {
            one.name: decode
            for one in fields
            if (decode := _decoder(one, bytes_are_text=bytes_are_text and one.name != "bytes")) is not None
        }
        return _struct_of(inner) if inner else None
    if types.is_nested(kind) and hasattr(kind, "value_field"):
        each = _decoder(kind.value_field, bytes_are_text=bytes_are_text)
        return None if each is None else _list_of(each)
    return None


def _is_binary_view(kind: Any) -> bool:
    import pyarrow as pa

    return bool(hasattr(pa.types, "is_binary_view") and pa.types.is_binary_view(kind))


def _from_json(text: Any) -> Any:
    """Decode a JSON value. Raises ValueError for text that is none, and for one that is nested deeper than rows may be."""
    if not isinstance(text, (str, bytes)):
        return text
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(f"a JSON value is nested more than {MAX_DEPTH} levels deep") from error


def _as_text(value: Any) -> Any:
    return value.decode("utf-8") if isinstance(value, bytes) else value


def _struct_of(inner: dict[str, Decode]) -> Decode:
    def decode(value: Any) -> Any:
        return _row(value, inner)

    return decode


def _list_of(each: Decode) -> Decode:
    def decode(value: Any) -> Any:
        return [None if item is None else each(item) for item in value]

    return decode


def _map_of(item: Decode | None) -> Decode:
    def decode(value: Any) -> Any:
        if len({key for key, _ in value}) < len(value):
            return value
        return {key: one if item is None or one is None else item(one) for key, one in value}

    return decode
