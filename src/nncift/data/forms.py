"""Which form of a trainer suits all rows of one file, and what the trainer must be told for it (docs/export.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from nncift.data import openai_rows, trainers
from nncift.data import preference_pairs as pairs
from nncift.data.conversation import Conversation
from nncift.data.records import Row
from nncift.data.turns import UnusableError


@dataclass(frozen=True)
class Form:
    """How a conversation becomes a row; notes: sentences for the user; options: settings of the trainer, by its own names."""

    row: Callable[[Conversation], Row]
    notes: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


def form_of(conversations: Sequence[Conversation], to: str, *, last: bool, parts: bool, pairs: bool) -> Form:
    """Return the form for all rows of a file. parts: some contents are lists. pairs: the rows are pairs of answers."""
    if pairs:
        return _of_pairs(conversations, to, parts=parts)
    makers = {"trl": _trl, "axolotl": _axolotl, "llamafactory": _llamafactory, "openai": _openai}
    return makers[to](conversations, last, parts)


def _of_pairs(conversations: Sequence[Conversation], to: str, *, parts: bool) -> Form:
    if to == "trl":
        return Form(lambda talk: pairs.trl(talk, parts=parts), ("The rows are pairs: train with DPOTrainer.",))
    if to == "axolotl":
        fields = {"field_messages": "messages", "field_chosen": "chosen", "field_rejected": "rejected"}
        note = "The rows are pairs. In the axolotl config: `rl: dpo`, `type: chat_template.default`."
        return Form(pairs.axolotl, (note,), fields)
    if to == "llamafactory":
        return Form(
            pairs.llamafactory, ("The rows are pairs: set `stage: dpo`; `ranking` is set in dataset_info.json.",)
        )
    note = "The rows are pairs: choose the method `dpo` when the job is made."
    return Form(lambda talk: openai_rows.openai(talk, last=False), (note, *_few(len(conversations))))


def _trl(conversations: Sequence[Conversation], last: bool, parts: bool) -> Form:
    several = sum(talk.responses > 1 for talk in conversations)
    masked = sum(talk.masked for talk in conversations)
    if last or not several:
        which = f"the last response ({_rows(several)} have several)" if several else "the response"
        note = f"Rows are `prompt` and `completion`: TRL learns from {which} alone, with any chat template."
        return Form(lambda talk: trainers.trl(talk, form="last", parts=parts), (note,))
    form = "learned" if masked else "messages"
    notes = [
        "Set `assistant_only_loss=True` in SFTConfig, so that only assistant turns are learned from; a chat template needs "
        "`{% generation %}` marks for it, and where TRL finds none and has none of its own it refuses: --turns last does without."
    ]
    if masked:
        notes.append(f"{_rows(masked)} have masked turns: they stand in `prompt`, and TRL learns from `completion`.")
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
            f"{_rows(several or masked)} have several responses: set `mask_history: true`, so that only the last is learned from."
        )
    elif masked:
        notes.append(
            "LLaMA-Factory learns from every response or, with `mask_history`, from the last: rows with masked turns beside rows "
            "with several responses are left out; --turns last keeps them."
        )
    if any(turn.extra.get("reasoning_content") for talk in conversations for turn in talk.turns):
        notes.append(
            "`reasoning_content` stands as <think>...</think> before the text, where its templates look for it."
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
    if any(turn.extra.get("reasoning_content") for talk in conversations for turn in talk.turns):
        notes.append("`reasoning_content` is left away: OpenAI takes none.")
    return Form(lambda talk: openai_rows.openai(talk, last=last), tuple(notes))


def _few(rows: int) -> tuple[str, ...]:
    return (f"OpenAI asks for at least {openai_rows.FEWEST} rows.",) if rows < openai_rows.FEWEST else ()


def _earlier_masked(talk: Conversation) -> bool:
    return any(turn.role == "assistant" and not turn.learned for turn in talk.turns)


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"
