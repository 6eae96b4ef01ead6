"""Labels on disk: the plan's generations, and the teacher's raw values as they are computed.

`labels/` holds for every generation `plan-000.parquet` (ids, split, chunk), `values-000.npy` and a `RowStore` with the
cost of every chunk, which is written last: a chunk that was interrupted or is damaged is computed again, whole and alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nncift.core.pairs import LabelledPairs
from nncift.errors import DataError
from nncift.labels import BASE, NO_SOURCE, SPLITS, Entries, LabelPlan, Roles
from nncift.storage.atomic import MISMATCH, atomic, digest, read_json, write_sealed
from nncift.storage.parquet import read_columns
from nncift.storage.row_store import Chunks, RowStore
from nncift.teachers import Chunk, ChunkLabels

COSTS = ("tokens", "passes", "seconds", "shortened")


@dataclass(frozen=True)
class Progress:
    """Totals over finished chunks. tokens and passes of the teacher's model; seconds of labelling.

    pairs: with an example in front; missing: of these, too long for the context; blocks: examples that stood in
    front; shortened: of these, cut to fit.
    """

    tokens: int
    passes: int
    seconds: float
    pairs: int
    missing: int
    blocks: int
    shortened: int


class LabelStore:
    """The labels of a run. `LabelStore.open` reads the plan; `adopt` appends what a plan has grown by."""

    def __init__(self, folder: Path, plan: LabelPlan | None) -> None:
        self._folder = folder
        self._chunks = Chunks(self._open)
        self._firsts: dict[int, int] = {}
        self.plan = plan

    @classmethod
    def open(cls, folder: Path) -> LabelStore:
        """Open the labels in a folder, which may be empty. Raises DataError where a file there cannot be read."""
        folder.mkdir(parents=True, exist_ok=True)
        heads = sorted(folder.glob("plan-*.json"))
        if not heads:
            return cls(folder, None)
        reading = heads[-1]
        try:
            head = read_json(reading)
            targets, sources, shared = tuple(head["target_ids"]), tuple(head["source_ids"]), bool(head["shared"])
            roles = Roles(**{name: tuple(ids) for name, ids in head["roles"].items()})
            generations = []
            for place in range(len(heads)):
                reading = folder / f"plan-{place:03d}.json"
                record = read_json(reading)
                reading = reading.with_suffix(".parquet")
                if record.get("entries", whole := digest(reading)) != whole:
                    raise ValueError(MISMATCH)
                generations.append(_read_entries(reading, len(targets), len(sources)))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f"the label plan {str(reading)!r} is damaged ({error}); use another --out") from error
        return cls(folder, LabelPlan(targets, sources, shared, roles, tuple(generations)))

    def adopt(self, plan: LabelPlan) -> None:
        """Write the generation that a plan has beyond the one on disk; the JSON head, last, makes it count."""
        known = 0 if self.plan is None else len(self.plan.generations)
        for generation in range(known, len(plan.generations)):
            with atomic(self._path("plan", generation, ".parquet")) as part:
                _write_entries(part, plan.generations[generation])
            head = {
                "shared": plan.shared,
                "roles": {name: list(ids) for name, ids in vars(plan.roles).items()},
                "target_ids": list(plan.target_ids),
                "source_ids": list(plan.source_ids),
                "entries": digest(self._path("plan", generation, ".parquet")),
            }
            write_sealed(self._path("plan", generation, ".json"), head)
        self.plan = plan

    def pending(self) -> Iterator[tuple[int, Chunk, npt.NDArray[np.intp]]]:
        """Yield the chunks without whole labels: generation, chunk, and the positions of its entries."""
        for generation in range(len(self._plan.generations)):
            values, done = self._chunks.of(generation)
            chunks = self._plan.generation_chunks(generation)
            first = chunks[0][0].index if chunks else 0
            for chunk, positions in chunks:
                if not (done.filled[chunk.index - first] and values.filled[positions].all()):
                    yield generation, chunk, positions

    def write(
        self, generation: int, chunk: Chunk, positions: npt.NDArray[np.intp], labels: ChunkLabels, seconds: float
    ) -> None:
        """Keep a chunk's values and cost; they are on disk after `flush`, which comes by itself now and then."""
        passes = int(np.isfinite(labels.values).sum())
        cost = [labels.tokens, passes, seconds, labels.shortened]
        index = chunk.index - self._first(generation)
        self._chunks.keep(generation, positions, np.asarray(labels.values)[:, None], index, cost)

    def flush(self) -> None:
        """Put what waits on disk."""
        self._chunks.flush()

    def progress(self) -> Progress:
        """Sum up the finished chunks."""
        plan = self._plan
        cost = np.zeros(len(COSTS))
        pairs = missing = blocks = 0
        for generation, entries in enumerate(plan.generations):
            values, done = self._chunks.of(generation)
            cost += done.values[np.asarray(done.filled)].sum(axis=0)
            paired = np.asarray(values.filled) & (entries.source != NO_SOURCE)
            pairs += int(paired.sum())
            missing += int(np.isnan(values.values[paired, 0]).sum())
            blocks += len(np.unique(entries.chunk[paired]))
        return Progress(int(cost[0]), int(cost[1]), float(cost[2]), pairs, missing, blocks, int(cost[3]))

    def utilities(self, *, relative: bool) -> dict[str, LabelledPairs]:
        """Return the utilities by split (without `base`), on the plan's axes; NaN where the teacher has no value.

        Relative teachers: `base value of the target - value of the pair`. Raises DataError where chunks are pending.
        """
        plan = self._plan
        entries = plan.entries
        stores = [self._chunks.of(generation)[0] for generation in range(len(plan.generations))]
        if not all(np.all(store.filled) for store in stores):
            raise DataError(f"labels in {str(self._folder)!r} are not complete; run the same command again")
        raw = np.concatenate([np.asarray(store.values[:, 0]) for store in stores])
        value = raw
        if relative:
            base = np.full(len(plan.target_ids), np.nan, np.float32)
            without = entries.split == BASE
            base[entries.target[without]] = raw[without]
            value = base[entries.target] - raw
        found = {}
        for code, name in enumerate(SPLITS):
            if code != BASE:
                mask = entries.split == code
                found[name] = LabelledPairs(
                    plan.target_ids, plan.source_ids, entries.target[mask], entries.source[mask], value[mask]
                )
        return found

    @property
    def _plan(self) -> LabelPlan:
        if self.plan is None:
            raise DataError("this run has no label plan yet")
        return self.plan

    def _first(self, generation: int) -> int:
        """Return the number of a generation's first chunk."""
        if generation not in self._firsts:
            self._firsts[generation] = int(self._plan.generations[generation].chunk.min())
        return self._firsts[generation]

    def _open(self, generation: int) -> tuple[RowStore, RowStore]:
        entries = self._plan.generations[generation]
        chunks = int(entries.chunk.max() - entries.chunk.min()) + 1 if len(entries) else 0
        values = RowStore.open(self._path("values", generation), len(entries), 1)
        return values, RowStore.open(self._path("chunks", generation), chunks, len(COSTS), dtype="float64")

    def _path(self, kind: str, generation: int, end: str = "") -> Path:
        return self._folder / f"{kind}-{generation:03d}{end}"


def _write_entries(path: Path, entries: Entries) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({name: pa.array(values) for name, values in vars(entries).items()}), path)


def _read_entries(path: Path, targets: int, sources: int) -> Entries:
    table = read_columns(path)
    entries = Entries(*(table[name].to_numpy() for name in ("target", "source", "split", "chunk")))
    for codes, lowest, size in ((entries.target, 0, targets), (entries.source, NO_SOURCE, sources)):
        if len(codes) and not lowest <= codes.min() <= codes.max() < size:
            raise ValueError("codes beyond the axes")
    return entries


def combine(parts: dict[str, LabelledPairs], names: tuple[str, ...] | None = None) -> LabelledPairs:
    """Join the pairs of several splits (all by default) that share their axes."""
    chosen: list[Any] = [parts[name] for name in (names or tuple(parts))]
    joined = (np.concatenate([getattr(part, name) for part in chosen]) for name in ("target", "source", "value"))
    return LabelledPairs(chosen[0].target_ids, chosen[0].source_ids, *joined)
