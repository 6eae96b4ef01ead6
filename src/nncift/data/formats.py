"""The row formats and what each row says: turns, prompt and response.

| format | columns | meaning |
|---|---|---|
| `preference` | `chosen`, `rejected`, with `prompt`, `instruction`, `messages` or the prompt in both sides | a pair of answers |
| `messages` | `messages` | turns of `role` and `content`, with optional `tool_calls` |
| `sharegpt` | `conversations` | turns of `from` and `value`, or texts of user and assistant by turns |
| `alpaca` | `instruction`, `input`, `output`, `history` | instruction, optional input and earlier exchanges, response |
| `prompt` | `prompt`, `completion` (or `response`), `history` | text, or lists of turns |

A row has the first format of this table whose required columns it has with a value; a column of nulls, which table
formats fill in, counts as absent. `system` may stand beside any of them. The response is the last assistant turn that is learned
from (`turns.mask_of`), of a pair that of the chosen side.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from nncift.config import Turns
from nncift.data.examples import Message, Said
from nncift.data.layout import Layout
from nncift.data.records import Row, as_row
from nncift.data.row_turns import row_turns
from nncift.data.turns import Turn, UnusableError, roles_said, turn_of

MOST_TEXT = 1 << 22
"""Characters of a row's texts, a million tokens: more is no example, and takes tokenizers gigabytes."""

LEAST_ECHO = 20
"""Characters of a prompt from which on a response that begins with it is taken to repeat it."""

_SCORED: dict[Turns, str] = {
    "last": "the last that is learned from is scored, trained on and exported; with --turns all, every one.",
    "all": "every one is scored, trained on and exported; with --turns last, the last that is learned from.",
}


def scored(turns: Turns) -> str:
    """Return the rule for rows of several turns, which every command says in the same words."""
    return _SCORED[turns]


@dataclass(frozen=True, slots=True)
class Dialogue:
    """What a usable row says, and what of it is not used.

    unused_turns: turns after the response. masked_last: turns after it that are masked, so that it is not the last of the
    assistant's. media_parts: parts of turns that are not text. numbers: texts that were numbers. reasoning: turns with a
    `reasoning_content`, which is not read. pair: the row has a rejected side. responses: turns that are learned from, of which
    the last is the response. echoes: the response begins with the text of the prompt. ignored: names of columns that would
    change what is asked or learned and do not (`row_turns.UNREAD`).
    """

    messages: tuple[Message, ...]
    response: str
    unused_turns: int
    media_parts: int
    ignored: tuple[str, ...]
    masked_last: int = 0
    numbers: int = 0
    reasoning: int = 0
    pair: bool = False
    responses: int = 1
    echoes: bool = False


def parse(row: Row, layout: Layout) -> Dialogue:
    """Read one row; raises UnusableError with the reason where it cannot be used."""
    found = row_turns(row, layout)
    turns = [turn_of(item, where, layout.roles) for item, where in zip(found.items, found.where, strict=True)]
    last = last_learned(turns)
    # A blank system turn says nothing; without it the row equals one that has no system turn.
    before = [turn for turn in turns[:last] if turn.role != "system" or turn.text.strip()]
    if not any(turn.role in ("user", "tool") and turn.text.strip() for turn in before):
        raise UnusableError("empty prompt: no user turn with text comes before the response")
    used = [*before, turns[last]]
    if (size := sum(len(turn.text) for turn in used)) > MOST_TEXT:
        raise UnusableError(f"too long: its texts have {size:,} characters, at most {MOST_TEXT:,}")
    for turn in used:
        _check_characters(turn)
    messages = tuple(_messages(before))
    learned = sum(message.learned for message in messages)
    if learned and layout.turns == "last":
        messages = tuple(replace(message, learned=False) for message in messages)
    return Dialogue(
        messages=messages,
        response=turns[last].text,
        unused_turns=len(turns) - last - 1,
        media_parts=sum([turn.media_parts for turn in used]),
        ignored=found.ignored,
        masked_last=sum([turn.masked for turn in turns[last + 1 :]]),
        numbers=found.numbers + sum([turn.number for turn in used]),
        reasoning=sum([turn.reasoning for turn in used]),
        pair=found.rejected is not None,
        responses=learned + 1,
        echoes=_echoes(before, turns[last].text),
    )


def _echoes(before: Iterable[Turn], response: str) -> bool:
    """Tell a response that begins with all that was asked, more than a few words: some files keep both in one column."""
    asked = "\n".join(turn.text for turn in before if turn.role != "system").strip()
    return len(asked) >= LEAST_ECHO and response.lstrip().startswith(asked)


def _messages(turns: Iterable[Turn]) -> Iterator[Message]:
    """Yield the turns before the response. A turn is learned from that answers something, says something, and is not masked."""
    asked = False
    for turn in turns:
        learned = asked and turn.role == "assistant" and not turn.masked and turn.speaks
        yield Message(turn.role, turn.text, learned)
        asked = asked or (turn.role in ("user", "tool") and bool(turn.text.strip()))


def last_learned(turns: list[Turn]) -> int:
    """Return the place of the response: the last assistant turn that is learned from. Raises UnusableError where none can be."""
    spoken = [place for place, turn in enumerate(turns) if turn.role == "assistant"]
    if not spoken:
        raise UnusableError("no assistant turn: " + roles_said(turn.role for turn in turns))
    learned = [place for place in spoken if not turns[place].masked]
    if not learned:
        raise UnusableError("no turn to learn from: every assistant turn is masked (weight, train or loss)")
    last = turns[learned[-1]]
    if not last.speaks:
        alone = " beside its reasoning_content" if last.reasoning else ""
        raise UnusableError(f"empty response: the last assistant turn has no text{alone}")
    return learned[-1]


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
            row = as_row(json.loads(raw.decode("utf-8")))
            dialogue = parse({} if row is None else row, self._layout)
            said = Said(prompt_text(dialogue.messages), dialogue.response, dialogue.messages)
            self._last = raw, said
        return said


MOST_VALUES = 50
LONGEST = 60
CONTENT = frozenset(
    "messages conversations instruction input output history prompt completion response system id tools images videos "
    "audios text chosen rejected".split()
)
"""Columns that are what a row says, or its name."""


class LabelColumns:
    """Counts the values of every column that may be a label; a column with too many or too long values drops out."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = {}
        self._out: set[str] = set(CONTENT)
        self._rows = 0

    def add(self, row: dict[str, Any]) -> None:
        """Count one row."""
        self._rows += 1
        for column, value in row.items():
            if column in self._out or value is None:
                continue
            text = label(value)
            if text is None:
                self._drop(column)
                continue
            counts = self._counts.setdefault(column, Counter())
            counts[text] += 1
            if len(counts) > MOST_VALUES:
                self._drop(column)

    def counts(self) -> dict[str, dict[str, int]]:
        """Return column to value to rows, for columns with at least two values that repeat."""
        return {
            column: dict(counts.most_common())
            for column, counts in sorted(self._counts.items())
            if 2 <= len(counts) <= max(2, self._rows // 2)
        }

    def _drop(self, column: str) -> None:
        self._out.add(column)
        self._counts.pop(column, None)


def label(value: Any) -> str | None:
    """Return a value as a label, None where it is none: a long text, an object, a fraction."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    return value.strip() if isinstance(value, str) and value.strip() and len(value) <= LONGEST else None
