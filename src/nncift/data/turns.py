"""One turn of a conversation, in the spellings that chat data uses."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from nncift.data.masks import NO_MASK, mask_of
from nncift.data.records import kind_of, shown

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


class UnusableError(ValueError):
    """A row cannot be used; the message is the reason, written as `kind: what was found`."""


class Turn(NamedTuple):
    """A turn with its text. media_parts: parts that are not text, shown as `[image]`; media_only: no other part.

    masked: not to be learned from. reasoning: it has a `reasoning_content` beside its text. number: its text was a number.
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
    return next((turn[key] for key in ("role", "from", "speaker") if turn.get(key) is not None), None)


def content_in(turn: Mapping[str, Any]) -> Any:
    """Return what is said in a turn, None where nothing is."""
    return next((turn[key] for key in ("content", "value", "text") if turn.get(key) is not None), None)


def is_number(value: object) -> bool:
    """Tell a number that stands for its text, which a boolean does not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


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
    masked, reasoning = mask.learned is False, bool(item.get("reasoning_content"))
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
