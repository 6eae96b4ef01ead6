"""Instruction examples and collections of them (method.md 1).

An `Example` is one usable row of the user's data. Its id is the row's own `id` where that is present and unique in the
pool, else a hash of the content with an occurrence number; nothing in nncift depends on the position of a row.
`reading.py` makes them from files.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple, overload

from nncift.core.lazily import Lazily
from nncift.data.records import as_row
from nncift.errors import DataError

HASH_DIGITS = 32


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation: `role` is system, user, assistant or tool; `content` is plain text.

    learned: it is learned from as the response is, under `--turns all`.
    """

    role: str
    content: str
    learned: bool = False


class Said(NamedTuple):
    """What a row says: see the fields of `Example`."""

    prompt: str
    response: str
    messages: tuple[Message, ...]


class _Stored:
    """What a row that was read keeps in the place of its texts; nothing in a row that was made from its parts."""

    __slots__ = ("_content", "_json", "_said")
    _json: bytes
    _content: bytes | None
    _said: Callable[[bytes], Said]


@dataclass(frozen=True, slots=True)
class Example(_Stored):
    """One instruction example.

    id: unique in its collection. prompt: everything before the response, as plain text. response: what the model should
    learn to say (the last assistant turn). messages: the turns before the response, never empty, ending with the turn
    that the response answers. source: name of the file or data set. line: 1-based line or record number there.
    raw: the original row as JSON text without line breaks, byte for byte where the input was JSON lines.
    """

    id: str
    prompt: str
    response: str
    messages: tuple[Message, ...]
    source: str
    line: int
    raw: str

    @classmethod
    def stored(
        cls, name: str, source: str, line: int, raw: bytes, content: bytes | None, said: Callable[[bytes], Said]
    ) -> Example:
        """Return a row that holds its JSON text alone and reads its texts from there each time they are asked for.

        A million rows take half the memory so. raw: UTF-8. content: the 16 bytes of the content hash; None where the id begins
        with it. said: reads the JSON text, always alike.
        """
        made = object.__new__(cls)
        values = {"id": name, "source": source, "line": line, "_json": raw, "_content": content, "_said": said}
        for field_name, value in values.items():
            object.__setattr__(made, field_name, value)
        return made

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Return a text that is not kept: Python asks here for fields that were never set."""
            if name == "raw":
                return self._json.decode("utf-8")
            if name in Said._fields:
                return getattr(self._said(self._json), name)
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def text(self) -> str:
        """Prompt and response as one text: what sentence encoders read (method.md 2)."""
        return f"{self.prompt}\n\n{self.response}"

    @property
    def content_hash(self) -> str:
        """Hash of what models see and learn from of this row: 32 hex digits, whatever file and key order."""
        if not hasattr(self, "_json"):
            return content_hash(self.messages, self.response)
        return self.id[:HASH_DIGITS] if self._content is None else self._content.hex()

    @property
    def learned_text(self) -> str:
        """All responses that are learned from, as one text."""
        return "\n\n".join([*(turn.content for turn in self.messages if turn.learned), self.response])

    def with_last_alone(self) -> Example:
        """Return the row with its last response as the only one that is learned from: what comes before is asked."""
        if not any(turn.learned for turn in self.messages):
            return self
        return replace(self, messages=tuple(replace(turn, learned=False) for turn in self.messages))

    @property
    def row(self) -> dict[str, Any]:
        """The original row, parsed."""
        parsed = as_row(json.loads(self.raw))
        return {} if parsed is None else parsed


@dataclass(frozen=True, slots=True)
class Rejection:
    """A row that cannot be used, and why: one line of text, `kind` or `kind: what was found`."""

    source: str
    line: int
    reason: str

    @property
    def kind(self) -> str:
        """The kind of defect, without what was found in this row: what counts are made by."""
        return self.reason.partition(":")[0]


@dataclass(frozen=True)
class Examples(Sequence[Example]):
    """An ordered collection of examples with unique ids, and the rows that were rejected while reading it.

    notes: plain sentences about the reading that the user should know (they become warnings of the run).
    Raises DataError when two examples have the same id.
    """

    items: tuple[Example, ...]
    rejected: tuple[Rejection, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if len(set(self.ids)) < len(self.ids):
            twice = next(example_id for example_id, count in Counter(self.ids).items() if count > 1)
            raise DataError(f"the id {twice[:60]!r} names more than one example; ids in a collection must be unique")

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """Ids in order."""
        return tuple(example.id for example in self.items)

    @cached_property
    def _by_id(self) -> dict[str, Example]:
        return {example.id: example for example in self.items}

    @property
    def texts(self) -> Sequence[str]:
        """What sentence encoders read of every example, made when it is asked for."""
        return Lazily(attrgetter("text"), self.items)

    def by_id(self, example_id: str) -> Example:
        """Return the example with this id; raises KeyError."""
        return self._by_id[example_id]

    def subset(self, ids: Iterable[str]) -> Examples:
        """Return the examples with these ids, in the order given, without rejections and notes; raises KeyError."""
        return Examples(tuple(self._by_id[example_id] for example_id in ids))

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Examples: ...
    def __getitem__(self, index: int | slice) -> Example | Examples:
        if isinstance(index, slice):
            return Examples(self.items[index])
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Example]:
        return iter(self.items)


def content_hash(messages: Iterable[Message], response: str) -> str:
    """Hash turns, which of them are learned from, and the response to 32 hex digits."""
    return hashlib.sha256(content_text(messages, response).encode("ascii")).hexdigest()[:HASH_DIGITS]


def content_text(messages: Iterable[Message], response: str) -> str:
    """Return turns, which of them are learned from, and the response as one text that nothing else has."""
    turns = [[turn.role, turn.content, *([True] if turn.learned else [])] for turn in messages]
    return json.dumps([*turns, response], ensure_ascii=True)
