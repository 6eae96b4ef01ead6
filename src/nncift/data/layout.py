"""Which format rows have, and where: `--format`, and `--map` for columns, role names and single files.

| `--map` | means |
|---|---|
| `prompt=question` | the field `prompt` is in the column `question`; `data.question` is a field of the object in `data` |
| `role:bot2=assistant` | turns of the role `bot2` are the assistant's |
| `qa.jsonl:prompt=question` | so in that input alone |
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from nncift.config import Turns
from nncift.core.texts import some
from nncift.data.opening import stem_of
from nncift.data.records import Row, shown
from nncift.data.turns import ROLES, UnusableError
from nncift.errors import UsageError

REQUIRED: dict[str, tuple[str, ...]] = {
    "preference": ("chosen", "rejected"),
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "prompt": ("prompt", "completion"),
}
FORMATS = tuple(REQUIRED)
_FORMAT_OF = {column: name for name, columns in REQUIRED.items() for column in columns} | {"input": "alpaca"}
FIELDS = (*_FORMAT_OF, "history", "response", "system", "id")
"""Fields that `--map` gives a column; `response` is another name of `completion`."""

_ROLE = "role:"


@dataclass(frozen=True)
class Layout:
    """Which format rows have (None: each row tells), and which column holds a field where it is not the usual one.

    roles: what role names of the user's own mean. forced: `format` was given, and not inferred from `columns`. files: layouts of
    single inputs by the name that `--map` gave them. turns: which of a row's are learned from.
    """

    format: str | None
    columns: Mapping[str, str] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)
    forced: bool = False
    files: Mapping[str, Layout] = field(default_factory=dict)
    turns: Turns = "last"

    @classmethod
    def from_settings(
        cls,
        format: str,  # noqa: A002
        columns: Mapping[str, str] | None,
        turns: Turns = "last",
    ) -> Layout:
        """Check `--format`, `--map` and `--turns`; raises UsageError for unknown names and for settings that contradict."""
        if format != "auto" and format not in FORMATS:
            raise UsageError(f"unknown format {format!r}{_nearest(format, FORMATS)}; known: auto, {', '.join(FORMATS)}")
        common: dict[str, str] = {}
        single: dict[str, dict[str, str]] = {}
        for name, value in (columns or {}).items():
            file, rest = _split(name)
            (common if file is None else single.setdefault(file, {}))[rest] = value
        if turns not in ("last", "all"):
            raise UsageError(f"turns was given as {turns!r}; expected last or all")
        files = {file: replace(cls._one(format, {**common, **given}), turns=turns) for file, given in single.items()}
        return replace(cls._one(format, common), files=files, turns=turns)

    @classmethod
    def _one(cls, format: str, given: Mapping[str, str]) -> Layout:  # noqa: A002
        roles = {
            name.removeprefix(_ROLE).strip().lower(): role for name, role in given.items() if name.startswith(_ROLE)
        }
        for name, role in roles.items():
            if role not in ROLES:
                raise UsageError(f"map gives role:{name} as {role!r}; expected one of {', '.join(ROLES)}")
        fields = {name: column for name, column in given.items() if not name.startswith(_ROLE)}
        named = {_field_name(name): column for name, column in fields.items()}
        if len(named) < len(fields):
            raise UsageError("map names both 'completion' and 'response', which are the same field; name one")
        for name, column in named.items():
            if not isinstance(column, str) or not column:
                raise UsageError(f"map gives {column!r} for {name!r}, expected the name of a column")
        implied = _implied(named)
        if len(implied) > 1 or (implied and format not in ("auto", "preference", *implied)):
            raise UsageError(
                f"map names fields of format {' and '.join(implied)}{'' if format == 'auto' else f', not {format}'}; "
                "map instruction with output, prompt with completion, one of messages, conversations, or chosen with rejected"
            )
        if format != "auto":
            return cls(format, named, roles, forced=True)
        return cls(implied[0] if implied else None, named, roles)

    def of(self, source: str) -> Layout:
        """Return the layout of the input that has this source name."""
        for file, layout in self.files.items():
            if source.removeprefix("target:").partition("#")[0] in names_of(file):
                return layout
        return self

    @cached_property
    def row_columns(self) -> frozenset[str]:
        """Columns that only a row has, never a wrapper around rows."""
        return frozenset([*_FORMAT_OF, "history", "response", *self.columns.values()])

    @cached_property
    def _taken(self) -> frozenset[str]:
        return frozenset(self.columns.values())

    def column(self, name: str) -> str:
        """Return the column that holds a field."""
        return self.columns.get(name, name)

    def get(self, row: Row, name: str) -> Any:
        """Return the value of a field, None where the row has none."""
        if not self.columns:
            value = row.get(name)
            return row.get("response") if value is None and name == "completion" else value
        if name in self.columns:
            return value_at(row, self.columns[name])
        # A column that the user gave to one field does not serve a second one under its own name.
        value = None if name in self._taken else row.get(name)
        return self.get(row, "response") if value is None and name == "completion" else value

    def _has(self, row: Row, name: str) -> bool:
        if name in self.columns:
            return self.columns[name] in row or value_at(row, self.columns[name]) is not None
        return name in row or (name == "completion" and "response" in row)

    def _says(self, row: Row, columns: tuple[str, ...]) -> bool:
        """Tell whether a row has a value in all of some columns."""
        for column in columns:  # noqa: SIM110 - a generator takes longer than what it looks at, for every row
            if self.get(row, column) is None:
                return False
        return True

    def format_of(self, row: Row) -> str:
        """Return the format of a row; raises UnusableError when it has none."""
        if self.format and self.format != "preference" and not self.forced and self._pairs_of(row):
            return "preference"
        if self.format:
            missing = [column for column in REQUIRED[self.format] if not self._has(row, column)]
            if missing:
                raise UnusableError(f"missing column: {self.column(missing[0])!r}; {_keys(row)}")
            return self.format
        for name, columns in REQUIRED.items():
            if self._says(row, columns) and (name != "preference" or self._pair(row)):
                return name
        # LIMA keeps its texts in `conversations`, UltraChat in `data`.
        if _texts(row.get("data")):
            return "sharegpt"
        # No complete format: name the one whose columns are there with nulls, for a reason that helps.
        for name, columns in REQUIRED.items():
            if all(self._has(row, column) for column in columns) and name != "preference":
                return name
        raise UnusableError(f"no known format: {_keys(row)}")

    def _pairs_of(self, row: Row) -> bool:
        """Tell whether a row of a format that was inferred from columns lacks its response, and has a pair instead."""
        needed = REQUIRED[str(self.format)]
        return self._pair(row) and (len(needed) > 1 and not all(self._has(row, column) for column in needed))

    def _pair(self, row: Row) -> bool:
        return all(isinstance(self.get(row, side), (str, list, tuple, dict)) for side in REQUIRED["preference"])


def _texts(value: object) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 1 and all(isinstance(item, str) for item in value)


def _implied(named: Mapping[str, str]) -> list[str]:
    """Return the formats that mapped fields belong to; a pair may stand beside a prompt of any format."""
    implied = sorted({_FORMAT_OF[name] for name in named if name in _FORMAT_OF})
    if "preference" in implied and not {"output", "completion"} & named.keys():
        return ["preference"]
    return implied


def _split(name: str) -> tuple[str | None, str]:
    """Split `FILE:FIELD` or `FILE:role:NAME` into the file and the rest; None where no file is named."""
    if name.startswith(_ROLE):
        return None, name
    file, sign, role = name.rpartition(f":{_ROLE}")
    if sign:
        return file, _ROLE + role
    file, sign, rest = name.rpartition(":")
    return (file, rest) if sign and file else (None, name)


def map_for(columns: Mapping[str, str], sources: Iterable[str]) -> dict[str, str]:
    """Return what `--map` says of some inputs: all but what it says of other files alone."""
    given = [source.partition("#")[0] for source in sources]
    kept = {}
    for name, column in columns.items():
        file, _ = _split(name)
        if file is None or any(source in names_of(file) for source in given):
            kept[name] = column
    return kept


def names_of(path: str | Path) -> tuple[str, str, str]:
    """Return the names that an input may have as a source: short, with its folder, and with folder and suffix."""
    if isinstance(path, str) and path.startswith("hub:"):
        rest = path.removeprefix("hub:")
        name = Path(rest).resolve().name if Path(rest).is_dir() else rest
        return name, name, name
    path = Path(path)
    folder = path.absolute().parent.name
    names = (stem_of(path), f"{folder}/{stem_of(path)}", f"{folder}/{path.name}")
    # File names need not be text; sources go into JSON and Parquet, which must be.
    first, second, third = (name.encode("utf-8", "backslashreplace").decode("utf-8") for name in names)
    return first, second, third


def source_names(paths: Sequence[str | Path]) -> list[str]:
    """Name each input by its stem; where two are equal, by its folder too, then with its suffix, then by number."""
    choices = [names_of(path) for path in paths]
    names = [choice[0] for choice in choices]
    for level in (1, 2):
        counts = Counter(names)
        names = [choice[level] if counts[name] > 1 else name for choice, name in zip(choices, names, strict=True)]
    taken: set[str] = set()
    for position, name in enumerate(names):
        number = 1
        while names[position] in taken:
            number += 1
            names[position] = f"{name}#{number}"
        taken.add(names[position])
    return names


def value_at(row: Row, column: str) -> Any:
    """Return the value of a column; `a.b` is the field `b` of the object in `a`, where no column has that name."""
    if column in row or "." not in column:
        return row.get(column)
    value: Any = row
    for key in column.split("."):
        if not isinstance(value, dict) or key not in value:
            return None
        value = value[key]
    return value


def _field_name(name: str) -> str:
    if name not in FIELDS:
        raise UsageError(f"map names an unknown field {name!r}{_nearest(name, FIELDS)}; known: {', '.join(FIELDS)}")
    return "completion" if name == "response" else name


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name).lower(), known, n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""


def _keys(row: Row) -> str:
    if not row:
        return "the row has no columns"
    return f"the row has {some([shown(key, 24) for key in row])}"
