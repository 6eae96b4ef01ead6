"""The four row formats and what each row says: turns, prompt and response.

| format | columns | meaning |
|---|---|---|
| `messages` | `messages` | turns of `role` and `content`, with optional `tool_calls` |
| `sharegpt` | `conversations` | turns of `from` and `value` |
| `alpaca` | `instruction`, `input`, `output`, `history` | instruction, optional input and earlier exchanges, response |
| `prompt` | `prompt`, `completion` (or `response`) | text, or lists of turns |

A row has the first format of this table whose required columns it has with a value; a column of nulls, which table
formats fill in, counts as absent. `system` may stand beside any of them. The response is the last assistant turn.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from nncift.data.examples import Message, Said
from nncift.data.records import Row, kind_of, shown
from nncift.data.turns import Turn, UnusableError, parse_turns, text_of
from nncift.errors import UsageError

REQUIRED: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "prompt": ("prompt", "completion"),
}
FORMATS = tuple(REQUIRED)
_FORMAT_OF = {column: name for name, columns in REQUIRED.items() for column in columns} | {
    "input": "alpaca",
    "history": "alpaca",
}
# Trainers also keep tool definitions as JSON text.
_NO_TOOLS: tuple[object, ...] = (None, "", "[]", [])
FIELDS = (*_FORMAT_OF, "response", "system", "id")


@dataclass(frozen=True, slots=True)
class Dialogue:
    """What a usable row says, and what of it is not used.

    unused_turns: turns after the response. media_parts: parts of turns that are not text. ignored: names of columns
    that would change the prompt and do not.
    """

    messages: tuple[Message, ...]
    response: str
    unused_turns: int
    media_parts: int
    ignored: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """Which format rows have (None: each row tells), and which column holds a field where it is not the usual one."""

    format: str | None
    columns: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_settings(cls, format: str, columns: Mapping[str, str] | None) -> Layout:  # noqa: A002
        """Check `--format` and `--map`; raises UsageError for unknown names and for settings that contradict."""
        named = {_field_name(name): column for name, column in (columns or {}).items()}
        if len(named) < len(columns or {}):
            raise UsageError("map names both 'completion' and 'response', which are the same field; name one")
        for name, column in named.items():
            if not isinstance(column, str) or not column:
                raise UsageError(f"map gives {column!r} for {name!r}, expected the name of a column")
        if format != "auto" and format not in FORMATS:
            raise UsageError(f"unknown format {format!r}{_nearest(format, FORMATS)}; known: auto, {', '.join(FORMATS)}")
        implied = sorted({_FORMAT_OF[name] for name in named if name in _FORMAT_OF})
        if len(implied) > 1 or (implied and format not in ("auto", *implied)):
            raise UsageError(
                f"map names fields of format {' and '.join(implied)}{'' if format == 'auto' else f', not {format}'}; "
                "map instruction with output, or prompt with completion, or one of messages, conversations"
            )
        return cls(implied[0] if implied else None if format == "auto" else format, named)

    @cached_property
    def row_columns(self) -> frozenset[str]:
        """Columns that only a row has, never a wrapper around rows."""
        return frozenset([*_FORMAT_OF, "response", *self.columns.values()])

    @cached_property
    def _taken(self) -> frozenset[str]:
        return frozenset(self.columns.values())

    def column(self, name: str) -> str:
        """Return the column that holds a field."""
        return self.columns.get(name, name)

    def get(self, row: Row, name: str) -> Any:
        """Return the value of a field, None where the row has none."""
        if name in self.columns:
            return row.get(self.columns[name])
        # A column that the user gave to one field does not serve a second one under its own name.
        value = None if name in self._taken else row.get(name)
        return self.get(row, "response") if value is None and name == "completion" else value

    def _has(self, row: Row, name: str) -> bool:
        return self.column(name) in row or (name == "completion" and name not in self.columns and "response" in row)

    def format_of(self, row: Row) -> str:
        """Return the format of a row; raises UnusableError when it has none."""
        if self.format:
            missing = [column for column in REQUIRED[self.format] if not self._has(row, column)]
            if missing:
                raise UnusableError(f"missing column: {self.column(missing[0])!r}; {_keys(row)}")
            return self.format
        for name, columns in REQUIRED.items():
            if all(self.get(row, column) is not None for column in columns):
                return name
        # No complete format: name the one whose columns are there with nulls, for a reason that helps.
        for name, columns in REQUIRED.items():
            if all(self._has(row, column) for column in columns):
                return name
        raise UnusableError(f"no known format: {_keys(row)}")


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
    more = f" and {len(row) - 5} more" if len(row) > 5 else ""
    return f"the row has {', '.join(shown(key, 24) for key in list(row)[:5])}{more}"


def parse(row: Row, layout: Layout) -> Dialogue:
    """Read one row; raises UnusableError with the reason where it cannot be used."""
    name = layout.format_of(row)
    turns = _READERS[name](row, layout)
    ignored = ["tools"] if name != "alpaca" and row.get("tools") not in _NO_TOOLS else []
    system = layout.get(row, "system")
    if name == "alpaca" or "system" in layout.columns:
        system = text_of(system, repr(layout.column("system")), optional=True)
    if isinstance(system, str) and not system.strip():
        system = None
    # Beside turns, `system` may be a column of another meaning; only text can be a system turn.
    if isinstance(system, str) and all(turn.role != "system" for turn in turns):
        turns.insert(0, Turn("system", system))
    elif system is not None:
        ignored.append(layout.column("system"))
    return _dialogue(turns, tuple(ignored))


def _dialogue(turns: list[Turn], ignored: tuple[str, ...]) -> Dialogue:
    last = max((k for k, turn in enumerate(turns) if turn.role == "assistant"), default=-1)
    if last < 0:
        raise UnusableError("no assistant turn: " + _roles(turns))
    if not turns[last].speaks:
        raise UnusableError("empty response: the last assistant turn has no text")
    # A blank system turn says nothing; without it the row equals one that has no system turn.
    before = [turn for turn in turns[:last] if turn.role != "system" or turn.text.strip()]
    if not any(turn.role in ("user", "tool") and turn.text.strip() for turn in before):
        raise UnusableError("empty prompt: no user turn with text comes before the response")
    used = [*before, turns[last]]
    for turn in used:
        _check_characters(turn)
    return Dialogue(
        messages=tuple(Message(turn.role, turn.text) for turn in before),
        response=turns[last].text,
        unused_turns=len(turns) - last - 1,
        media_parts=sum(turn.media_parts for turn in used),
        ignored=ignored,
    )


def _roles(turns: list[Turn]) -> str:
    if not turns:
        return "the list of turns is empty"
    return f"the turns are {', '.join(turn.role for turn in turns[:6])}{', ...' if len(turns) > 6 else ''}"


def _check_characters(turn: Turn) -> None:
    if turn.text.isascii():
        return
    try:
        turn.text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(turn.text[error.start])
        raise UnusableError(f"lone surrogate: U+{code:04X} in the {turn.role} text, which no tokenizer takes") from None


def prompt_text(messages: tuple[Message, ...]) -> str:
    """Return the turns before the response as one text.

    A single user turn stands as it is, after the system text if there is one; several turns get role labels.
    """
    spoken = [turn.role for turn in messages if turn.role != "system"]
    if spoken == ["user"]:
        return "\n\n".join(turn.content for turn in messages)
    return "\n\n".join(f"{turn.role.capitalize()}: {turn.content}" for turn in messages)


class Reader:
    """Reads what stored rows of a layout say. The last one is remembered, since its texts are asked for one after the other."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._last: tuple[bytes, Said] = (b"", Said("", "", ()))

    def __call__(self, raw: bytes) -> Said:
        """Return what a row says whose JSON text `parse` has accepted before."""
        last, said = self._last
        if last is not raw:
            dialogue = parse(json.loads(raw.decode("utf-8")), self._layout)
            said = Said(prompt_text(dialogue.messages), dialogue.response, dialogue.messages)
            self._last = raw, said
        return said


def _from_messages(row: Row, layout: Layout) -> list[Turn]:
    return parse_turns(layout.get(row, "messages"), layout.column("messages"))


def _from_conversations(row: Row, layout: Layout) -> list[Turn]:
    return parse_turns(layout.get(row, "conversations"), layout.column("conversations"))


def _from_alpaca(row: Row, layout: Layout) -> list[Turn]:
    values = {
        name: text_of(layout.get(row, name), repr(layout.column(name)), optional=name == "input")
        for name in ("instruction", "input", "output")
    }
    question = "\n".join(text for text in (values["instruction"], values["input"]) if text.strip())
    history = _history(layout.get(row, "history"), layout.column("history"))
    return [*history, Turn("user", question), Turn("assistant", values["output"])]


def _history(value: object, column: str) -> list[Turn]:
    if value is None or value == "":
        return []
    if not isinstance(value, (list, tuple)):
        raise UnusableError(f"wrong type: {column!r} is {kind_of(value)}, expected a list of pairs of texts")
    turns = []
    for pair in value:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise UnusableError(f"wrong type: {column!r} holds {kind_of(pair)}, expected pairs of texts")
        turns.append(Turn("user", text_of(pair[0], repr(column))))
        turns.append(Turn("assistant", text_of(pair[1], repr(column))))
    return turns


def _from_prompt(row: Row, layout: Layout) -> list[Turn]:
    def turns(name: str, role: str) -> list[Turn]:
        value = layout.get(row, name)
        column = layout.column(name)
        if isinstance(value, (list, tuple)):
            return parse_turns(value, column)
        return [Turn(role, text_of(value, repr(column)))]

    question, answer = turns("prompt", "user"), turns("completion", "assistant")
    # Without this check an assistant turn of the prompt would be taken for the response.
    if not any(turn.role == "assistant" for turn in answer):
        raise UnusableError(f"no assistant turn: in {layout.column('completion')!r}, " + _roles(answer))
    return question + answer


_READERS = {
    "messages": _from_messages,
    "sharegpt": _from_conversations,
    "alpaca": _from_alpaca,
    "prompt": _from_prompt,
}
