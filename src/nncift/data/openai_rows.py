"""Rows as OpenAI's fine-tuning takes them: `messages` with `weight`, tool calls with ids and arguments as text."""

from __future__ import annotations

from typing import Any

from nncift.data import preference_pairs as pairs
from nncift.data.conversation import Conversation, Speech
from nncift.data.records import Row
from nncift.data.trainers import check_whole, openai_turn
from nncift.data.turns import UnusableError

_TAKEN = ("role", "content", "tool_calls", "tool_call_id", "name", "weight")
FEWEST = 10
"""Rows that OpenAI asks for at least."""


def openai(conversation: Conversation, *, last: bool) -> Row:
    """Return a row, or a pair where the conversation has a rejected side. last: only the last turn is learned from.

    Raises UnusableError for media in columns, for weights and masked parts, and for parts that OpenAI does not take.
    """
    if conversation.media:
        raise UnusableError("media: OpenAI takes images as parts of turns, not in columns")
    if conversation.rejected is not None:
        return pairs.openai(conversation, _written)
    check_whole(conversation, "OpenAI", last=last)
    turns = _written(conversation.turns)
    several = sum(turn.role == "assistant" for turn in conversation.turns) > 1
    for place, (turn, row) in enumerate(zip(conversation.turns, turns, strict=True)):
        if turn.role == "assistant" and several:
            row["weight"] = int(place == len(turns) - 1 if last else turn.learned)
    row = {"messages": turns}
    return row if conversation.tools is None else {**row, "tools": conversation.tools}


def _written(turns: tuple[Speech, ...]) -> list[Row]:
    """Return turns with ids for their calls: a call without one gets a number, and results answer calls in their order."""
    written: list[Row] = []
    pending: list[str] = []
    calls = 0
    for turn in turns:
        row = (
            openai_turn(turn, arguments=pairs.text_arguments, parts=False)
            if not _has_images(turn)
            else _with_images(turn)
        )
        if turn.calls:
            pending = []
            for call in row["tool_calls"]:
                calls += 1
                call.setdefault("id", f"call_{calls}")
                pending.append(call["id"])
        if turn.role == "tool" and "tool_call_id" not in row:
            if not pending:
                raise UnusableError("tool call: a result answers no call, which OpenAI refuses")
            row["tool_call_id"] = pending.pop(0)
        written.append({key: row[key] for key in _TAKEN if key in row})
    return written


def _has_images(turn: Speech) -> bool:
    return isinstance(turn.content, list) and any(
        isinstance(p, dict) and p.get("type", "text") != "text" for p in turn.content
    )


def _with_images(turn: Speech) -> Row:
    parts: list[Any] = [
        {"type": "text", "text": part} if isinstance(part, str) else part for part in turn.content or ()
    ]
    kinds = {part.get("type", "text") for part in parts}
    if not kinds <= {"text", "image_url"} or turn.role != "user":
        raise UnusableError(
            f"media: OpenAI takes image_url in user turns, and a {turn.role} turn has {', '.join(sorted(kinds))}"
        )
    return {"role": turn.role, "content": parts}
