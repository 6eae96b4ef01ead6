"""Which form of a trainer suits all rows of one file, how to configure the trainer, and rows of pairs and for OpenAI."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nncift.core.result_types import JsonObject
from nncift.core.texts import rows_of
from nncift.data import trainers
from nncift.data.conversation import Conversation, Speech, is_media
from nncift.data.records import Row
from nncift.data.trainers import check_whole, openai_turn, sharegpt_turn, sharegpt_turns
from nncift.data.turns import UnusableError


@dataclass(frozen=True)
class Form:
    """How a conversation becomes a row; notes: sentences for the user; options: settings of the trainer, by its own names."""

    row: Callable[[Conversation], Row]
    notes: tuple[str, ...] = ()
    options: JsonObject = field(default_factory=dict)


def form_of(
    conversations: Sequence[Conversation],
    to: str,
    *,
    last: bool,
    parts: bool,
    pairs: bool,
    marks: Callable[[], bool | None] = lambda: None,
) -> Form:
    """Return the form for all rows of a file. parts: some contents are lists. pairs: the rows are pairs of answers.

    marks: tells whether the model's chat template says what the assistant generates, None where that is not known.
    """
    if pairs:
        return _of_pairs(conversations, to, parts=parts)
    if to == "trl":
        return _trl(conversations, last, parts, marks)
    makers = {"axolotl": _axolotl, "llamafactory": _llamafactory, "openai": _openai}
    return makers[to](conversations, last, parts)


def _of_pairs(conversations: Sequence[Conversation], to: str, *, parts: bool) -> Form:
    if to == "trl":
        return Form(lambda talk: trl_pair(talk, parts=parts), ("The rows are pairs: train with DPOTrainer.",))
    if to == "axolotl":
        fields = {"field_messages": "messages", "field_chosen": "chosen", "field_rejected": "rejected"}
        note = "The rows are pairs. In the axolotl config: `rl: dpo`, `type: chat_template.default`."
        return Form(axolotl_pair, (note,), fields)
    if to == "llamafactory":
        return Form(
            llamafactory_pair, ("The rows are pairs: set `stage: dpo`; `ranking` is set in dataset_info.json.",)
        )
    note = "The rows are pairs: choose the method `dpo` when the job is made."
    return Form(lambda talk: openai(talk, last=False), (note, *_few(len(conversations))))


_MARKS = {
    True: "the chat template of the run's model has the `{% generation %}` marks that this needs.",
    False: "it needs `{% generation %}` marks, which the chat template of the run's model has not: TRL puts in its own for "
    "templates that it knows and refuses others. --turns last works with every template.",
    None: "it needs `{% generation %}` marks in the chat template; TRL puts in its own for templates that it knows and refuses "
    "others. --turns last works with every template.",
}


def _trl(conversations: Sequence[Conversation], last: bool, parts: bool, marks: Callable[[], bool | None]) -> Form:
    several = sum(talk.responses > 1 for talk in conversations)
    masked = sum(talk.masked for talk in conversations)
    if last or not several:
        which = f"the last response ({rows_of(several)} have several)" if several else "the response"
        note = f"Rows are `prompt` and `completion`: TRL learns from {which} alone, with any chat template."
        return Form(lambda talk: trainers.trl(talk, form="last", parts=parts), (note,))
    form = "learned" if masked else "messages"
    notes = [
        f"Set `assistant_only_loss=True` in SFTConfig, so that only assistant turns are learned from; {_MARKS[marks()]}"
    ]
    if masked:
        notes.append(f"{rows_of(masked)} have masked turns: they stand in `prompt`, and TRL learns from `completion`.")
    return Form(lambda talk: trainers.trl(talk, form=form, parts=parts), tuple(notes), {"assistant_only_loss": True})


def _axolotl(conversations: Sequence[Conversation], last: bool, parts: bool) -> Form:
    masked = sum(talk.masked for talk in conversations)
    marks = "last" if last else "learned" if masked else "none"
    options = {"field_messages": "messages"}
    notes = ["In the axolotl config: `type: chat_template`, `field_messages: messages`."]
    if marks != "none":
        options["message_field_training"] = "training"
        notes.append("For `training` to count, set `message_field_training: training`.")
    if any(turn.detail is not None for talk in conversations for turn in talk.turns):
        options["message_field_training_detail"] = "train_detail"
        notes.append("For masked parts of turns to count, set `message_field_training_detail: train_detail`.")
    return Form(lambda talk: trainers.axolotl(talk, marks=marks, parts=parts), tuple(notes), options)


def _llamafactory(conversations: Sequence[Conversation], last: bool, parts: bool) -> Form:
    del parts
    several = sum(talk.responses > 1 for talk in conversations)
    masked = sum(_earlier_masked(talk) for talk in conversations)
    history = last or (masked > 0 and not several)
    notes = []
    if history and (several or masked):
        notes.append(
            f"{rows_of(several or masked)} have several responses: set `mask_history: true` to learn from the last alone."
        )
    elif masked:
        notes.append(
            "LLaMA-Factory learns from every response or, with `mask_history`, from the last: rows with masked turns beside rows "
            "with several responses are left out; --turns last keeps them."
        )
    if any(turn.thought for talk in conversations for turn in talk.turns):
        notes.append(
            "Thoughts (`reasoning_content`) stand as <think>...</think> before the text, where its templates look for them."
        )
    plain = all(
        talk.alpaca is not None and "output" in talk.alpaca and trainers.is_exchanges(talk) for talk in conversations
    )
    make = trainers.alpaca if plain else trainers.sharegpt

    def row(talk: Conversation) -> Row:
        if _earlier_masked(talk) and not history:
            raise UnusableError(
                "masked turns: LLaMA-Factory would learn from them; --turns last learns from the last alone"
            )
        return make(talk)

    return Form(row, tuple(notes), {"mask_history": True} if history and (several or masked) else {})


def _openai(conversations: Sequence[Conversation], last: bool, parts: bool) -> Form:
    del parts
    notes = list(_few(len(conversations)))
    if any(turn.thought for talk in conversations for turn in talk.turns):
        notes.append("Thoughts (`reasoning_content`) are left away: OpenAI takes none.")
    return Form(lambda talk: openai(talk, last=last), tuple(notes))


def _few(rows: int) -> tuple[str, ...]:
    return (f"OpenAI asks for at least {FEWEST} rows.",) if rows < FEWEST else ()


def _earlier_masked(talk: Conversation) -> bool:
    return any(turn.role == "assistant" and not turn.learned for turn in talk.turns)


def split_pair(conversation: Conversation) -> tuple[tuple[Speech, ...], tuple[Speech, ...], tuple[Speech, ...]]:
    """Return the prompt that both sides begin with, and what each of them answers.

    Raises UnusableError where there is no such prompt, or where the sides do not differ.
    """
    chosen, rejected = conversation.turns, conversation.rejected or ()
    last = max((place for place, turn in enumerate(rejected) if turn.role == "assistant"), default=-1)
    rejected = rejected[: last + 1]
    same = 0
    while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
        same += 1
    if same == len(chosen) == len(rejected):
        raise UnusableError("pair: both sides say the same")
    if same == len(chosen) or same == len(rejected):
        raise UnusableError("pair: one side is the beginning of the other")
    if not any(turn.role in ("user", "tool") for turn in chosen[:same]):
        raise UnusableError("pair: the sides do not begin with the same prompt")
    return chosen[:same], chosen[same:], rejected[same:]


def trl_pair(conversation: Conversation, *, parts: bool) -> Row:
    """TRL's DPOTrainer: `prompt`, `chosen` and `rejected` as lists of turns, `tools` as JSON text."""
    prompt, chosen, rejected = (
        [openai_turn(turn, arguments=lambda call: call.value, parts=parts) for turn in side]
        for side in split_pair(conversation)
    )
    row: Row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    if conversation.tools is not None:
        row["tools"] = json.dumps(conversation.tools, ensure_ascii=False)
    return {**row, **conversation.media}


def axolotl_pair(conversation: Conversation) -> Row:
    """Axolotl (`rl: dpo`, `type: chat_template.default`): `messages`, and `chosen` and `rejected` as one turn each.

    Raises UnusableError for what its loader would drop: calls, tools and further turns.
    """
    prompt, chosen, rejected = split_pair(conversation)
    _check_single("axolotl", chosen, rejected)
    if conversation.tools is not None or any(turn.calls for turn in (*prompt, *chosen, *rejected)):
        raise UnusableError("pair: it calls tools, which axolotl's loader of pairs drops")
    return {
        "messages": [_text_turn(turn) for turn in prompt],
        "chosen": _text_turn(chosen[0]),
        "rejected": _text_turn(rejected[0]),
    }


def llamafactory_pair(conversation: Conversation) -> Row:
    """LLaMA-Factory (`stage: dpo`): `conversations` up to the answer, and `chosen` and `rejected` as one turn each."""
    prompt, chosen, rejected = split_pair(conversation)
    _check_single("LLaMA-Factory", chosen, rejected)
    row = sharegpt_turns(prompt, conversation)
    spoken = [turn for turn in row["conversations"] if turn["from"] != "system"]
    if len(spoken) % 2 == 0:
        raise UnusableError("turns do not alternate: LLaMA-Factory skips pairs whose prompt does not end with the user")
    row |= {"chosen": sharegpt_turn(chosen[0]), "rejected": sharegpt_turn(rejected[0])}
    if conversation.tools is not None:
        row["tools"] = json.dumps(conversation.tools, ensure_ascii=False)
    return row


def openai_pair(conversation: Conversation, write: Callable[[tuple[Speech, ...]], list[Row]]) -> Row:
    """OpenAI's preference tuning: `input` with `messages`, and one turn in `preferred_output` and `non_preferred_output`."""
    prompt, chosen, rejected = split_pair(conversation)
    _check_single("OpenAI", chosen, rejected)
    given: Row = {"messages": write(prompt)}
    if conversation.tools is not None:
        given["tools"] = conversation.tools
    return {"input": given, "preferred_output": write(chosen), "non_preferred_output": write(rejected)}


def _check_single(trainer: str, *sides: tuple[Speech, ...]) -> None:
    if any(len(side) != 1 or side[0].role != "assistant" for side in sides):
        raise UnusableError(f"pair: a side has several turns after the common prompt, and {trainer} takes one")


def _text_turn(turn: Speech) -> Row:
    if turn.content is None or (isinstance(turn.content, list) and is_media(turn.content)):
        raise UnusableError("pair: a turn has parts that are not text, and axolotl's loader of pairs takes texts")
    return openai_turn(replace(turn, extra={}, calls=()), arguments=lambda call: call.text, parts=False)


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
        return openai_pair(conversation, _written)
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
            openai_turn(turn, arguments=lambda call: call.text, parts=False)
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
