"""What a pass takes, from a few passes that are really made: for estimates, and for caps in time. Nothing is written.

Every kind of pass is timed for `SECONDS` at most, but always once: where one pass takes longer, there is no telling otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from nncift.config import RunSettings
from nncift.core.seeds import shuffled
from nncift.data import Examples
from nncift.labels.store import Axes
from nncift.models.encoders import Encoder
from nncift.models.probe import Probe
from nncift.teachers import Chunk, RowTeacher, Teacher
from nncift.teachers.abilities import WarmsUp, language_model, row_passes

SECONDS = 1.2
TIMED_SOURCES = 4
TIMED_TARGETS = (1, 12)
TIMED_TEXTS = 16
TIMED_ROWS = 8

Thing = TypeVar("Thing")
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PairRate:
    """Tokens and seconds that a chunk costs to begin, and for each of its targets."""

    begun: tuple[float, float]
    target: tuple[float, float]

    def of(self, chunks: float, passes: float) -> tuple[float, float]:
        """Return tokens and seconds of chunks with so many passes in all."""
        tokens, seconds = (chunks * one + passes * each for one, each in zip(self.begun, self.target, strict=True))
        return tokens, seconds


@dataclass(frozen=True)
class RowRate:
    """Tokens and seconds of a row at all its passes."""

    tokens: float
    seconds: float


@dataclass(frozen=True)
class Rates:
    """Seconds of a run: of all that no label takes part in, of beginning a chunk of pairs, and of each pass of labelling."""

    fixed: float
    begun: float
    each: float


def rates_of(
    settings: RunSettings, axes: Axes, teacher: Teacher | RowTeacher, encoder: Encoder, existing: int = 0
) -> Rates:
    """Time what a run takes. existing: rows that were trained on already, which are embedded and probed too."""
    rows = len(axes.rows) + existing
    fixed = rows * embedding_seconds(axes.rows, encoder, settings.seed)
    if settings.features == "probe":
        fixed += rows * probe_seconds(settings, axes, teacher)
    if isinstance(teacher, RowTeacher):
        each = row_rate(axes.rows, axes.sources.ids, teacher, settings.seed).seconds
        return Rates(fixed, 0.0, each / max(1, row_passes(teacher)))
    pairs = pair_rate(axes.rows, teacher, settings.seed)
    return Rates(fixed, pairs.begun[1], pairs.target[1])


def pair_rate(rows: Examples, teacher: Teacher, seed: int) -> PairRate:
    """Time a few chunks, small and large."""
    drawn = shuffled(rows.ids, seed, "estimate")
    chunks = []
    for place in range(min(TIMED_SOURCES, len(drawn))):
        others = [item for item in drawn[place + 1 :] + drawn[:place] if item != drawn[place]]
        chunks += [Chunk(-1, drawn[place], tuple(others[:size])) for size in TIMED_TARGETS]
    teacher.label(Chunk(-1, drawn[0], tuple(drawn[1:2])))
    costs: list[list[float]] = []
    began = time.perf_counter()
    for chunk in chunks:
        # A small and a large chunk at least: what one costs to begin is the difference.
        if len(costs) >= len(TIMED_TARGETS) and time.perf_counter() - began > SECONDS:
            break
        start = time.perf_counter()
        tokens = teacher.label(chunk).tokens
        costs.append([tokens, time.perf_counter() - start])
    sizes = np.array([[1.0, len(chunk.targets)] for chunk in chunks[: len(costs)]])
    found: Doubles = np.maximum(np.linalg.lstsq(sizes, np.array(costs), rcond=None)[0], 0.0)
    return PairRate((float(found[0, 0]), float(found[0, 1])), (float(found[1, 0]), float(found[1, 1])))


def row_rate(rows: Examples, ids: Sequence[str], teacher: RowTeacher, seed: int) -> RowRate:
    """Time a few rows, on the model as it is: a warm-up is not done for it."""
    timed = teacher.without_warm_up() if isinstance(teacher, WarmsUp) else teacher
    times = row_passes(teacher) / row_passes(timed) if row_passes(timed) else 1.0
    drawn = shuffled(ids, seed, "estimate")[:TIMED_ROWS]
    timed.prepare(rows.subset(drawn))
    read: list[float] = []
    seconds = _each(drawn, lambda part: read.append(timed.measure(part).tokens / len(part)))
    return RowRate(times * float(np.mean(read)), times * seconds)


def probe_seconds(settings: RunSettings, axes: Axes, teacher: Teacher | RowTeacher) -> float:
    """Return the seconds of asking the model once about a row."""
    probe = Probe(language_model(teacher, "--features probe"), settings.template)
    drawn = shuffled(axes.rows.ids, settings.seed, "estimate", "probe")[:TIMED_TEXTS]
    return _each([axes.rows.by_id(item) for item in drawn], lambda part: probe.read(part))


def embedding_seconds(rows: Examples, encoder: Encoder, seed: int) -> float:
    """Return the seconds of embedding a row that no cache has."""
    drawn = shuffled(rows.ids, seed, "estimate", "texts")[:TIMED_TEXTS]
    return _each([rows.by_id(item).text for item in drawn], lambda part: encoder.encode(part))


def _each(items: Sequence[Thing], do: Callable[[Sequence[Thing]], object]) -> float:
    """Return the seconds that one of several items takes, in parts until the time is up."""
    do(items[:1])
    began, done = time.perf_counter(), 0
    for start in range(0, len(items), 4):
        part = items[start : start + 4]
        do(part)
        done += len(part)
        if time.perf_counter() - began > SECONDS:
            break
    return (time.perf_counter() - began) / done
