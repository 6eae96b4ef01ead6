"""A row of any format as a list of turns that are objects: one reading for what is scored and for what trainers are given."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nncift.data.layout import Layout, value_at
from nncift.data.records import Row, kind_of
from nncift.data.turns import (
    UnusableError,
    as_turns_text,
    content_in,
    is_number,
    role_in,
    role_of,
    roles_said,
    side_turns,
    text_of,
    turns_in,
)

# Trainers also keep tool definitions as JSON text.
_NOTHING: tuple[object, ...] = (None, "", "[]", [], {})
_MEDIA_COLUMN = "only text is scored, and what it names stays with the row"
_CONTEXT_COLUMN = "it may be a part of what is asked; map input=NAME reads it beside instruction and output"
_SYSTEM_COLUMN = "it may be a system text; map system=NAME puts it in front"
_MARKS_OF_KTO = ("label", "kto_tag")
_UNWANTED = "false there is how KTO marks an answer that nobody wants, and nncift scores it like any other"
UNREAD: Mapping[str, str] = {
    **dict.fromkeys(("tools", "functions"), "tool definitions"),
    **dict.fromkeys(("context", "passage", "document", "documents"), _CONTEXT_COLUMN),
    **dict.fromkeys(("system_prompt", "system_message"), _SYSTEM_COLUMN),
    **dict.fromkeys(("image", "images", "video", "videos", "audio", "audios"), _MEDIA_COLUMN),
    **dict.fromkeys(_MARKS_OF_KTO, _UNWANTED),
    "rejected_response": "the rejected side of a pair is read in `rejected`, beside `chosen`",
    "chat_template_kwargs": "settings of a chat template",
}
"""Columns that change what a model is asked or learns where other tools read them, and why nncift does not."""
_TEXTS = {
    "alpaca": ("instruction", "input", "output"),
    "prompt": ("prompt", "completion"),
    "preference": ("prompt", "chosen"),
}
_TURNS = {"messages": "messages", "sharegpt": "conversations"}


@dataclass(frozen=True)
class RowTurns:
    """A row's turns, with where each of them stands in words.

    alpaca: instruction, input and output apart, where the row keeps them so. rejected: the turns of a pair's rejected side,
    from the first, None without a pair. ignored: columns that would change the prompt and do not. numbers: texts that were
    numbers.
    """

    items: list[Any]
    where: list[str]
    alpaca: Mapping[str, str] | None = None
    rejected: list[Any] | None = None
    ignored: tuple[str, ...] = ()
    numbers: int = 0


def row_turns(row: Row, layout: Layout) -> RowTurns:
    """Return the turns of a row. Raises UnusableError where its columns cannot be read; turns are not looked at."""
    name = layout.format_of(row)
    alpaca, rejected, answer = None, None, 0
    ignored = _unread(row, layout)
    if name == "preference":
        items, rejected, answer, alpaca = _pair(row, layout, ignored)
    elif name in _TURNS:
        items = _column_turns(row, layout, name)
        _check_no_answer_apart(items, row, layout, name)
    elif name == "alpaca":
        question, alpaca = _question(row, layout, "output")
        items = [*_history(row, layout, ignored, strict=True), *question, _said("assistant", alpaca["output"])]
        answer = 1
    else:
        before, after = _sides(row, layout, "prompt", "completion")
        _check_answers(after, layout, "completion")
        items, answer = _joined(_with_history(row, layout, before, ignored), after, layout), len(after)
    system = _system(row, layout, name, items, ignored)
    if system is not None:
        items = [_said("system", system), *items]
        rejected = (
            rejected if rejected is None or _has_system(rejected, layout) else [_said("system", system), *rejected]
        )
    numbers = sum([is_number(layout.get(row, column)) for column in _TEXTS.get(name, ())])
    return RowTurns(items, _where(layout, name, len(items), answer), alpaca, rejected, tuple(ignored), numbers)


def _unread(row: Row, layout: Layout) -> list[str]:
    """Return the columns of `UNREAD` that a row has with a value, but those that `--map` names; of marks, those that say no."""
    found = sorted(UNREAD.keys() & row.keys())
    return [
        column
        for column in found
        if column not in layout.columns.values()
        and (str(row[column]).lower() == "false" if column in _MARKS_OF_KTO else row[column] not in _NOTHING)
    ]


def _check_no_answer_apart(turns: list[Any], row: Row, layout: Layout, name: str) -> None:
    """Raise UnusableError where turns end with a question whose answer is in another column: an earlier one would be scored."""
    if not turns or _role(turns[-1], layout) not in ("user", "tool"):
        return
    answer = layout.get(row, "completion")
    if isinstance(answer, (str, list, tuple, dict)) and answer:
        column = layout.column(_TURNS[name])
        other = next(name for name in (layout.column("completion"), "response") if value_at(row, name) is not None)
        raise UnusableError(
            f"answer apart: {column!r} ends with a question, and {other!r} holds the answer; "
            f"type --map prompt={column} --map completion={other}"
        )


def _where(layout: Layout, name: str, turns: int, answer: int) -> list[str]:
    """Return words for the place of every turn, numbered in its column; answer: turns of the last column."""
    if name in _TURNS:
        column = layout.column(_TURNS[name])
        return [f"turn {number} of {column!r}" for number in range(1, turns + 1)]
    first, last = {
        "alpaca": ("instruction", "output"),
        "prompt": ("prompt", "completion"),
        "preference": ("prompt", "chosen"),
    }[name]
    before = turns - answer
    return [
        f"turn {k + 1} of {layout.column(first)!r}"
        if k < before
        else f"turn {k - before + 1} of {layout.column(last)!r}"
        for k in range(turns)
    ]


def _column_turns(row: Row, layout: Layout, name: str) -> list[Any]:
    column = _TURNS[name]
    value = layout.get(row, column)
    if value is None and name == "sharegpt" and not layout.forced and column not in layout.columns:
        return turns_in(row.get("data"), "data")
    return turns_in(value, layout.column(column))


def _said(role: str, text: Any) -> dict[str, Any]:
    return {"role": role, "content": text}


def _question(row: Row, layout: Layout, output: str) -> tuple[list[Any], dict[str, str]]:
    """Return the user turn of an Alpaca row, and its texts apart."""
    texts = {
        name: text_of(layout.get(row, name), repr(layout.column(name)), optional=name == "input")
        for name in ("instruction", "input", *((output,) if output else ()))
    }
    asked = "\n".join(text for text in (texts["instruction"], texts["input"]) if text.strip())
    return [_said("user", asked)], texts


def _sides(row: Row, layout: Layout, *names: str) -> list[list[Any]]:
    """Return the turns of prompt and answers: lists of turns, or texts; JSON text of turns where all answers are."""
    values = {name: layout.get(row, name) for name in names}
    answers = [name for name in names if name != "prompt"]
    decoded = {name: as_turns_text(values[name]) for name in names}
    # A JSON answer is a text like any other: only where all sides are turns are they taken for turns.
    if all(decoded[name] for name in answers) and (len(answers) > 1 or decoded.get("prompt")):
        values = {name: decoded[name] or values[name] for name in names}
    return [_side(values[name], name, layout) for name in names]


def _side(value: Any, name: str, layout: Layout) -> list[Any]:
    turns = side_turns(value, layout.column(name))
    if turns is not None:
        return turns
    return [_said("user" if name == "prompt" else "assistant", text_of(value, repr(layout.column(name))))]


def _pair(row: Row, layout: Layout, ignored: list[str]) -> tuple[list[Any], list[Any], int, Mapping[str, str] | None]:
    """Return the turns of a pair's chosen side, of its rejected side, how many answer in the first, and Alpaca's texts."""
    chosen, rejected = _sides(row, layout, "chosen", "rejected")
    _check_answers(chosen, layout, "chosen")
    alpaca = None
    prompt: list[Any] = []
    if layout.get(row, "prompt") is not None:
        prompt = _side(as_turns_text(layout.get(row, "prompt")) or layout.get(row, "prompt"), "prompt", layout)
    elif layout.get(row, "instruction") is not None:
        prompt, alpaca = _question(row, layout, "")
    elif any(layout.get(row, column) is not None for column in _TURNS.values()):
        name = next(name for name, column in _TURNS.items() if layout.get(row, column) is not None)
        turns = _column_turns(row, layout, name)
        # UltraFeedback repeats the chosen side there; LLaMA-Factory and axolotl keep the prompt there.
        prompt = [] if _is_whole(chosen, layout) else turns
    prompt = _with_history(row, layout, prompt, ignored)
    if not prompt and not _is_whole(chosen, layout):
        raise UnusableError(
            f"no prompt: {layout.column('chosen')!r} is an answer alone, expected a prompt beside it or turns that begin with one"
        )
    return _joined(prompt, chosen, layout), _joined(prompt, rejected, layout), len(chosen), alpaca


def _check_answers(turns: list[Any], layout: Layout, name: str) -> None:
    """Raise UnusableError where no turn answers: an assistant turn of the prompt would be taken for the response."""
    roles = [_role(turn, layout) for turn in turns]
    if "assistant" not in roles and None not in roles:
        raise UnusableError(f"no assistant turn: in {layout.column(name)!r}, {roles_said(map(str, roles))}")


def _is_whole(turns: list[Any], layout: Layout) -> bool:
    """Tell whether an answer is a conversation that begins with what was asked."""
    return any(_role(turn, layout) == "user" for turn in turns)


def _role(turn: Any, layout: Layout) -> str | None:
    return role_of(role_in(turn), layout.roles) if isinstance(turn, dict) else None


def _has_system(turns: list[Any], layout: Layout) -> bool:
    return any(_role(turn, layout) == "system" for turn in turns)


def _joined(prompt: list[Any], answer: list[Any], layout: Layout) -> list[Any]:
    """Return prompt and answer; a prompt that the answer begins with stands once (TRL's rule), whatever system turns do."""
    asked = [turn for turn in prompt if _role(turn, layout) != "system"]
    begun = [turn for turn in answer if _role(turn, layout) != "system"]
    same = 0 < len(asked) < len(begun) and all(map(_equal(layout), asked, begun))
    # Some keep the last question as text beside the whole conversation.
    whole = len(asked) == 1 and bool(begun) and _role(begun[0], layout) == "user"
    same = same or (whole and any(_equal(layout)(asked[0], turn) for turn in begun[:-1]))
    if not same:
        return [*prompt, *answer]
    system = [] if _has_system(answer, layout) else [turn for turn in prompt if _role(turn, layout) == "system"]
    return [*system, *answer]


def _equal(layout: Layout) -> Any:
    def equal(one: Any, other: Any) -> bool:
        if _role(one, layout) is None or _role(one, layout) != _role(other, layout):
            return False
        first, second = (_flat(content_in(turn)) for turn in (one, other))
        return bool(first == second)

    return equal


def _flat(content: Any) -> Any:
    """Return a list of one text part as its text, and text without the blanks around it."""
    if isinstance(content, list) and len(content) == 1 and isinstance(content[0], dict) and "text" in content[0]:
        content = content[0]["text"]
    return content.strip() if isinstance(content, str) else content


def _with_history(row: Row, layout: Layout, prompt: list[Any], ignored: list[str]) -> list[Any]:
    earlier = _history(row, layout, ignored, strict="history" in layout.columns)
    return [*earlier, *prompt] if prompt else prompt


def _history(row: Row, layout: Layout, ignored: list[str], *, strict: bool) -> list[Any]:
    """Return earlier turns: pairs of texts, or turns. Not strict: a column of another meaning is named in `ignored`."""
    value, column = layout.get(row, "history"), layout.column("history")
    if isinstance(value, str) and value.strip():
        value = as_turns_text(value) or _pairs_text(value)
    if value is None or value == "" or value == []:
        return []
    try:
        if not isinstance(value, (list, tuple)):
            raise UnusableError(f"wrong type: {column!r} is {kind_of(value)}, expected a list of pairs of texts")
        if all(_role(item, layout) is not None for item in value):
            return list(value)
        return [turn for pair in value for turn in _exchange(pair, column)]
    except UnusableError:
        if strict:
            raise
        ignored.append(column)
        return []


def _pairs_text(value: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _exchange(pair: Any, column: str) -> tuple[Any, Any]:
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
        raise UnusableError(f"wrong type: {column!r} holds {kind_of(pair)}, expected pairs of texts")
    return _said("user", text_of(pair[0], repr(column))), _said("assistant", text_of(pair[1], repr(column)))


def _system(row: Row, layout: Layout, name: str, items: list[Any], ignored: list[str]) -> str | None:
    """Return the text of the column `system` where it goes in front of the turns, else name it in `ignored`."""
    system = layout.get(row, "system")
    if name == "alpaca" or "system" in layout.columns:
        system = text_of(system, repr(layout.column("system")), optional=True)
    if system is None or (isinstance(system, str) and not system.strip()):
        return None
    # Beside turns, `system` may be a column of another meaning; only text can be a system turn.
    if isinstance(system, str) and not _has_system(items, layout):
        return system
    ignored.append(layout.column("system"))
    return None
