"""One turn of a conversation, in the spellings that chat data uses."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from nncift.data.records import kind_of, shown

_SPELLINGS = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter"),
    # A `function_call` turn is what the model says to call a tool; what the tool says back is `observation`.
    "assistant": ("assistant", "gpt", "chatgpt", "bot", "model", "bing", "bard", "function_call", "tool_call"),
    "tool": ("tool", "function", "observation", "ipython", "tool_response", "function_response"),
}
_ROLE_OF = {spelling: role for role, spellings in _SPELLINGS.items() for spelling in spellings}
_TEXT_PARTS = ("text", "input_text", "output_text")


class UnusableError(ValueError):
    """A row cannot be used; the message is the reason, written as `kind: what was found`."""


class Turn(NamedTuple):
    """A turn with its text. media_parts: parts that are not text, shown as `[image]`; media_only: no other part."""

    role: str
    text: str
    media_parts: int = 0
    media_only: bool = False

    @property
    def speaks(self) -> bool:
        """Tell whether the turn has text of its own."""
        return bool(self.text.strip()) and not self.media_only


def role_of(spelled: object) -> str | None:
    """Return system, user, assistant or tool for a role in any of its spellings, None for another word."""
    return _ROLE_OF.get(spelled.strip().lower()) if isinstance(spelled, str) else None


def text_of(value: object, where: str, *, optional: bool = False) -> str:
    """Return text; raises UnusableError for anything else, except null where `optional`."""
    if isinstance(value, str):
        return value
    if value is None and optional:
        return ""
    raise UnusableError(f"wrong type: {where} is {kind_of(value)}, expected text")


def parse_turns(value: object, column: str) -> list[Turn]:
    """Read a list of turns; raises UnusableError when one of them cannot be read."""
    if not isinstance(value, (list, tuple)):
        raise UnusableError(f"wrong type: {column!r} is {kind_of(value)}, expected a list of turns")
    return [_turn(item, f"turn {number} of {column!r}") for number, item in enumerate(value, start=1)]


def _turn(item: object, where: str) -> Turn:
    if not isinstance(item, dict):
        raise UnusableError(f"wrong type: {where} is {kind_of(item)}, expected an object with role and content")
    role = _role(item, where)
    content = item["content"] if item.get("content") is not None else item.get("value")
    calls = _calls(item, where) if role == "assistant" else ""
    if isinstance(content, str) and not calls:
        return Turn(role, content)
    parts = _parts(content, where, optional=bool(calls))
    text = "\n".join(part.text for part in parts)
    if calls:
        text = f"{text}\n{calls}" if text.strip() else calls
    media = sum(part.is_media for part in parts)
    media_only = media > 0 and not calls and not any(part.text.strip() for part in parts if not part.is_media)
    return Turn(role, text, media, media_only)


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


def _role(item: dict[str, Any], where: str) -> str:
    given = item["role"] if item.get("role") is not None else item.get("from")
    if not isinstance(given, str):
        raise UnusableError(f"unknown role: {where} has {kind_of(given)} as its role")
    role = role_of(given)
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
