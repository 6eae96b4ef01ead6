"""Pairs of answers as the rows of preference training (DPO) that each trainer loads (docs/export.md)."""

from __future__ import annotations

import json
from collections.abc import Callable

from nncift.data.conversation import Call, Conversation, Speech
from nncift.data.records import Row
from nncift.data.trainers import openai_turn, sharegpt_turn, sharegpt_turns
from nncift.data.turns import UnusableError


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


def trl(conversation: Conversation, *, parts: bool) -> Row:
    """TRL's DPOTrainer: `prompt`, `chosen` and `rejected` as lists of turns, `tools` as JSON text."""
    prompt, chosen, rejected = (
        [openai_turn(turn, arguments=lambda call: call.value, parts=parts) for turn in side]
        for side in split_pair(conversation)
    )
    row: Row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    if conversation.tools is not None:
        row["tools"] = json.dumps(conversation.tools, ensure_ascii=False)
    return {**row, **conversation.media}


def axolotl(conversation: Conversation) -> Row:
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


def llamafactory(conversation: Conversation) -> Row:
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


def openai(conversation: Conversation, write: Callable[[tuple[Speech, ...]], list[Row]]) -> Row:
    """OpenAI's preference tuning: `input` with `messages`, and one turn in `preferred_output` and `non_preferred_output`."""
    prompt, chosen, rejected = split_pair(conversation)
    _check_single("OpenAI", chosen, rejected)
    given: Row = {"messages": write(prompt)}
    if conversation.tools is not None:
        given["tools"] = conversation.tools
    return {"input": given, "preferred_output": write(chosen), "non_preferred_output": write(rejected)}


def text_arguments(call: Call) -> str:
    """Return the arguments of a call as OpenAI's files have them."""
    return call.text


def _check_single(trainer: str, *sides: tuple[Speech, ...]) -> None:
    if any(len(side) != 1 or side[0].role != "assistant" for side in sides):
        raise UnusableError(f"pair: a side has several turns after the common prompt, and {trainer} takes one")


def _text_turn(turn: Speech) -> Row:
    if not isinstance(turn.content, str):
        raise UnusableError("pair: a turn has parts, and axolotl's loader of pairs takes texts")
    return {"role": turn.role, "content": turn.content}
