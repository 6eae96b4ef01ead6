"""Results that cross modules: frozen dataclasses that are written as JSON, and read back with their types checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from nncift import __version__
from nncift.errors import DataError

JsonObject: TypeAlias = dict[str, Any]
"""A JSON object where it is read or written; inside, results are records."""

OPTIONAL: Mapping[str, Any] = {"omitted": True}
"""Metadata of a field that is left out of the JSON where it has its default."""


@dataclass(frozen=True)
class Record:
    """Base of results; fields hold what JSON can, other records, tuples and mappings of these."""

    __pydantic_config__ = ConfigDict(allow_inf_nan=False)

    def to_json(self) -> JsonObject:
        """Return the fields in their order: tuples as lists, numbers of numpy as Python's, paths as text."""
        parts = ((part, getattr(self, part.name)) for part in fields(self))
        return {
            part.name: json_of(value)
            for part, value in parts
            if not ("omitted" in part.metadata and value == part.default)
        }

    @classmethod
    def of_json(cls, value: Any, where: str, made_by: str | None = None, command: str = "nncift run") -> Self:
        """Read a record. where: says in errors what it was read from.

        made_by: the version that wrote it, None = unknown. command: what makes it anew.
        Raises DataError for anything that does not fit.
        """
        try:
            found: Self = TypeAdapter(cls).validate_python(value)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "it"
            what, remedy = "is damaged", f"run the same `{command}` again"
            if made_by not in (None, __version__):
                what = f"was written by nncift {made_by}, and nncift {__version__} cannot read it"
                remedy = f"run it again with another --out, or use nncift {made_by}"
            raise DataError(f"{where} {what}: {place}: {first['msg']}; {remedy}") from error
        return found


def json_of(value: Any) -> Any:
    """Return a value as JSON can hold it."""
    if hasattr(value, "to_json"):
        return value.to_json()
    if isinstance(value, Mapping):
        return {str(name): json_of(part) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return [json_of(part) for part in value]
    if isinstance(value, np.generic):
        return value.item()
    return str(value) if isinstance(value, Path) else value
