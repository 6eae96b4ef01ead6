"""What each trainer accepts, as functions from a conversation to a row of its file (docs/export.md).

Each either returns the row or raises UnusableError with the reason for which the trainer would drop or misread it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from nncift.core.result_types import JsonObject
from nncift.data.conversation import MEDIA, Call, Conversation, Speech
from nncift.data.records import Row
from nncift.data.turns import UnusableError

PLACEHOLDERS = {
    "image": "<image>",
    "image_url": "<image>",
    "input_image": "<image>",
    "video": "<video>",
    "audio": "<audio>",
    "input_audio": "<audio>",
}
_TEXT = ("text", "input_text", "output_text")


def trl(conversation: Conversation, *, form: str, parts: bool) -> Row:
    """TRL: `messages` of system, user, assistant and tool turns, never beside `prompt`.

    `tools` as JSON text, so that schemas of several tools are one type. form: `messages`, or `prompt` and `completion`, which is
    how TRL learns what is masked: `last` = the completion is the last turn, `learned` = it begins with the first turn
    that is learned from. parts: contents are lists of parts in all rows. Raises UnusableError where TRL has no form for a mask.
    """
    check_whole(conversation, "TRL", last=form == "last")
    turns = [openai_turn(turn, arguments=lambda call: call.value, parts=parts) for turn in conversation.turns]
    at = len(turns) - 1 if form == "last" else first_learned(conversation)
    if form == "learned" and any(turn.role == "assistant" and not turn.learned for turn in conversation.turns[at:]):
        raise UnusableError(
            "masked turns: TRL learns from every assistant turn of a completion, and one between turns that are learned from is "
            "masked; --turns last learns from the last alone"
        )
    row: Row = {"messages": turns} if form == "messages" else {"prompt": turns[:at], "completion": turns[at:]}
    if conversation.tools is not None:
        row["tools"] = json.dumps(conversation.tools, ensure_ascii=False)
    return {**row, **conversation.media}


def axolotl(conversation: Conversation, *, marks: str, parts: bool) -> Row:
    """Axolotl (`type: chat_template`): `messages`, tool arguments and tool parameters as JSON text.

    marks: `none`; `learned` or `last` = every turn says in `training` whether it is learned from, which those of the row say or
    only the last is. Raises UnusableError for a weight that is neither 0 nor 1.
    """
    check_whole(conversation, "axolotl", last=marks == "last", details=True)
    turns = [openai_turn(turn, arguments=lambda call: call.text, parts=parts) for turn in conversation.turns]
    if marks != "none":
        for place, (turn, row_turn) in enumerate(zip(conversation.turns, turns, strict=True)):
            is_last = place == len(turns) - 1
            row_turn["training"] = is_last if marks == "last" else turn.role == "assistant" and turn.learned
            if turn.detail is not None and row_turn["training"]:
                row_turn["train_detail"] = turn.detail
    row: Row = {"messages": turns}
    if conversation.tools is not None:
        row["tools"] = [_with_text_parameters(tool) for tool in conversation.tools]
    return {**row, **conversation.media}


def alpaca(conversation: Conversation) -> Row:
    """LLaMA-Factory, Alpaca: instruction, input (always there) and output; `system` and `history` where the row has them."""
    check_whole(conversation, "LLaMA-Factory", last=False)
    fields = conversation.alpaca
    if fields is None or "output" not in fields:
        raise UnusableError("format: the row is no Alpaca row")
    turns = list(conversation.turns)
    row: Row = {key: fields[key] for key in ("instruction", "input", "output")}
    if turns[0].role == "system":
        row["system"] = turns.pop(0).content
    if not is_exchanges(conversation):
        raise UnusableError("history: it is no pairs of texts of user and assistant, which Alpaca rows hold alone")
    earlier = [turn.content for turn in turns[:-2]]
    if earlier:
        row["history"] = [[earlier[k], earlier[k + 1]] for k in range(0, len(earlier), 2)]
    if conversation.tools is not None:
        row["tools"] = json.dumps(conversation.tools, ensure_ascii=False)
    return {**row, **conversation.media}


def is_exchanges(conversation: Conversation) -> bool:
    """Tell whether the turns after a system text are texts of user and assistant by turns, as Alpaca's history has them."""
    turns = conversation.turns[1:] if conversation.turns[0].role == "system" else conversation.turns
    alternate = all(turn.role == ("assistant" if k % 2 else "user") for k, turn in enumerate(turns))
    return alternate and len(turns) % 2 == 0 and all(isinstance(turn.content, str) and not turn.calls for turn in turns)


def sharegpt(conversation: Conversation) -> Row:
    """LLaMA-Factory, ShareGPT: human/gpt/function_call/observation in alternation, an even count after the system turn.

    Tools and tool calls as JSON text; results of several calls at once are one observation, as the trainer would join them.
    Raises UnusableError where the trainer would skip the row.
    """
    check_whole(conversation, "LLaMA-Factory", last=False)
    row = sharegpt_turns(conversation.turns, conversation)
    if conversation.tools is not None:
        row["tools"] = json.dumps(conversation.tools, ensure_ascii=False)
    return row


def sharegpt_turns(turns: tuple[Speech, ...], conversation: Conversation) -> Row:
    """Return turns as `conversations`, with the media of the conversation beside them. Raises UnusableError as `sharegpt`."""
    media: dict[str, list[Any]] = {}
    said = [sharegpt_turn(turn, media) for turn in _joined_results(turns)]
    spoken = said[1:] if said[0]["from"] == "system" else said
    for place, turn in enumerate(spoken):
        allowed = ("gpt", "function_call") if place % 2 else ("human", "observation")
        if turn["from"] not in allowed:
            raise UnusableError(
                f"turns do not alternate: turn {place + 1} is {turn['from']}, and LLaMA-Factory skips rows with another than "
                f"{' or '.join(allowed)} there"
            )
    files: dict[str, list[Any]] = {**media, **conversation.media}
    for plural, paths in files.items():
        marks = sum(turn["value"].count(f"<{plural[:-1]}>") for turn in said)
        if marks != len(paths):
            raise UnusableError(
                f"media: the text has {marks} <{plural[:-1]}> and the row {len(paths)} {plural}; LLaMA-Factory stops there"
            )
    return {"conversations": said, **files}


def sharegpt_turn(turn: Speech, media: dict[str, list[Any]] | None = None) -> dict[str, str]:
    """Return a turn as LLaMA-Factory has it; paths of its media go into `media`. Raises UnusableError."""
    text = _sharegpt_text(turn, media)
    if thought := turn.thought:
        # The marks of a thought that its templates know.
        text = f"<think>\n{thought}\n</think>\n\n{text}"
    return {"from": _sharegpt_role(turn), "value": text}


def check_whole(conversation: Conversation, trainer: str, *, last: bool, details: bool = False) -> None:
    """Raise UnusableError for weights and, unless `details`, for masked parts of turns, for which the trainer has no form.

    last: only the last turn is learned from.
    """
    learned = [turn for turn in conversation.turns[-1 if last else 0 :] if turn.role == "assistant" and turn.learned]
    for turn in learned:
        if turn.weight is not None:
            raise UnusableError(
                f"turn weights: a turn has the weight {turn.weight:g}, and {trainer} knows 0 and 1 alone"
            )
        if turn.detail is not None and not details:
            raise UnusableError(f"masked parts: a part of a turn is masked, and {trainer} learns from whole turns")


def first_learned(conversation: Conversation) -> int:
    """Return the place of the first turn that is learned from; there is one."""
    return next(k for k, turn in enumerate(conversation.turns) if turn.role == "assistant" and turn.learned)


def dataset_info(name: str, file: str, rows: Iterable[Row]) -> JsonObject:
    """Return the stanza that LLaMA-Factory needs in `dataset_info.json`: it ignores columns that are not named there."""
    columns = {key for row in rows for key in row}
    ranking = {"ranking": True} if "chosen" in columns else {}
    more = {key: key for key in ("system", "history", "tools", *MEDIA) if key in columns}
    if "conversations" not in columns:
        known = {"prompt": "instruction", "query": "input", "response": "output"}
        return {name: {"file_name": file, "formatting": "alpaca", "columns": {**known, **more}}}
    tags = {
        "role_tag": "from",
        "content_tag": "value",
        "user_tag": "human",
        "assistant_tag": "gpt",
        "observation_tag": "observation",
        "function_tag": "function_call",
        "system_tag": "system",
    }
    sides = {"chosen": "chosen", "rejected": "rejected"} if ranking else {}
    columns_of = {"messages": "conversations", **sides, **more}
    return {name: {"file_name": file, **ranking, "formatting": "sharegpt", "columns": columns_of, "tags": tags}}


def openai_turn(turn: Speech, *, arguments: Callable[[Call], Any], parts: bool) -> Row:
    """Return a turn as OpenAI writes it. arguments: how those of a call are written. parts: all contents are lists of parts."""
    row: Row = {"role": turn.role}
    if turn.content is not None:
        content = turn.content
        if parts and isinstance(content, str):
            content = [{"type": "text", "text": content}]
        elif isinstance(content, list) and not parts:
            content = "\n".join(_text_of(part) for part in content)
        elif isinstance(content, list):
            content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
        row["content"] = content
    if turn.calls:
        row["tool_calls"] = [
            {
                **({} if call.id is None else {"id": call.id}),
                "type": "function",
                "function": {"name": call.name, "arguments": arguments(call)},
            }
            for call in turn.calls
        ]
    return {**row, **turn.extra}


def _with_text_parameters(tool: Any) -> Any:
    inner = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(inner, dict) or isinstance(inner.get("parameters", ""), str):
        return tool
    return {**tool, "function": {**inner, "parameters": json.dumps(inner["parameters"], ensure_ascii=False)}}


def _joined_results(turns: tuple[Speech, ...]) -> list[Speech]:
    joined: list[Speech] = []
    for turn in turns:
        if turn.role == "tool" and joined and joined[-1].role == "tool":
            joined[-1] = Speech("tool", f"{_flat(joined[-1])}\n{_flat(turn)}")
        else:
            joined.append(turn)
    return joined


def _sharegpt_role(turn: Speech) -> str:
    if turn.calls:
        if _flat(turn).strip():
            raise UnusableError("text beside a tool call: a function_call turn of LLaMA-Factory holds the call alone")
        return "function_call"
    return {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}[turn.role]


def _sharegpt_text(turn: Speech, media: dict[str, list[Any]] | None) -> str:
    if turn.calls:
        calls = [{"name": call.name, "arguments": call.value} for call in turn.calls]
        return json.dumps(calls[0] if len(calls) == 1 else calls, ensure_ascii=False)
    return _flat(turn, media)


def _flat(turn: Speech, media: dict[str, list[Any]] | None = None) -> str:
    """Return a turn's content as text; a part that is no text becomes its placeholder, its path goes into `media`."""
    if not isinstance(turn.content, list):
        return turn.content or ""
    texts = []
    for part in turn.content:
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        if kind in _TEXT:
            texts.append(_text_of(part))
            continue
        if kind not in PLACEHOLDERS:
            raise UnusableError(f"media: LLaMA-Factory has no placeholder for a part of type {kind!r}")
        texts.append(PLACEHOLDERS[kind])
        path = _path_of(part)
        if path is not None and media is not None:
            media.setdefault(f"{PLACEHOLDERS[kind][1:-1]}s", []).append(path)
    return "\n".join(texts)


def path_in(value: Any) -> Any:
    """Return the path of a medium as `datasets` keeps it. Raises UnusableError where the row has its bytes instead."""
    if not isinstance(value, dict) or "bytes" not in value:
        return value
    if value["bytes"] is not None or not value.get("path"):
        raise UnusableError(
            "media: the row holds the bytes of a medium, expected its path; save it as a file and name that"
        )
    return value["path"]


def _text_of(part: Any) -> str:
    return part if isinstance(part, str) else str(part.get("text", ""))


def _path_of(part: Row) -> Any:
    for key in ("image", "image_url", "video", "audio", "path", "url"):
        value = part.get(key)
        if isinstance(value, dict):
            value = path_in(value) if "bytes" in value else value.get("url")
        if value is not None:
            return value
    return None
