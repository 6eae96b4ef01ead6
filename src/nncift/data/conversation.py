"""A row as a conversation that trainers can be given: every turn with its parts, tool calls and media as they were.

`formats.py` reads the text that is scored; this reads what must not be lost on the way to a trainer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nncift.data.formats import Layout
from nncift.data.records import Row, kind_of
from nncift.data.turns import UnusableError, role_of

MEDIA = ("images", "videos", "audios")
_KEPT = ("name", "tool_call_id", "reasoning_content")
"""What chat templates read of a turn beside role, content and tool calls."""


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
    """One turn. content: text, a list of parts, or None where the turn only calls tools. extra: name, tool_call_id, ..."""

    role: str
    content: str | list[Any] | None
    calls: tuple[Call, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Conversation:
    """Turns up to the response, which is the last. cut: turns after it, which no trainer learns from.

    tools: definitions as a list, None where the row has none. media: columns of paths, as they were.
    alpaca: instruction, input and output apart, where the row keeps them so.
    """

    turns: tuple[Speech, ...]
    cut: int = 0
    tools: list[Any] | None = None
    media: Mapping[str, Any] = field(default_factory=dict)
    alpaca: Mapping[str, str] | None = None

    @property
    def responses(self) -> int:
        """Number of turns that a model says."""
        return sum(turn.role == "assistant" for turn in self.turns)

    @property
    def has_media(self) -> bool:
        """Whether anything but text is in it."""
        return bool(self.media) or any(
            isinstance(turn.content, list) and _is_media(turn.content) for turn in self.turns
        )


def converse(row: Row, layout: Layout) -> Conversation:
    """Return a row that `formats.parse` can read as a conversation. Raises UnusableError with a reason where it cannot be."""
    name = layout.format_of(row)
    turns, alpaca = _turns(row, layout, name)
    system = layout.get(row, "system")
    if isinstance(system, str) and system.strip() and all(turn.role != "system" for turn in turns):
        turns.insert(0, Speech("system", system))
    turns = [turn for turn in turns if turn.role != "system" or turn.content not in ("", None)]
    last = max((place for place, turn in enumerate(turns) if turn.role == "assistant"), default=-1)
    if last < 0:
        raise UnusableError("no assistant turn: nothing to learn from")
    tools = None if row.get("tools") in (None, "", "[]", []) else _parsed(row["tools"], "'tools'")
    if tools is not None and not isinstance(tools, list):
        tools = [tools]
    media = {column: row[column] for column in MEDIA if row.get(column) not in (None, "", [])}
    return Conversation(tuple(turns[: last + 1]), len(turns) - last - 1, tools, media, alpaca)


def _turns(row: Row, layout: Layout, name: str) -> tuple[list[Speech], Mapping[str, str] | None]:
    if name in ("messages", "sharegpt"):
        column = "messages" if name == "messages" else "conversations"
        return [_speech(item) for item in layout.get(row, column)], None
    if name == "prompt":
        return [
            turn
            for field_name, role in (("prompt", "user"), ("completion", "assistant"))
            for turn in _side(layout.get(row, field_name), role)
        ], None
    parts = {key: str(layout.get(row, key) or "") for key in ("instruction", "input", "output")}
    asked = "\n".join(text for text in (parts["instruction"], parts["input"]) if text.strip())
    turns = [Speech(role, text) for pair in layout.get(row, "history") or () for role, text in _exchange(pair)]
    return [*turns, Speech("user", asked), Speech("assistant", parts["output"])], parts


def _exchange(pair: Any) -> tuple[tuple[str, str], tuple[str, str]]:
    return ("user", pair[0]), ("assistant", pair[1])


def _side(value: Any, role: str) -> list[Speech]:
    return [_speech(item) for item in value] if isinstance(value, list | tuple) else [Speech(role, value)]


def _speech(item: dict[str, Any]) -> Speech:
    spelled = item["role"] if item.get("role") is not None else item.get("from")
    content = item["content"] if item.get("content") is not None else item.get("value")
    extra = {key: item[key] for key in _KEPT if item.get(key) is not None}
    role = role_of(spelled)
    if role is None:
        raise UnusableError(f"unknown role: {spelled!r}")
    if str(spelled).strip().lower() in ("function_call", "tool_call"):
        return Speech(role, None, _calls(content), extra)
    return Speech(role, content, _calls(item.get("tool_calls") or item.get("function_call")), extra)


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


def _is_media(parts: list[Any]) -> bool:
    return any(
        isinstance(part, dict) and part.get("type", "text") not in ("text", "input_text", "output_text")
        for part in parts
    )
