"""Rows made bad on purpose, so that it is known which are: responses exchanged, cut off, or replaced by an excuse."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from nncift.core.seeds import derive, shuffled
from nncift.data.examples import Example, Examples
from nncift.errors import DataError, UsageError

Kind = Literal["swapped", "truncated", "stub"]

STUBS = (
    "I'm sorry, but I cannot help with that.",
    "Sure! Here is the answer you asked for.",
    "As an assistant I have no opinion on this.",
    "N/A",
)


@dataclass(frozen=True)
class Planted:
    """A pool with rows made bad. examples: in the pool's order. bad: ids of the bad rows, new ones. was: their ids before."""

    examples: Examples
    bad: frozenset[str]
    was: Mapping[str, str]


def swapped(examples: Examples, share: float, seed: int = 0) -> Planted:
    """Exchange the responses of a share of the rows among each other, so that none keeps a response like its own."""
    return plant(examples, share, "swapped", seed)


def plant(examples: Examples, share: float, kind: Kind, seed: int = 0) -> Planted:
    """Make a share of the rows bad, drawn by the seed and the ids alone; a bad row's id is marked with the kind.

    kind: `swapped`, see above; `truncated`: the response ends after a third of its words, rows of one word being left alone;
    `stub`: a phrase that answers nothing stands for the response. Raises UsageError for an unknown kind and a share outside
    (0, 1), DataError where too few rows can be made bad.
    """
    makers: Mapping[str, Callable[[Sequence[Example], int], list[str]]] = {
        "swapped": _exchanged,
        "truncated": _truncated,
        "stub": _stubs,
    }
    if kind not in makers:
        raise UsageError(f"rows are made bad by {', '.join(makers)}, not by {kind!r}")
    if not 0 < share < 1:
        raise UsageError(f"the share of rows to make bad is between 0 and 1, not {share}")
    able = [one.id for one in examples if kind != "truncated" or len(one.response.split()) > 1]
    count = round(share * len(examples))
    if not 1 + (kind == "swapped") <= count <= len(able):
        raise DataError(f"a share of {share} is {count} of {len(examples)} rows, and {len(able)} can be {kind}")
    chosen = [examples.by_id(item) for item in shuffled(able, seed, "planted", kind)[:count]]
    made = {one.id: _with(one, text, kind) for one, text in zip(chosen, makers[kind](chosen, seed), strict=True)}
    return Planted(
        Examples(tuple(made.get(one.id, one) for one in examples), examples.rejected, examples.notes),
        frozenset(one.id for one in made.values()),
        {one.id: before for before, one in made.items()},
    )


def flagged(examples: Examples, column: str, *, bad: object = False) -> frozenset[str]:
    """Return the ids of rows whose `column` holds `bad`. Raises DataError where a row lacks the column."""
    lacking = [one.id for one in examples if column not in one.row]
    if lacking:
        raise DataError(f"{len(lacking)} of {len(examples)} rows have no column {column!r}, the first: {lacking[0]!r}")
    return frozenset(one.id for one in examples if one.row[column] == bad)


def _exchanged(rows: Sequence[Example], seed: int) -> list[str]:
    """Give every row the response of another, none like its own: rows in groups of one response, moved by the largest group."""
    counts = Counter(one.response for one in rows)
    most = max(counts.values())
    if 2 * most > len(rows):
        raise DataError(
            f"{most} of {len(rows)} rows drawn have the same response, so that exchanging them would leave some as they are; "
            "use another seed or share"
        )
    first = {one.response: place for place, one in reversed(list(enumerate(rows)))}
    order = sorted(range(len(rows)), key=lambda place: (first[rows[place].response], place))
    texts = [""] * len(rows)
    for place, to in zip(order, order[most:] + order[:most], strict=True):
        texts[to] = rows[place].response
    return texts


def _truncated(rows: Sequence[Example], seed: int) -> list[str]:
    texts = []
    for one in rows:
        ends = [word.end() for word in re.finditer(r"\S+", one.response)]
        texts.append(one.response[: ends[max(1, len(ends) // 3) - 1]])
    return texts


def _stubs(rows: Sequence[Example], seed: int) -> list[str]:
    return [STUBS[derive(seed, "planted", "stub", one.id) % len(STUBS)] for one in rows]


def _with(example: Example, response: str, kind: str) -> Example:
    """Return a row with another response and a marked id; its original row is written anew, since a run reads it again."""
    name = f"{example.id}#{kind}"
    turns: list[dict[str, object]] = [{"role": one.role, "content": one.content} for one in example.messages]
    for turn, one in zip(turns, example.messages, strict=True):
        if one.role == "assistant" and not one.learned:
            turn["weight"] = 0
    row = {"id": name, "messages": [*turns, {"role": "assistant", "content": response}]}
    return replace(example, id=name, response=response, raw=json.dumps(row, ensure_ascii=False))
