"""Rows made bad on purpose, so that it is known which are: other responses, shorter ones, of another language, copies of rows."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

from nncift.core.seeds import derive, shuffled
from nncift.data.examples import Example, Examples
from nncift.errors import DataError, UsageError

Kind = Literal["swapped", "truncated", "stub", "language", "duplicated"]

KINDS: Mapping[str, str] = {
    "swapped": "responses exchanged",
    "truncated": "responses cut off",
    "stub": "responses replaced by an excuse",
    "language": "responses in another language",
    "duplicated": "rows that repeat another",
}
"""What is done to rows, by kind, in the order in which `plant_kinds` does it: copies last, of rows that are left as they are."""

STUBS = (
    "I'm sorry, but I cannot help with that.",
    "Sure! Here is the answer you asked for.",
    "As an assistant I have no opinion on this.",
    "N/A",
)


LANGUAGES = (
    (
        "Das hängt davon ab, was Sie damit vorhaben.",
        "Zuerst sollte man die wichtigsten Punkte sammeln und ordnen.",
        "Viele Menschen machen dabei denselben Fehler.",
        "Am Ende lohnt es sich, alles noch einmal zu prüfen.",
        "Ein gutes Beispiel dafür ist die Arbeit im Garten.",
        "Die Antwort lautet: ja, aber nicht immer.",
    ),
    (
        "Cela dépend de ce que vous voulez en faire.",
        "Il faut d'abord rassembler les idées principales.",
        "Beaucoup de gens se trompent sur ce point.",
        "À la fin, il vaut mieux tout relire avec attention.",
        "La cuisine en donne un bon exemple.",
        "La réponse est oui, mais pas toujours.",
    ),
    (
        "Depende de lo que usted quiera hacer.",
        "Primero hay que reunir las ideas más importantes.",
        "Mucha gente comete el mismo error.",
        "Al final conviene revisarlo todo con calma.",
        "Un buen ejemplo es el trabajo en el campo.",
        "La respuesta es que sí, pero no siempre.",
    ),
)


@dataclass(frozen=True)
class Planted:
    """A pool with rows made bad. examples: in the pool's order. bad: ids of the bad rows, new ones. was: their ids before.

    copied: ids of the rows that duplicates repeat, which are neither bad nor like the others.
    """

    examples: Examples
    bad: frozenset[str]
    was: Mapping[str, str]
    copied: frozenset[str] = frozenset()


def swapped(examples: Examples, share: float, seed: int = 0) -> Planted:
    """Exchange the responses of a share of the rows among each other, so that none keeps a response like its own."""
    return plant(examples, share, "swapped", seed)


def plant(examples: Examples, share: float, kind: Kind, seed: int = 0, spared: Collection[str] = ()) -> Planted:
    """Make a share of the rows bad, drawn by the seed and the ids alone; a bad row's id is marked with the kind.

    kind: `swapped`, see above; `truncated`: the response ends after a third of its words, rows of one word being left alone;
    `stub`: a phrase that answers nothing stands for the response; `language`: sentences of German, French or Spanish do, about
    as long as it was; `duplicated`: the prompt and response of another row stand for both. spared: ids of rows that stay, and
    that nothing is copied from. Raises UsageError for an unknown kind and a share outside (0, 1), DataError where too few rows
    can be made bad.
    """
    if kind not in KINDS:
        raise UsageError(f"rows are made bad by {', '.join(KINDS)}, not by {kind!r}")
    if not 0 < share < 1:
        raise UsageError(f"the share of rows to make bad is between 0 and 1, not {share}")
    free = [one.id for one in examples if one.id not in spared]
    able = [item for item in free if kind != "truncated" or len(examples.by_id(item).response.split()) > 1]
    count = round(share * len(examples))
    if not 1 + (kind == "swapped") <= count <= len(able) - (kind == "duplicated"):
        raise DataError(f"a share of {share} is {count} of {len(examples)} rows, and {len(able)} can be {kind}")
    order = shuffled(able, seed, "planted", kind)
    chosen = [examples.by_id(item) for item in order[:count]]
    copied: list[str] = []
    if kind == "duplicated":
        copied = [order[count + nth % (len(order) - count)] for nth in range(count)]
        made = [_with(one, examples.by_id(other), None, kind) for one, other in zip(chosen, copied, strict=True)]
    else:
        texts = _MAKERS[kind](chosen, seed)
        made = [_with(one, one, text, kind) for one, text in zip(chosen, texts, strict=True)]
    by_id = {old.id: new for old, new in zip(chosen, made, strict=True)}
    return Planted(
        Examples(tuple(by_id.get(one.id, one) for one in examples), examples.rejected, examples.notes),
        frozenset(one.id for one in made),
        {one.id: before for before, one in by_id.items()},
        frozenset(copied),
    )


def plant_kinds(examples: Examples, shares: Mapping[str, float], seed: int = 0) -> dict[str, Planted]:
    """Make rows of several kinds bad in one pool, no row twice; each result has the pool as it was then, the last one all.

    shares: of all rows, by kind. Raises the errors of `plant`.
    """
    odd = [kind for kind in shares if kind not in KINDS]
    if odd or not shares:
        raise UsageError(f"rows are made bad by {', '.join(KINDS)}, not by {odd[0] if odd else 'nothing'!r}")
    found: dict[str, Planted] = {}
    spared: frozenset[str] = frozenset()
    for kind in [kind for kind in KINDS if kind in shares]:
        found[kind] = plant(examples, shares[kind], cast(Kind, kind), seed, spared)
        examples = found[kind].examples
        spared |= found[kind].bad
    return found


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


def _foreign(rows: Sequence[Example], seed: int) -> list[str]:
    """Return sentences of one other language for each row, of about the length of its response."""
    texts = []
    for one in rows:
        language = LANGUAGES[derive(seed, "planted", "language", one.id) % len(LANGUAGES)]
        order = shuffled(language, seed, "planted", "language", one.id)
        text = ""
        for sentence in itertools.cycle(order):
            if text and len(text) + len(sentence) / 2 > len(one.response):
                break
            text = f"{text} {sentence}".strip()
        texts.append(text)
    return texts


_MAKERS: Mapping[str, Callable[[Sequence[Example], int], list[str]]] = {
    "swapped": _exchanged,
    "truncated": _truncated,
    "stub": _stubs,
    "language": _foreign,
}


def _with(example: Example, content: Example, response: str | None, kind: str) -> Example:
    """Return a row in the place of another with a marked id; its original row is written anew, since a run reads it again.

    content: whose prompt it has. response: None for that row's own.
    """
    name = f"{example.id}#{kind}"
    answer = content.response if response is None else response
    turns: list[dict[str, object]] = [{"role": one.role, "content": one.content} for one in content.messages]
    for turn, one in zip(turns, content.messages, strict=True):
        if one.role == "assistant" and not one.learned:
            turn["weight"] = 0
    row = {"id": name, "messages": [*turns, {"role": "assistant", "content": answer}]}
    raw = json.dumps(row, ensure_ascii=False)
    return replace(content, id=name, response=answer, source=example.source, line=example.line, raw=raw)
