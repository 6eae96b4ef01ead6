"""A row as a conversation that trainers can be given: every turn with its parts, tool calls and media as they were.

`formats.py` reads the text that is scored; this reads what must not be lost on the way to a trainer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nncift.data.layout import Layout
from nncift.data.records import Row, kind_of
from nncift.data.row_turns import row_turns
from nncift.data.turns import (
    MARKS,
    NO_MASK,
    THOUGHTS,
    UnusableError,
    content_in,
    is_number,
    mask_of,
    role_in,
    thought_in,
    turn_of,
)

MEDIA = ("images", "videos", "audios")
_KEPT = ("name", "tool_call_id", *THOUGHTS)
"""What chat templates read of a turn beside role, content and tool calls."""

_READ = frozenset(
    (*_KEPT, *MARKS, "role", "from", "speaker", "content", "value", "text", "tool_calls", "function_call")
)


@dataclass(frozen=True)
class Call:
    """A tool call: the tool's name, its arguments as the row has them (an object or JSON text), and its id if it has one."""

    name: str
    arguments: Any
    id: str | None = None

    @property
    def text(self) -> str:
        """Arguments as JSON text."""
        return self.arguments if isinstance(self.arguments, str) else json.dumps(self.arguments, ensure_ascii=False)

    @property
    def value(self) -> Any:
        """Arguments as an object. Raises UnusableError where they are text and no JSON object."""
        value = _parsed(self.arguments, f"the arguments of the tool call {self.name!r}")
        if not isinstance(value, dict):
            raise UnusableError(f"tool call: the arguments of {self.name!r} are {kind_of(value)}, expected an object")
        return value


@dataclass(frozen=True)
class Speech:
    """One turn. content: text, a list of parts, or None where the turn only calls tools. extra: name, tool_call_id, ...

    learned, weight, detail: what its marks say of training (`turns.Mask`); no mark is learned from. unread: other keys that the
    turn has with a value, which no export keeps.
    """

    role: str
    content: str | list[Any] | None
    calls: tuple[Call, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    learned: bool = True
    weight: float | None = None
    detail: list[Any] | None = None
    unread: tuple[str, ...] = ()

    @property
    def thought(self) -> str | None:
        """What the model thought before it spoke, None where the turn says nothing of it."""
        return thought_in(self.extra)


@dataclass(frozen=True)
class Conversation:
    """Turns up to the response, which is the last that is learned from. cut: turns after it, which no trainer learns from.

    tools: definitions as a list, None where the row has none. media: lists of paths by plural name.
    alpaca: instruction, input and output apart, where the row keeps them so. rejected: all turns of a pair's rejected side.
    """

    turns: tuple[Speech, ...]
    cut: int = 0
    tools: list[Any] | None = None
    media: Mapping[str, list[Any]] = field(default_factory=dict)
    alpaca: Mapping[str, str] | None = None
    rejected: tuple[Speech, ...] | None = None

    @property
    def masked(self) -> bool:
        """Whether a turn that a model says is not to be learned from, as a whole or in parts."""
        return any(
            turn.role == "assistant" and (not turn.learned or turn.detail is not None or turn.weight is not None)
            for turn in self.turns
        )

    @property
    def responses(self) -> int:
        """Number of turns that a model says and learns from."""
        return sum(turn.role == "assistant" and turn.learned for turn in self.turns)

    @property
    def has_media(self) -> bool:
        """Whether anything but text is in it."""
        return bool(self.media) or self.has_media_parts

    @property
    def holds_bytes(self) -> bool:
        """Whether a medium of its columns is there as bytes, which no trainer is given."""
        values = (value for paths in self.media.values() for value in paths)
        return any(isinstance(value, dict) and value.get("bytes") is not None for value in values)

    @property
    def has_media_parts(self) -> bool:
        """Whether a turn, of either side, has a part that is not text."""
        turns = (*self.turns, *(self.rejected or ()))
        return any(isinstance(turn.content, list) and is_media(turn.content) for turn in turns)


def converse(row: Row, layout: Layout) -> Conversation:
    """Return a row that `formats.parse` can read as a conversation. Raises UnusableError with a reason where it cannot be."""
    found = row_turns(row, layout)
    turns = _speeches(found.items, found.where, layout)
    spoken = [turn for turn in turns if turn.role == "assistant"]
    last = max((place for place, turn in enumerate(turns) if turn.role == "assistant" and turn.learned), default=-1)
    if last < 0:
        what = "every assistant turn is masked" if spoken else "no assistant turn"
        raise UnusableError(f"{what}: nothing to learn from")
    tools = None if row.get("tools") in (None, "", "[]", []) else _parsed(row["tools"], "'tools'")
    if tools is not None and not isinstance(tools, list):
        tools = [tools]
    rejected = None
    if found.rejected is not None:
        words = [f"turn {number} of {layout.column('rejected')!r}" for number in range(1, len(found.rejected) + 1)]
        rejected = tuple(_speeches(found.rejected, words, layout))
    return Conversation(tuple(turns[: last + 1]), len(turns) - last - 1, tools, _media(row), found.alpaca, rejected)


def _speeches(items: list[Any], where: list[str], layout: Layout) -> list[Speech]:
    turns = [_speech(item, place, layout) for item, place in zip(items, where, strict=True)]
    return [turn for turn in turns if turn.role != "system" or turn.content not in ("", None)]


def _media(row: Row) -> dict[str, list[Any]]:
    """Return the media columns of a row as the plural lists that trainers read, whether the row has one value or several."""
    media: dict[str, list[Any]] = {}
    for plural in MEDIA:
        for column in (plural, plural[:-1]):
            value = row.get(column)
            if value in (None, "", []) or plural in media:
                continue
            media[plural] = list(value) if isinstance(value, (list, tuple)) else [value]
    return media


def _speech(item: Any, where: str, layout: Layout) -> Speech:
    said = turn_of(item, where, layout.roles)
    spelled, content = role_in(item), content_in(item)
    extra = {key: item[key] for key in _KEPT if item.get(key) is not None}
    mask = mask_of(item) if said.role == "assistant" else NO_MASK
    calls = item.get("tool_calls") or item.get("function_call")
    if is_number(content):
        content = said.text
    if str(spelled).strip().lower() in ("function_call", "tool_call"):
        content, calls = None, content
    unread = tuple(key for key in item if key not in _READ and item[key] not in (None, "", [], {}))
    return Speech(said.role, content, _calls(calls), extra, mask.learned is not False, mask.weight, mask.detail, unread)


def _calls(value: Any) -> tuple[Call, ...]:
    """Read tool calls in OpenAI's form (`function` with `name` and `arguments`) or bare (`name` with `arguments`)."""
    if not value:
        return ()
    value = _parsed(value, "a tool call")
    found = []
    for item in value if isinstance(value, list | tuple) else [value]:
        inner = item.get("function", item) if isinstance(item, dict) else None
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
            raise UnusableError("tool call: it has no name, so no trainer can be given it")
        identity = item.get("id")
        found.append(Call(inner["name"], inner.get("arguments", {}), identity if isinstance(identity, str) else None))
    return tuple(found)


def _parsed(value: Any, what: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise UnusableError(f"tool call: {what} is text that is no JSON") from error


def is_media(parts: list[Any]) -> bool:
    """Tell whether a part of a turn is not text."""
    return any(
        isinstance(part, dict) and part.get("type", "text") not in ("text", "input_text", "output_text")
        for part in parts
    )
