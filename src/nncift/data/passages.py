"""Words of texts, and where parts of them stand in other texts: many rows at a time, by hashes that are checked word by word."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
import numpy.typing as npt

from nncift.core.arrays import Places
from nncift.data.examples import Example

Hashes = npt.NDArray[np.uint64]

# Scripts whose words stand without spaces between them: Thai to Burmese, Khmer, and those of East Asia but Korean.
_ALONE = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fff\u3040-\u312f\u31a0-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_SIGNS = r"\s!-/:-@\[-`{-~\u00a1\u00a7\u00ab\u00b6\u00b7\u00bb\u00bf\u0964\u0965\u2000-\u206f\u3000-\u303f"
_WORD = re.compile(rf"[{_ALONE}]|[^{_SIGNS}{_ALONE}]+|[+/=<>^%]|-(?=\s?\d)|(?<=[\w)\]])\*(?=[\w(\[])|(?<= )\*(?= )")
_CALCULATE = frozenset("+/=<>^%-*")
_BASE, _MODULUS = 0x9E3779B97F4A7C15, 1 << 64
_TABLE_BITS = 24


def words_of(text: str) -> list[str]:
    """Return the words of a text in small letters, without punctuation; signs that calculate are words.

    Characters of scripts without spaces are words each. A text without words is as it is.
    """
    plain = text if text.isascii() else unicodedata.normalize("NFKC", text)
    return _WORD.findall(plain.casefold()) or plain.split()


@dataclass(frozen=True)
class Words:
    """The words of a row but those of system turns, of its prompt first. asked: how many words its prompt has."""

    words: list[str]
    asked: int

    @classmethod
    def of(cls, row: Example) -> Words:
        """Return the words of a row."""
        prompt = words_of("\n".join(turn.content for turn in row.messages if turn.role != "system"))
        # A word is held once, however often it comes.
        return cls(list(map(sys.intern, (*prompt, *words_of(row.response)))), len(prompt))

    @property
    def spoken(self) -> Words:
        """The words without signs that calculate."""
        if _CALCULATE.isdisjoint(self.words):
            return self
        prompt, response = (
            [word for word in part if word not in _CALCULATE]
            for part in (self.words[: self.asked], self.words[self.asked :])
        )
        return Words(prompt + response, len(prompt))


class Texts:
    """Words of rows that are looked at together."""

    def __init__(self, texts: Sequence[Words]) -> None:
        self.texts = texts
        lengths = np.array([len(text.words) for text in texts], np.intp)
        self._starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.intp)
        self._row_of = np.repeat(np.arange(len(lengths)), lengths)

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def _numbers(self) -> Hashes:
        words = chain.from_iterable(text.words for text in self.texts)
        # Python's own hashes differ from process to process; what is found does not, since words are compared in the end.
        return np.fromiter(map(hash, words), np.int64, int(self._starts[-1])).view(np.uint64)

    def grams(self, length: int) -> tuple[Hashes, Places, Places]:
        """Return all parts of so many words: their hashes, the row of each, and the word of that row that it begins with."""
        hashes = _rolled(self._numbers, length)
        rows = self._row_of[: len(hashes)]
        whole = rows == self._row_of[length - 1 :]
        at = np.flatnonzero(whole)
        return hashes[at], rows[at], at - self._starts[rows[at]]


class Batch:
    """Rows, their words, and their words without signs that calculate: formulas have many of them in a row."""

    def __init__(self, rows: Iterable[Example]) -> None:
        self.rows = tuple(rows)
        words = [Words.of(row) for row in self.rows]
        self.words, self.spoken = Texts(words), Texts([text.spoken for text in words])


def _rolled(numbers: Hashes, length: int) -> Hashes:
    """Return the hash of every `length` numbers in a row: their polynomial modulo 2 ** 64, put together by doubling."""
    if len(numbers) < length:
        return numbers[:0]
    found, size = numbers, 1
    for bit in bin(length)[3:]:
        found, size = found[:-size] * np.uint64(pow(_BASE, size, _MODULUS)) + found[size:], 2 * size
        if bit == "1":
            found, size = found[:-1] * np.uint64(_BASE) + numbers[size:], size + 1
    return found


class Lookup:
    """A set of hashes, found among many others by a table of their first bits first."""

    def __init__(self, hashes: Hashes) -> None:
        self.keys = np.unique(hashes)
        self._table = np.zeros(1 << _TABLE_BITS, bool)
        self._table[self._slot(self.keys)] = True

    def find(self, hashes: Hashes) -> tuple[Places, Places]:
        """Return which of some hashes are in the set, and which of its keys each of those is."""
        at = np.flatnonzero(self._table[self._slot(hashes)])
        keys = np.searchsorted(self.keys, hashes[at])
        keys[keys == len(self.keys)] = 0
        same = self.keys[keys] == hashes[at] if len(self.keys) else np.zeros(len(at), bool)
        return at[same], keys[same]

    @staticmethod
    def _slot(hashes: Hashes) -> Hashes:
        return hashes >> np.uint64(64 - _TABLE_BITS)


class Passages:
    """Passages of so many words in some rows, and where they stand.

    most: rows that may share a passage; ignored: how many passages more rows share. count: `(rows,)`, passages of each row.
    """

    def __init__(self, length: int, texts: Texts, rows: Sequence[int] | None, most: int) -> None:
        """Take all parts of this length (rows None), or the first of some rows."""
        self.length, self._texts = length, texts.texts
        hashes, at_row, at_word = texts.grams(length)
        if rows is not None:
            wanted = np.zeros(len(texts), bool)
            wanted[np.asarray(rows, np.intp)] = True
            first = wanted[at_row] & (at_word == 0)
            hashes, at_row, at_word = hashes[first], at_row[first], at_word[first]
        # Of a passage that a row repeats, the first counts.
        order = np.lexsort((at_word, at_row, hashes))
        hashes, at_row, at_word = hashes[order], at_row[order], at_word[order]
        again = np.zeros(len(hashes), bool)
        again[1:] = (hashes[1:] == hashes[:-1]) & (at_row[1:] == at_row[:-1])
        hashes, at_row, at_word = hashes[~again], at_row[~again], at_word[~again]
        _, which, sharing = np.unique(hashes, return_inverse=True, return_counts=True)
        few = sharing[which] <= most
        self.ignored = int((sharing > most).sum())
        hashes, self._row, self._word = hashes[few], at_row[few], at_word[few]
        self._lookup = Lookup(hashes)
        self._first = np.append(np.searchsorted(hashes, self._lookup.keys), len(hashes))
        self.count = np.bincount(self._row, minlength=len(texts))

    def shared(self, texts: Texts) -> Iterator[tuple[int, int, int]]:
        """Yield which of some texts has a passage, which of these rows has it too, and the passage's number."""
        hashes, rows, words = texts.grams(self.length)
        at, keys = self._lookup.find(hashes)
        for row, word, key in zip(rows[at].tolist(), words[at].tolist(), keys.tolist(), strict=True):
            part = texts.texts[row].words[word : word + self.length]
            for entry in range(self._first[key], self._first[key + 1]):
                mine, begin = int(self._row[entry]), int(self._word[entry])
                if self._texts[mine].words[begin : begin + self.length] == part:
                    yield row, mine, key


class Familiar:
    """Tells rows most of whose different parts stand in some rows: no others can be near copies of them."""

    def __init__(self, length: int, texts: Texts) -> None:
        self._length, self._lookup = length, Lookup(texts.grams(length)[0])

    def rows(self, texts: Texts, share: float) -> list[int]:
        """Return those of some texts at least this share of whose different parts are known."""
        hashes, rows, _ = texts.grams(self._length)
        known = np.zeros(len(hashes), bool)
        known[self._lookup.find(hashes)[0]] = True
        # Equal parts of one row count once.
        _, first = np.unique(hashes ^ (rows.astype(np.uint64) * np.uint64(_BASE)), return_index=True)
        all_parts = np.bincount(rows[first], minlength=len(texts))
        known_parts = np.bincount(rows[first], weights=known[first], minlength=len(texts))
        return [int(row) for row in np.flatnonzero((all_parts > 0) & (known_parts >= share * all_parts - 1e-9))]
