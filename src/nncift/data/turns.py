r"""Turns of a conversation, in the spellings and shapes that chat data uses, and the marks of those that are not learned from.

| shape | example |
|---|---|
| turns | `[{"role": "user", "content": "Q"}, ...]`, also `from` with `value`, `speaker` or `role` with `text` |
| one turn | `{"role": "user", "content": "Q"}` |
| object of lists | `{"role": ["user", "assistant"], "content": ["Q", "A"]}` |
| texts (LIMA, UltraChat) | `["Q", "A", ...]`: user and assistant by turns |
| JSON text of any of these | `"[{\\"role\\": ...}]"`, also around `messages` or `conversations` |

`weight: 0` is OpenAI's mark, `train` and `training` are axolotl's, `loss: false` others'; `train_detail` marks parts of a turn.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from nncift.data.records import TURN_ROLES, kind_of, shown

_SPELLINGS = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter"),
    # A `function_call` turn is what the model says to call a tool; what the tool says back is `observation`.
    "assistant": ("assistant", "gpt", "chatgpt", "bot", "model", "bing", "bard", "function_call", "tool_call"),
    "tool": ("tool", "function", "observation", "ipython", "tool_response", "function_response"),
}
ROLES = tuple(_SPELLINGS)
_ROLE_OF = {spelling: role for role, spellings in _SPELLINGS.items() for spelling in spellings}
_TEXT_PARTS = ("text", "input_text", "output_text")
THOUGHTS = ("reasoning_content", "thinking", "reasoning")
"""Keys under which a turn keeps what the model thought before it spoke; chat templates read one or the other."""


class UnusableError(ValueError):
    """A row cannot be used; the message is the reason, written as `kind: what was found`."""


class Turn(NamedTuple):
    """A turn with its text. media_parts: parts that are not text, shown as `[image]`; media_only: no other part.

    masked: not to be learned from. reasoning: it has a thought (`THOUGHTS`) beside its text. number: its text was a number.
    """

    role: str
    text: str
    media_parts: int = 0
    media_only: bool = False
    masked: bool = False
    reasoning: bool = False
    number: bool = False

    @property
    def speaks(self) -> bool:
        """Tell whether the turn has text of its own."""
        return bool(self.text.strip()) and not self.media_only


def role_of(spelled: object, roles: Mapping[str, str]) -> str | None:
    """Return system, user, assistant or tool for a role in any of its spellings, None for another word.

    roles: what role names of the user's own mean; they count before others.
    """
    if not isinstance(spelled, str):
        return None
    name = spelled.strip().lower()
    return roles.get(name) or _ROLE_OF.get(name)


def roles_said(roles: Iterable[str]) -> str:
    """Return words for the roles of some turns, the first six."""
    found = list(roles)
    if not found:
        return "the list of turns is empty"
    return f"the turns are {', '.join(found[:6])}{', ...' if len(found) > 6 else ''}"


def role_in(turn: Mapping[str, Any]) -> Any:
    """Return what a turn says about who speaks, as it is spelled; None where it says nothing."""
    return _first(turn, ("role", "from", "speaker"))


def content_in(turn: Mapping[str, Any]) -> Any:
    """Return what is said in a turn, None where nothing is."""
    return _first(turn, ("content", "value", "text"))


def _first(turn: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    """Return the first value that is there; a loop, since a generator takes longer than what it looks at."""
    for key in keys:
        value = turn.get(key)
        if value is not None:
            return value
    return None


def thought_in(turn: Mapping[str, Any]) -> str | None:
    """Return what a turn says that the model thought, None where it says nothing."""
    for key in THOUGHTS:
        value = turn.get(key)
        if value and isinstance(value, str):
            return str(value)
    return None


MOST_BITS = 14_000
"""Of a whole number; Python writes 4,300 digits at most."""


def is_number(value: object) -> bool:
    """Tell a number that stands for its text, which a boolean does not."""
    if isinstance(value, float):
        return math.isfinite(value)
    # A whole number may be more than a float holds, and more than Python writes out.
    return isinstance(value, int) and not isinstance(value, bool) and value.bit_length() < MOST_BITS


def text_of(value: object, where: str, *, optional: bool = False) -> str:
    """Return text, a number as JSON writes it; raises UnusableError for anything else, except null where `optional`."""
    if isinstance(value, str):
        return value
    if is_number(value):
        return json.dumps(value)
    if value is None and optional:
        return ""
    raise UnusableError(f"wrong type: {where} is {kind_of(value)}, expected text")


def turn_of(item: object, where: str, roles: Mapping[str, str]) -> Turn:
    """Read one turn of any spelling. roles: what role names of the user's own mean. Raises UnusableError."""
    if not isinstance(item, dict):
        raise UnusableError(f"wrong type: {where} is {kind_of(item)}, expected an object with role and content")
    role = _role(item, where, roles)
    try:
        mask = mask_of(item) if role == "assistant" else NO_MASK
    except ValueError as error:
        raise UnusableError(f"wrong mask: {error} in {where}") from error
    masked, reasoning = mask.learned is False, thought_in(item) is not None
    content = content_in(item)
    calls = _calls(item, where) if role == "assistant" else ""
    if isinstance(content, str) and not calls:
        return Turn(role, content, masked=masked, reasoning=reasoning)
    parts = _parts(content, where, optional=bool(calls) or reasoning)
    text = "\n".join(part.text for part in parts)
    if calls:
        text = f"{text}\n{calls}" if text.strip() else calls
    media = sum(part.is_media for part in parts)
    media_only = media > 0 and not calls and not any(part.text.strip() for part in parts if not part.is_media)
    return Turn(role, text, media, media_only, masked, reasoning, is_number(content))


class _Part(NamedTuple):
    text: str
    is_media: bool


def _parts(content: object, where: str, *, optional: bool) -> list[_Part]:
    if not isinstance(content, (list, tuple)):
        return [_Part(text_of(content, f"the content of {where}", optional=optional), False)]
    return [_part(item, where) for item in content]


def _part(item: object, where: str) -> _Part:
    if isinstance(item, str):
        return _Part(item, False)
    if not isinstance(item, dict):
        raise UnusableError(f"wrong type: the content of {where} holds {kind_of(item)}, expected parts with a type")
    kind = item.get("type") or "text"
    if kind in _TEXT_PARTS:
        return _Part(text_of(item.get("text"), f"a text part of {where}"), False)
    named = isinstance(kind, str) and kind.isidentifier() and len(kind) <= 30
    return _Part(f"[{kind}]" if named else "[media]", True)


def _role(item: dict[str, Any], where: str, roles: Mapping[str, str]) -> str:
    given = role_in(item)
    if not isinstance(given, str):
        raise UnusableError(f"unknown role: {where} has {kind_of(given)} as its role")
    role = role_of(given, roles)
    if role is None:
        raise UnusableError(f"unknown role: {where} has {shown(given)}")
    return role


def _calls(item: dict[str, Any], where: str) -> str:
    """Return the tool calls of an assistant turn as compact JSON, empty where it makes none."""
    calls = item.get("tool_calls") or item.get("function_call")
    if not calls:
        return ""
    if isinstance(calls, dict):
        calls = [calls]
    # Some files keep the calls as JSON text already.
    if isinstance(calls, str):
        return calls
    if not isinstance(calls, (list, tuple)) or not all(isinstance(call, dict) for call in calls):
        raise UnusableError(f"wrong type: the tool calls of {where} are {kind_of(calls)}, expected a list of objects")
    return json.dumps(calls, ensure_ascii=False, separators=(",", ":"), default=str)


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


_MARKS = ("weight", "train", "training", "loss")
_DETAILS = ("train_detail", "training_detail")


class Mask(NamedTuple):
    """What marks say of a turn. learned: None where no mark says anything. weight: where it is neither 0 nor 1.

    detail: parts of the turn that are or are not learned from, None where none is masked.
    """

    learned: bool | None = None
    weight: float | None = None
    detail: list[Any] | None = None


MARKS = frozenset((*_MARKS, *_DETAILS))
"""Keys of a turn that say whether it is learned from."""

_WORDS: Mapping[str, float] = {"0": 0.0, "0.0": 0.0, "false": 0.0, "1": 1.0, "1.0": 1.0, "true": 1.0}

NO_MASK = Mask()
_MASKED, _LEARNED = Mask(False), Mask(True)


def mask_of(turn: Mapping[str, Any]) -> Mask:
    """Return what the marks of a turn say: one that masks it counts before others.

    Raises ValueError for marks that cannot be read.
    """
    if not MARKS & turn.keys():
        return NO_MASK
    found = NO_MASK
    for name in _MARKS:
        value = _number(turn.get(name), name)
        if value is None:
            continue
        if value <= 0:
            return _MASKED
        found = _LEARNED if value == 1 else Mask(True, value)
    parts = next((turn[name] for name in _DETAILS if turn.get(name)), None)
    return found if parts is None else _by_parts(parts, found)


def _number(value: Any, name: str) -> float | None:
    """Return a mark as a number; None where it is none: a loss that was measured says nothing about training."""
    if isinstance(value, str):
        value = _WORDS.get(value.strip().lower(), value)
    if isinstance(value, bool) or value in (0, 1) or (name == "weight" and isinstance(value, (int, float))):
        return float(value)
    if name == "weight" and value is not None:
        raise ValueError(f"'weight' is {kind_of(value)}, expected a number")
    return None


def _by_parts(parts: Any, found: Mask) -> Mask:
    if not isinstance(parts, list) or not all(isinstance(part, dict) and "train" in part for part in parts):
        raise ValueError("'train_detail' is expected to be a list of begin_offset, end_offset and train")
    if not any(part["train"] for part in parts):
        return _MASKED
    if all(part["train"] for part in parts):
        return found
    return Mask(True, found.weight, parts)
