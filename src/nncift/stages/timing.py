"""What a token takes, from a few that are really read: for estimates, and for caps in time. Nothing is written.

At most 1,000 tokens or 5 seconds of the processor are timed in all, whichever ends first, but always one row of every kind: where
that takes longer, there is no telling otherwise. Time is measured twice: of the processor, which is what a plan costs, and of the
clock, which is longer where other programs want the processor too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from statistics import fmean
from typing import TypeVar, cast

import numpy as np

from nncift.config import RunSettings
from nncift.core.arrays import Doubles
from nncift.core.result_types import Record
from nncift.core.seeds import shuffled
from nncift.data import Examples
from nncift.labels.plan import LabelPlan
from nncift.labels.store import Axes
from nncift.models.encoders import CountsTexts, Encoder, SentenceEncoder
from nncift.models.layer_trial import EncoderTrial
from nncift.models.probe import Probe
from nncift.teachers import Chunk, RowTeacher, Teacher
from nncift.teachers.abilities import (
    CountsChunkTokens,
    CountsTokens,
    TriesSteps,
    WarmsUp,
    language_model,
    row_passes,
    warm_up_cost,
)

_Price = TypeVar("_Price")
CANDIDATES = 64
"""Rows or chunks among which those that are timed are chosen."""
MOST_ITEMS = 8
COUNTED_TARGETS = (1, 12)
BUSY = 0.7
"""Processor seconds for a second of the clock, with work for one core, below which the machine is called busy."""


WAIT = 3
"""Times as long, by the clock, as a trial may take of the processor."""


@dataclass(frozen=True)
class Share:
    """What the trial of one kind of pass may take of all: tokens and seconds."""

    tokens: int
    seconds: float


LABELS, STEPS, PROBES, TEXTS = Share(450, 2.0), Share(200, 0.9), Share(350, 1.2), Share(0, 0.9)
"""Shares of labels, of a warm-up's training, of the probe and of embeddings, whose tokens are another model's."""


@dataclass(frozen=True)
class Pace:
    """Seconds that a unit of work takes, such as a token: of the processor, and of the clock."""

    processor: float
    clock: float

    def of(self, units: float) -> tuple[float, float]:
        """Return seconds of the clock and of the processor for so many units."""
        return units * self.clock, units * self.processor


@dataclass(frozen=True)
class Timed(Record):
    """Seconds of the clock and of the processor that trials took. busy: other programs had the processor meanwhile."""

    seconds: float
    processor_seconds: float
    busy: bool


@dataclass
class Trials:
    """Times work, and adds up what was timed. tokens: of the teacher's model. prices: what was found, by kind of pass."""

    tokens: float = 0.0
    processor: float = 0.0
    clock: float = 0.0
    prices: dict[str, object] = field(default_factory=dict)

    def price(self, kind: str, find: Callable[[], _Price]) -> _Price:
        """Return the price of a kind of pass, which is found once: a cap in time and an estimate ask for the same."""
        if kind not in self.prices:
            self.prices[kind] = find()
        return cast(_Price, self.prices[kind])

    def pace(self, sizes: Sequence[float], do: Callable[[list[int]], object], share: Share, units: int = 0) -> Pace:
        """Time `do` on items of about the mean size.

        sizes: units of every item. units: that may be timed, the share's tokens by default. The smallest item goes first,
        untimed, since much is made at a first pass, and then once more, to tell what fits into the time.
        """
        smallest = min(range(len(sizes)), key=lambda place: (sizes[place], place))
        began, processor = time.perf_counter(), time.process_time()
        do([smallest])
        found = self._timed(sizes, do, [smallest])
        left = (share.seconds - (time.process_time() - processor)) / max(found.processor, 1e-9)
        patience = (WAIT * share.seconds - (time.perf_counter() - began)) / max(found.clock, 1e-9)
        room = min((units or share.tokens) - 2 * sizes[smallest], left, patience)
        if picked := typical(sizes, room):
            found = self._timed(sizes, do, picked)
        return found

    def once(self, units: float, do: Callable[[], object]) -> Pace:
        """Time work of so many units."""
        return self._timed([units], lambda _: do(), [0])

    def _timed(self, sizes: Sequence[float], do: Callable[[list[int]], object], places: list[int]) -> Pace:
        units = max(1e-9, sum(sizes[place] for place in places))
        processor, clock = time.process_time(), time.perf_counter()
        do(places)
        processor, clock = time.process_time() - processor, time.perf_counter() - clock
        self.tokens, self.processor, self.clock = self.tokens + units, self.processor + processor, self.clock + clock
        return Pace(processor / units, clock / units)

    def timed(self, device: str) -> Timed:
        """Return what was timed, and whether the machine is busy. device: of the teacher's model."""
        busy = device == "cpu" and self.clock > 0 and (self.processor < BUSY * self.clock or _load() > 1.5)
        return Timed(round(self.clock, 2), round(self.processor, 2), busy)


def _load() -> float:
    """Return the processes that want a processor, for each that there is."""
    try:
        return os.getloadavg()[0] / (os.cpu_count() or 1)
    except (OSError, AttributeError):
        return 0.0


def typical(sizes: Sequence[float], room: float) -> list[int]:
    """Return some items of about the mean size that fit into so many units."""
    mean, found, used = sum(sizes) / len(sizes), list[int](), 0.0
    for place in sorted(range(len(sizes)), key=lambda place: (abs(sizes[place] - mean), place)):
        if used + sizes[place] <= room and len(found) < MOST_ITEMS:
            found.append(place)
            used += sizes[place]
    return found


@dataclass(frozen=True)
class PairPrice:
    """What a teacher's pairs cost. tokens: to begin a chunk, and of each of its targets. pace: of a token, or of a pass."""

    begun: float
    target: float
    pace: Pace
    by_token: bool

    def of(self, chunks: float, passes: float, tokens: float | None = None) -> tuple[float, float, float]:
        """Return tokens, and seconds of the clock and of the processor, of chunks with so many passes; tokens where known."""
        tokens = chunks * self.begun + passes * self.target if tokens is None else tokens
        return (tokens, *self.pace.of(tokens if self.by_token else passes))


@dataclass(frozen=True)
class RowPrice:
    """What a row teacher's rows cost.

    tokens: of a row at all its passes, about. pace: of a token, or of a row; steps: the same of a warm-up's training.
    """

    tokens: float
    pace: Pace
    steps: Pace
    by_token: bool


@dataclass(frozen=True)
class Rates:
    """Seconds of a run: of all that no label takes part in, of beginning a chunk of pairs, and of each pass of labelling."""

    fixed: float
    begun: float
    each: float


def pair_price(rows: Examples, teacher: Teacher, seed: int, trials: Trials, plan: LabelPlan | None = None) -> PairPrice:
    """Time a few chunks: of a plan, cut to what may be timed, or of rows drawn at random."""
    drawn = shuffled(rows.ids, seed, "estimate")
    if not isinstance(teacher, CountsChunkTokens):
        return _uncounted(drawn, teacher, trials)
    counted = [chunk for place in range(min(4, len(drawn))) for chunk in _around(drawn, place)]
    begun, target = _line([teacher.chunk_tokens(chunk) for chunk in counted], [len(chunk.targets) for chunk in counted])
    found = [chunk.task for chunk in plan.chunks_of(0) if chunk.source is not None] if plan is not None else []
    chunks = [_cut(found[place], teacher) for place in _spread(len(found))] or counted
    sizes = [teacher.chunk_tokens(chunk) for chunk in chunks]
    if not any(sizes):
        return _uncounted(drawn, teacher, trials)
    pace = trials.pace(sizes, lambda places: [teacher.label(chunks[place]) for place in places], LABELS)
    return PairPrice(begun, target, pace, by_token=True)


def _uncounted(drawn: Sequence[str], teacher: Teacher, trials: Trials) -> PairPrice:
    """Time passes of a teacher that does not say what tokens it reads before it has read them."""
    chunks = [chunk for place in range(min(4, len(drawn))) for chunk in _around(drawn, place)]
    read: dict[int, int] = {}

    def label(places: list[int]) -> None:
        read.update({place: teacher.label(chunks[place]).tokens for place in places})

    sizes = [len(chunk.targets) for chunk in chunks]
    pace = trials.pace(sizes, label, LABELS, units=sum(sizes))
    label([place for place in range(len(COUNTED_TARGETS)) if place not in read])
    begun, target = _line(list(read.values()), [sizes[place] for place in read])
    return PairPrice(begun, target, pace, by_token=False)


def _around(drawn: Sequence[str], place: int) -> list[Chunk]:
    others = [item for item in [*drawn[place + 1 :], *drawn[:place]] if item != drawn[place]]
    return [Chunk(-1, drawn[place], tuple(others[:size])) for size in COUNTED_TARGETS]


def _cut(chunk: Chunk, teacher: CountsChunkTokens) -> Chunk:
    """Return a chunk with so many of its targets as may be timed."""
    tokens, size = teacher.chunk_tokens(chunk), len(chunk.targets)
    return (
        chunk
        if tokens <= LABELS.tokens
        else Chunk(-1, chunk.source, chunk.targets[: max(1, size * LABELS.tokens // tokens)])
    )


def _spread(size: int) -> list[int]:
    return sorted({size * place // CANDIDATES for place in range(CANDIDATES)}) if size else []


def _line(tokens: Sequence[float], targets: Sequence[int]) -> tuple[float, float]:
    """Return the tokens that a chunk takes to begin and for each target, by least squares."""
    sizes: Doubles = np.array([[1.0, size] for size in targets])
    begun, each = np.maximum(np.linalg.lstsq(sizes, np.array(tokens, np.float64), rcond=None)[0], 0.0)
    return float(begun), float(each)


def row_price(rows: Examples, ids: Collection[str], teacher: RowTeacher, seed: int, trials: Trials) -> RowPrice:
    """Time a few rows, on the model as it is, and a step of a warm-up's training, which changes nothing."""
    timed = teacher.without_warm_up() if isinstance(teacher, WarmsUp) else teacher
    times = row_passes(teacher) / row_passes(timed) if row_passes(timed) else 1.0
    drawn = shuffled(ids, seed, "estimate")[:CANDIDATES]
    timed.prepare(rows.subset(drawn))
    sizes: list[float] = [1.0] * len(drawn)
    if isinstance(timed, CountsTokens):
        # What all rows have in front of them is read once, and before what is timed.
        alone = [timed.tokens_of([item]) for item in drawn]
        shared = sum(alone[:2]) - timed.tokens_of(drawn[:2])
        sizes = [tokens - shared for tokens in alone]
    by_token = isinstance(timed, CountsTokens) and any(sizes)
    sizes = sizes if by_token else [1.0] * len(drawn)
    read: list[float] = []

    def measure(places: list[int]) -> None:
        read.append(timed.measure([drawn[place] for place in places]).tokens / len(places))

    pace = trials.pace(sizes, measure, LABELS, units=0 if by_token else MOST_ITEMS)
    steps = pace
    if isinstance(timed, TriesSteps) and by_token and warm_up_cost(teacher).passes:
        steps = trials.pace(sizes, lambda places: timed.try_step([drawn[place] for place in places]), STEPS)
    tokens = fmean(sizes if by_token else read)
    if not by_token:
        pace = Pace(times * pace.processor, times * pace.clock)
    return RowPrice(times * tokens, pace, steps, by_token)


def probe_pace(probe: Probe, rows: Examples, seed: int, trials: Trials) -> Pace:
    """Time asking the model about a few rows; the pace is of a token."""
    drawn = [rows.by_id(item) for item in shuffled(rows.ids, seed, "estimate", "probe")[:CANDIDATES]]
    sizes = [probe.tokens(row) for row in drawn]
    return trials.pace(sizes, lambda places: probe.read([drawn[place] for place in places]), PROBES)


@dataclass(frozen=True)
class TextPrice:
    """What embedding costs.

    tokens: of a text, about. pace: of a token, or of a text where tokens are not known; None = unknown.
    """

    tokens: float | None
    pace: Pace | None

    def of(self, texts: int, tokens: float | None) -> tuple[float | None, float | None]:
        """Return seconds of the clock and of the processor for so many texts with so many tokens in all."""
        if self.pace is None:
            return None, None
        return self.pace.of(texts if self.tokens is None else texts * self.tokens if tokens is None else tokens)


def text_price(rows: Examples, encoder: Encoder, seed: int, device: str = "auto") -> TextPrice:
    """Time embedding a few texts that no cache has; an encoder of its own is not loaded, but stood in for (`EncoderTrial`)."""
    texts = [rows.by_id(item).text for item in shuffled(rows.ids, seed, "estimate", "texts")[:CANDIDATES]]
    sizes = encoder.count(texts) if isinstance(encoder, CountsTexts) else None
    do = partial(_encode, encoder, texts)
    if isinstance(encoder, SentenceEncoder):
        trial = EncoderTrial.of(encoder, device)
        if trial is None or sizes is None:
            return TextPrice(None, None)
        do = partial(_stand_in, trial, sizes)
    units: list[float] = [1.0] * len(texts) if sizes is None else [float(max(1, size)) for size in sizes]
    pace = Trials().pace(units, do, TEXTS, units=ceil(MOST_ITEMS * fmean(units)))
    if isinstance(encoder, SentenceEncoder):
        # What is timed is of one length; batches are padded to their longest text.
        padded = encoder.padded(sorted(units)) / sum(units)
        pace = Pace(padded * pace.processor, padded * pace.clock)
    return TextPrice(None if sizes is None else fmean(units), pace)


def _encode(encoder: Encoder, texts: Sequence[str], places: list[int]) -> None:
    encoder.encode([texts[place] for place in places])


def _stand_in(trial: EncoderTrial, sizes: Sequence[int], places: list[int]) -> None:
    trial.run([max(1, sizes[place]) for place in places])


def rates_of(
    settings: RunSettings,
    axes: Axes,
    teacher: Teacher | RowTeacher,
    encoder: Encoder,
    existing: int = 0,
    trials: Trials | None = None,
) -> Rates:
    """Time what a run takes. existing: rows that were trained on already, which are embedded and probed too.

    trials: keeps the prices that are found, by the names that an estimate takes them by.
    """
    trials, seed, rows = Trials() if trials is None else trials, settings.seed, len(axes.rows) + existing
    text = trials.price("text", lambda: text_price(axes.rows, encoder, seed, settings.device))
    fixed = text.of(rows, None)[0] or 0.0
    if settings.features == "probe":
        probe = Probe.of(language_model(teacher, "--features probe"), settings)
        drawn = [axes.rows.by_id(item) for item in shuffled(axes.rows.ids, seed, "estimate", "probe")[:CANDIDATES]]
        tokens = rows * fmean(probe.tokens(row) for row in drawn)
        fixed += trials.price("probe", lambda: probe_pace(probe, axes.rows, seed, trials)).of(tokens)[0]
    if isinstance(teacher, RowTeacher):
        row = trials.price("row", lambda: row_price(axes.rows, axes.sources.ids, teacher, seed, trials))
        each = row.pace.of(row.tokens if row.by_token else 1)[0]
        return Rates(fixed, 0.0, each / max(1, row_passes(teacher)))
    pair = trials.price("pair", lambda: pair_price(axes.rows, teacher, seed, trials))
    if not pair.by_token:
        return Rates(fixed, 0.0, pair.pace.clock)
    return Rates(fixed, pair.begun * pair.pace.clock, pair.target * pair.pace.clock)
