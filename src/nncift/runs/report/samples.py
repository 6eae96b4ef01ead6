"""The rows that a report shows one by one: all of a small pool, a seeded sample of a large one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from nncift.core.seeds import shuffled
from nncift.runs.finished import FinishedRun

MOST_ROWS = 1000
MOST_LISTED = 20_000
"""Rows of the table; a page that would be too large shows less of their texts first."""

PROMPT_BYTES, RESPONSE_BYTES = 320, 240
_WORD = re.compile(r"[^\W\d_]{3,}")
_STOP = frozenset(
    "the and for are was were with that this from you your not but have has had his her its she they them their who what "
    "when where which how why can will would should could there here into than then been being about following given "
    "each all any one two some such only also more most other out use using does did write make give".split()
)


@dataclass(frozen=True)
class Sample:
    """Rows to show. ids: chosen ones first, in rank order. chosen, dropped: how many of each there are in all.

    texts: whether texts may be shown; else a row's id stands for its prompt, and nothing for its response.
    """

    run: FinishedRun
    ids: tuple[str, ...]
    chosen: int
    dropped: int
    texts: bool = True

    @property
    def is_whole(self) -> bool:
        """Whether all rows are shown."""
        return len(self.ids) == self.chosen + self.dropped

    def text(self, item: str, most: int = PROMPT_BYTES) -> str:
        """Return the beginning of a row's prompt."""
        return _texts(self.run, item, most)[0] if self.texts else item

    def response(self, item: str, most: int = RESPONSE_BYTES) -> str:
        """Return the beginning of a row's response."""
        return _texts(self.run, item, most)[1] if self.texts else ""


def draw(run: FinishedRun, most: int = MOST_ROWS, *, texts: bool = True) -> Sample:
    """Return the sample: half of it chosen rows where there are enough of both kinds."""
    dropped = run.dropped
    few = min(len(run.chosen), max(most // 2, most - len(dropped)))
    kept = set(shuffled(run.chosen, run.settings.seed, "report", "chosen")[:few])
    rest = set(shuffled(dropped, run.settings.seed, "report", "dropped")[: most - few])
    ids = (*(item for item in run.chosen if item in kept), *(item for item in dropped if item in rest))
    run.rows.keep(ids)
    return Sample(run, ids, len(run.chosen), len(dropped), texts)


def listing(sample: Sample) -> tuple[str, ...]:
    """Return the rows of the table: those of the sample first, then others, chosen ones before dropped ones."""
    run, shown = sample.run, set(sample.ids)
    rest = [item for item in (*run.chosen, *run.dropped) if item not in shown]
    room = max(0, MOST_LISTED - len(sample.ids))
    if len(rest) > room:
        kept = set(shuffled(rest, run.settings.seed, "report", "listing")[:room])
        rest = [item for item in rest if item in kept]
    ids = (*sample.ids, *rest)
    run.rows.keep(ids)
    return ids


def words(text: str) -> list[str]:
    """Return the words of a text that may be typical of it."""
    return [word for word in _WORD.findall(text.lower()) if word not in _STOP]


def cut(text: str, most: int) -> str:
    """Return a text on one line, of at most `most` bytes."""
    # What a long text begins with is enough where more than `most` bytes are left of it.
    for end in (2 * most + 80, len(text)):
        line = " ".join(text[:end].split())
        if len(line) > most or end >= len(text):
            break
    return shortened(line, most)


def shortened(line: str, most: int) -> str:
    """Return a text that stands on one line, of at most `most` bytes."""
    if len(line) <= most and line.isascii():
        return line
    data = line.encode("utf-8", "replace")
    return line if len(data) <= most else data[:most].decode("utf-8", "ignore").rstrip() + " …"


@lru_cache(maxsize=20_000)
def _texts(run: FinishedRun, item: str, most: int) -> tuple[str, str]:
    example = run.rows.example(item)
    return cut(example.prompt, most), cut(example.response, most)
