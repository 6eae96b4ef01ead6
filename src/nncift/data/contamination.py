"""Rows of a pool that test rows are in: the same text, shared passages, near copies, and texts of like meaning.

| kind | a row of the pool and a test row | score |
|---|---|---|
| `exact` | have the same words, as a whole or in the prompt | 1 |
| `near_copy` | have nearly the same sets of three words in a row | Jaccard similarity |
| `overlap` | share 13 words in a row | share of the test row's passages that the row holds |
| `similar` | have embeddings that lie close together | cosine |

Words are what is left of a text without case, punctuation and system turns (`passages.words_of`); signs that calculate tell texts
apart, and are no words of a passage. A test row or prompt of 8 to 12 words is one passage; a shorter one is found by `exact` and
`near_copy` alone. Passages and prompts that more than ten test
rows share, such as a template's, are ignored. Near copies are looked for by MinHash, and their similarity is computed exactly.

The test rows are held in memory; of the pool, some thousand rows at a time, and those that are found.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from nncift.core.arrays import Floats
from nncift.core.result_types import JsonObject
from nncift.core.texts import rows_of
from nncift.data.examples import Example, Examples
from nncift.data.passages import Batch, Familiar, Passages, Words
from nncift.errors import UsageError

Embed = Callable[[Sequence[str]], Floats]
Best = dict[int, tuple[float, int]]
"""Of each row of a batch, by its place, the score and the test row of its best hit."""

KINDS = ("exact", "near_copy", "overlap", "similar")
"""The strongest first."""

CONTAMINATED = "in the test rows"
"""The kind of the rejections of rows that are left out."""

SHINGLE = 3
"""Words in a row of the parts that near copies are compared by."""

SHORTEST_PASSAGE = 8
SHORTEST_PROMPT = 5
"""Words of a prompt that is the same by more than chance, at least."""

MOST_SHARED = 10
"""Test rows that share a passage or a prompt at most, before it counts as a template's."""

BATCH = 2048
"""Rows of the pool that are looked at together."""

AT_ONCE = 256
"""Rows whose embeddings are compared with those of all test rows together."""

PERMUTATIONS, BANDS = 128, 32
"""Of MinHash: rows of a Jaccard similarity of 0.7 meet in a band with a chance of 99.98 %, of 0.5 of 87 %."""


@dataclass(frozen=True)
class Thresholds:
    """From where on rows are hits. words: in a row, of a passage. near_copy: Jaccard similarity. similar: cosine.

    overlap: share of the test row's passages, by default one passage will do. Raises UsageError for values that mean nothing.
    """

    words: int = 13
    overlap: float = 0.0
    near_copy: float = 0.7
    similar: float = 0.95

    def __post_init__(self) -> None:
        if self.words < SHORTEST_PASSAGE:
            raise UsageError(f"a passage was given as {self.words} words; expected at least {SHORTEST_PASSAGE}")
        for name in ("overlap", "near_copy", "similar"):
            if not (0 if name == "overlap" else 1e-9) <= getattr(self, name) <= 1:
                raise UsageError(f"{name} was given as {getattr(self, name)}; expected a number above 0, and at most 1")


@dataclass(frozen=True)
class Hit:
    """A row of the pool, and the test row that it is or holds. part: `prompt` where only the prompts are the same, else `row`."""

    kind: str
    score: float
    row: Example
    test: Example
    part: str = "row"

    def to_json(self) -> JsonObject:
        """Return kind and score, and of both rows id, source, line and text."""
        sides = {
            name: {"id": row.id, "source": row.source, "line": row.line, "text": row.text}
            for name, row in (("row", self.row), ("test", self.test))
        }
        return {"kind": self.kind, "score": round(self.score, 4), "part": self.part, **sides}

    def reason(self) -> str:
        """Return why the row is left out, in one line."""
        part = " by its prompt" if self.part == "prompt" else ""
        return f"{CONTAMINATED}: {self.kind} ({self.score:.2f}){part}, {self.test.id} of {self.test.source}"


@dataclass(frozen=True)
class Contamination:
    """What was found. rows, tests: how many were compared. hits: in the order of the pool, of each row at most one of a kind."""

    rows: int
    tests: int
    hits: tuple[Hit, ...]
    notes: tuple[str, ...] = ()

    @property
    def strongest(self) -> dict[str, Hit]:
        """The strongest hit of every row that test rows are in, by the row's id."""
        found: dict[str, Hit] = {}
        for hit in sorted(self.hits, key=lambda hit: KINDS.index(hit.kind)):
            found.setdefault(hit.row.id, hit)
        return found

    @property
    def counts(self) -> dict[str, int]:
        """Hits by kind."""
        found = Counter(hit.kind for hit in self.hits)
        return {kind: found[kind] for kind in KINDS}

    def to_json(self) -> JsonObject:
        """Return counts and hits."""
        return {
            "rows": self.rows,
            "tests": self.tests,
            "contaminated": len(self.strongest),
            "by_kind": self.counts,
            "hits": [hit.to_json() for hit in self.hits],
            "notes": list(self.notes),
        }


def contamination(
    pool: Iterable[Example],
    tests: Sequence[Example],
    thresholds: Thresholds | None = None,
    *,
    embed: Embed | None = None,
    advance: Callable[[int], None] = lambda done: None,
) -> Contamination:
    """Return which rows of a pool test rows are in. The pool is gone through once.

    embed: gives vectors `(n, dim)` of unit norm for texts; None = meaning is not compared. advance: hears of rows that are done.
    Raises UsageError without test rows, and what `embed` raises.
    """
    if not len(tests):
        raise UsageError("there are no test rows to compare with")
    known = _TestRows(tests, thresholds or Thresholds(), embed)
    hits: list[Hit] = []
    rows, left = 0, iter(pool)
    while some := list(islice(left, BATCH)):
        hits += known.hits(Batch(some))
        rows += len(some)
        advance(len(some))
    note = f"{known.ignored:,} passages or prompts that more than {MOST_SHARED} test rows share were ignored."
    return Contamination(rows, len(tests), tuple(hits), (*_unread(tests), *((note,) if known.ignored else ())))


def _unread(tests: Sequence[Example]) -> tuple[str, ...]:
    """Return a sentence on the test rows that could not be read: a pool may hold them, and nobody has looked."""
    rejected = tests.rejected if isinstance(tests, Examples) else ()
    if not rejected:
        return ()
    first = rejected[0]
    return (
        f"Test rows that cannot be read were not looked for, {rows_of(len(rejected))}; the first: {first.source} line "
        f"{first.line}, {first.reason}.",
    )


def near_copies(pool: Iterable[Example], tests: Sequence[Example]) -> Iterator[tuple[Example, Example]]:
    """Yield pairs of a row of a pool and a test row that have the same words, or nearly so."""
    known = _TestRows(tests, Thresholds(), None)
    left = iter(pool)
    while some := list(islice(left, BATCH)):
        yield from known.copies(Batch(some))


def shingles_of(words: Sequence[str]) -> frozenset[tuple[str, ...]]:
    """Return the different three words in a row of a text; none of a text of fewer."""
    return frozenset(tuple(words[at : at + SHINGLE]) for at in range(len(words) - SHINGLE + 1))


def jaccard(one: frozenset[Any], other: frozenset[Any]) -> float:
    """Return how many elements two sets share, of all that they have together; 0 where both are empty."""
    return len(one & other) / max(1, len(one | other))


class _TestRows:
    """Test rows as they are looked up."""

    def __init__(self, tests: Sequence[Example], thresholds: Thresholds, embed: Embed | None) -> None:
        self._limits, self._embed = thresholds, embed
        self._batch = Batch(tests)
        texts = self._batch.words.texts
        self._whole = {words: places[0] for words, places in _places(text.words for text in texts).items()}
        prompts = _places(text.words[: text.asked] for text in texts)
        known = {words: places for words, places in prompts.items() if len(words) >= SHORTEST_PROMPT}
        self._prompts = {words: places[0] for words, places in known.items() if len(places) <= MOST_SHARED}
        self._shared_prompts = len(known) - len(self._prompts)
        self._familiar = Familiar(SHINGLE, self._batch.words)
        self._vectors = None if embed is None else embed([row.text for row in tests])

    @cached_property
    def _passages(self) -> list[Passages]:
        spoken = self._batch.spoken
        return [
            Passages(length, spoken, rows, MOST_SHARED)
            for length, rows in _passages_of(spoken.texts, self._limits.words).items()
        ]

    @cached_property
    def _count(self) -> npt.NDArray[np.int64]:
        return np.asarray(np.sum([part.count for part in self._passages], axis=0))

    @property
    def ignored(self) -> int:
        """Passages and prompts that too many test rows share."""
        return self._shared_prompts + sum(part.ignored for part in self._passages)

    def copies(self, batch: Batch) -> Iterator[tuple[Example, Example]]:
        """Yield pairs of a row and a test row with the same words, or nearly so."""
        whole = ((row, self._whole.get(tuple(text.words))) for row, text in enumerate(batch.words.texts))
        pairs = {(row, test) for row, _, test in self._alike(batch)} | {pair for pair in whole if pair[1] is not None}
        return ((batch.rows[row], self._batch.rows[test]) for row, test in sorted(pairs) if test is not None)

    def hits(self, batch: Batch) -> list[Hit]:
        """Return the hits of some rows, of two rows the strongest alone."""
        exact, parts = self._exact(batch)
        found: dict[str, Best] = {"exact": exact}
        for kind, look in (("near_copy", self._near_copies), ("overlap", self._overlaps), ("similar", self._similar)):
            stronger = {(row, test) for best in found.values() for row, (_, test) in best.items()}
            found[kind] = {row: hit for row, hit in look(batch).items() if (row, hit[1]) not in stronger}
        return [
            Hit(kind, found[kind][row][0], batch.rows[row], self._batch.rows[found[kind][row][1]], part)
            for row in range(len(batch.rows))
            for kind in KINDS
            if row in found[kind]
            for part in ["prompt" if kind == "exact" and row in parts else "row"]
        ]

    def _exact(self, batch: Batch) -> tuple[Best, set[int]]:
        """Return rows with the words of a test row, and which of them have those of its prompt alone."""
        best: Best = {}
        prompts = set()
        for row, text in enumerate(batch.words.texts):
            whole, prompt = self._whole.get(tuple(text.words)), self._prompts.get(tuple(text.words[: text.asked]))
            if whole is not None:
                best[row] = 1.0, whole
            elif prompt is not None:
                best[row] = 1.0, prompt
                prompts.add(row)
        return best, prompts

    def _overlaps(self, batch: Batch) -> Best:
        shared: Mapping[tuple[int, int], set[tuple[int, int]]] = defaultdict(set)
        for passages in self._passages:
            for row, test, number in passages.shared(batch.spoken):
                shared[row, test].add((passages.length, number))
        shares = ((row, len(found) / int(self._count[test]), test) for (row, test), found in shared.items())
        return _best(hit for hit in shares if hit[1] >= self._limits.overlap)

    def _near_copies(self, batch: Batch) -> Best:
        return _best(self._alike(batch))

    def _alike(self, batch: Batch) -> list[tuple[int, float, int]]:
        """Return near copies: row, similarity and test row."""
        # Of a near copy at least this share of its parts are a test row's: others need no signature.
        rows = self._familiar.rows(batch.words, self._limits.near_copy)
        found: list[tuple[int, float, int]] = []
        for row in rows:
            mine = shingles_of(batch.words.texts[row].words)
            met = self._index.query(_signature(mine))
            alike = ((jaccard(mine, shingles_of(self._batch.words.texts[test].words)), test) for test in met)
            found += [(row, score, test) for score, test in alike if score >= self._limits.near_copy]
        return found

    def _similar(self, batch: Batch) -> Best:
        if self._embed is None or self._vectors is None:
            return {}
        vectors = self._embed([row.text for row in batch.rows])
        found = []
        for start in range(0, len(vectors), AT_ONCE):
            cosines = vectors[start : start + AT_ONCE] @ self._vectors.T
            tests = cosines.argmax(axis=1)
            scores = np.minimum(1.0, cosines[np.arange(len(tests)), tests].astype(float))
            pairs = enumerate(zip(scores.tolist(), tests.tolist(), strict=True), start)
            found += [(row, score, test) for row, (score, test) in pairs if score >= self._limits.similar]
        return _best(found)

    @cached_property
    def _index(self) -> Any:
        """Signatures of the test rows by bands, made when the first row looks like a near copy."""
        from datasketch import MinHashLSH

        made = MinHashLSH(num_perm=PERMUTATIONS, params=(BANDS, PERMUTATIONS // BANDS))
        for place, text in enumerate(self._batch.words.texts):
            if shingles := shingles_of(text.words):
                made.insert(place, _signature(shingles))
        return made


def _signature(shingles: frozenset[tuple[str, ...]]) -> Any:
    from datasketch import MinHash

    made = MinHash(num_perm=PERMUTATIONS)
    made.update_batch([" ".join(shingle).encode("utf-8", "surrogatepass") for shingle in shingles])
    return made


def _best(found: Iterable[tuple[int, float, int]]) -> Best:
    """Return the hit of the highest score of each row; of equal ones, that of the first test row."""
    best: Best = {}
    for row, score, test in found:
        if row not in best or (-score, test) < (-best[row][0], best[row][1]):
            best[row] = score, test
    return best


def _places(texts: Iterable[list[str]]) -> dict[tuple[str, ...], list[int]]:
    """Return where each text stands among some."""
    found: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for place, words in enumerate(texts):
        found[tuple(words)].append(place)
    return found


def _passages_of(texts: Sequence[Words], length: int) -> dict[int, list[int] | None]:
    """Return the rows whose first words are a passage, by their number; of the usual length, all passages of all rows."""
    found: dict[int, list[int] | None] = {length: None}
    short: Mapping[int, list[int]] = defaultdict(list)
    for place, text in enumerate(texts):
        for count in {len(text.words), text.asked}:
            if SHORTEST_PASSAGE <= count < length:
                short[count].append(place)
    return {**found, **short}


def left_out(pool: Iterable[Example], found: Contamination) -> Iterator[Example]:
    """Yield the rows of a pool that no test row is in."""
    contaminated = found.strongest
    return (row for row in pool if row.id not in contaminated)
