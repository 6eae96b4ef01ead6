r"""The shapes in which data keeps a conversation, each made into a list of turns that are objects.

| shape | example |
|---|---|
| turns | `[{"role": "user", "content": "Q"}, ...]`, also `from` with `value`, `speaker` or `role` with `text` |
| one turn | `{"role": "user", "content": "Q"}` |
| object of lists | `{"role": ["user", "assistant"], "content": ["Q", "A"]}` |
| texts (LIMA, UltraChat) | `["Q", "A", ...]`: user and assistant by turns |
| JSON text of any of these | `"[{\\"role\\": ...}]"`, also around `messages` or `conversations` |
"""

from __future__ import annotations

import json
from typing import Any

from nncift.data.records import TURN_ROLES, kind_of, shown
from nncift.data.turns import UnusableError, role_in

_WRAPPERS = ("messages", "conversations")


def turns_in(value: object, column: str) -> list[Any]:
    """Return the turns of a column of any shape; single turns need not be well formed. Raises UnusableError."""
    if isinstance(value, str):
        value = _decoded(value, column)
    if isinstance(value, dict):
        return _of_object(value, column)
    if not isinstance(value, (list, tuple)):
        raise UnusableError(f"wrong type: {column!r} is {kind_of(value)}, expected a list of turns")
    if value and all(isinstance(item, str) for item in value):
        return _of_texts(value)
    return list(value)


def side_turns(value: object, column: str) -> list[Any] | None:
    """Return the turns of one side of a row (`prompt`, `completion`, `chosen`, ...), None where it is a plain text or no side."""
    if isinstance(value, dict):
        return turns_in(value, column) if TURN_ROLES & value.keys() or any(key in value for key in _WRAPPERS) else None
    return list(value) if isinstance(value, (list, tuple)) else None


def as_turns_text(value: object) -> list[Any] | None:
    """Return the turns of a text that is JSON of turns with their roles, None for every other text."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return None
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return None
    if isinstance(found, dict):
        found = next((found[key] for key in _WRAPPERS if key in found), None)
    good = (
        isinstance(found, list)
        and bool(found)
        and all(isinstance(item, dict) and TURN_ROLES & item.keys() for item in found)
    )
    return found if good else None


def _decoded(text: str, column: str) -> object:
    start = text.lstrip()
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        if start.startswith(("[{'", "{'", "[['", "['")):
            raise UnusableError(
                f"printed Python: {column!r} is text with single quotes, not JSON; write the column with json.dumps"
            ) from error
        raise UnusableError(f"wrong type: {column!r} is text, expected a list of turns") from error


def _of_object(value: dict[str, Any], column: str) -> list[Any]:
    for key in _WRAPPERS:
        if isinstance(value.get(key), (list, tuple)):
            return turns_in(value[key], column)
    role = role_in(value)
    if not isinstance(role, (list, tuple)):
        if role is None:
            raise UnusableError(
                f"wrong type: {column!r} is an object of {', '.join(shown(key, 24) for key in list(value)[:4])}, "
                "expected a list of turns"
            )
        return [value]
    columns = {key: items for key, items in value.items() if isinstance(items, (list, tuple))}
    if len({len(items) for items in columns.values()}) > 1:
        raise UnusableError(f"wrong type: the lists in {column!r} differ in length, expected one entry a turn in each")
    return [{key: items[k] for key, items in columns.items()} for k in range(len(role))]


def _of_texts(texts: list[str] | tuple[str, ...]) -> list[Any]:
    """Return texts as turns: each the JSON text of a turn, or what user and assistant say by turns."""
    if all(text.lstrip().startswith("{") for text in texts):
        turns = [as_turns_text(f"[{text}]") for text in texts]
        if all(turns):
            return [turn for one in turns for turn in one or ()]
    return [{"role": "assistant" if place % 2 else "user", "content": text} for place, text in enumerate(texts)]
