"""Selection in a run: remove duplicates, choose by the objective and its rules, value the controls, write the account.

`nncift run` and `nncift select` both come through here. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nncift.config import RunSettings
from nncift.core.fingerprints import fingerprint
from nncift.core.memory import check_room
from nncift.core.parallel import ranges
from nncift.core.result_types import OPTIONAL, JsonObject, Record
from nncift.data.pool import PoolTable
from nncift.errors import UsageError
from nncift.selection import Problem, Subset, pose
from nncift.selection.constraints import ResolvedConstraints
from nncift.selection.controls import longest_ids, random_ids, stratified_ids
from nncift.selection.probe_controls import RDS
from nncift.selection.problem import DenseProblem, GraphProblem
from nncift.selection.sparse import Graph, SparseCoverage
from nncift.selection.sparse_round_robin import SparseTurns, highest_on
from nncift.selection.stability import Refits, StabilityRecord, how_sure
from nncift.storage.atomic import atomic, write_json
from nncift.storage.parquet import number_column, text_column
from nncift.storage.run_directory import RunDir

RANDOM_DRAWS = 10
CONTROL_ROWS = 8000
"""Rows up to which all pairs of embeddings are held, 0.5 GB, where the objective's own matrix does not hold as many."""

AT_ONCE = 1 << 14
"""Rows of the account that are put together at once."""

WRITTEN_AT_ONCE = 1 << 16
"""Rows whose texts are in memory while they are written in rank order."""

FILES = ("subset.jsonl", "selection.parquet", "selection.json")


@dataclass(frozen=True)
class NeighbourRecord(Record):
    """The graph that a selection was made on: neighbours of every target, and the share of the true nearest that were found."""

    each: int
    recall: float


@dataclass(frozen=True)
class SelectionRecord(Record):
    """What is reported of a selection.

    budget: chosen rows. by_score: of these, rows that add nothing to the objective. controls: values of other ways to choose as
    many rows, None for one that was left out. neighbours: on a graph. tokens: of the chosen rows, where counted.
    """

    objective: str
    budget: int
    value: float
    upper_bound: float
    share_of_optimum: float
    by_score: int
    controls: Mapping[str, float | None]
    removed_duplicates: int
    neighbours: NeighbourRecord | None = field(default=None, metadata=OPTIONAL)
    tokens: int | None = field(default=None, metadata=OPTIONAL)
    stability: StabilityRecord | None = field(default=None, metadata=OPTIONAL)

    @property
    def note(self) -> str | None:
        """What is said where the objective is exhausted before the budget is."""
        return by_score_note(self.budget, self.by_score) if self.by_score else None


@dataclass(frozen=True)
class Selected:
    """A finished selection: ids in rank order, and what is reported of it."""

    ids: tuple[str, ...]
    record: SelectionRecord


@dataclass(frozen=True)
class Chosen:
    """A selection, and what is reported of it. score: mean utility of every row of the pool, NaN where none is known.

    stability: share of refits in which each row is selected, NaN where it was not looked at; None where nothing was refitted.
    labelled: share of each row's utilities that the teacher gave; None where that is not known.
    """

    subset: Subset
    score: npt.NDArray[np.float64]
    record: SelectionRecord
    stability: npt.NDArray[np.float64] | None = None
    labelled: npt.NDArray[np.float64] | None = None

    def how_sure(self, place: int) -> str:
        """Return what the place of a row rests on, with a space in front; nothing where that is not known."""
        if self.labelled is None:
            return ""
        stability, record = self.stability, self.record.stability
        share = float("nan") if stability is None else float(stability[place])
        return " " + how_sure(float(self.labelled[place]), share, 0 if record is None else record.refits)


@dataclass(frozen=True, eq=False)
class Posing:
    """Poses what is chosen from. build: not called where the selection is finished. refits: None = no stability is measured."""

    build: Callable[[], DenseProblem | GraphProblem]
    refits: Refits | None = None

    def with_stability(self, rows: PoolTable, settled: ResolvedConstraints, chosen: Chosen) -> Chosen:
        """Return a selection with how stable it is, where that is known."""
        if self.refits is None:
            return chosen
        chosen = replace(chosen, labelled=self.refits.labelled())
        found = self.refits.stability(rows, settled, chosen.subset.ids)
        if found is None:
            return chosen
        return replace(chosen, stability=found.share, record=replace(chosen.record, stability=found.record))


def choose(
    directory: RunDir,
    keys: MutableMapping[str, str],
    settings: RunSettings,
    rows: PoolTable,
    settled: ResolvedConstraints,
    posing: Posing,
    *,
    embedding_control: bool = True,
) -> Selected:
    """Select in a run, write `selection.parquet` and `subset.jsonl`, and return what was selected.

    keys: fingerprints of the stages so far; that of this stage is added.
    """
    objective, seed = str(settings.objective), settings.seed
    keys["select"] = key_of(keys, settings, rows, settled)
    if posing.refits is not None and not posing.refits.are_whole:
        # They are made with the selection, and so is what was damaged.
        directory.forget("select")
    with directory.stage("select", keys["select"], FILES) as stage:
        if not stage.done:
            with directory.measured("score"):
                found = posing.build()
            chosen = solve(
                rows,
                settled,
                found,
                objective=objective,
                seed=seed,
                embedding_control=embedding_control,
            )
            # It holds the matrix, which is not needed any more.
            del found
            write_selection(directory.path, rows, settled, posing.with_stability(rows, settled, chosen))
    kept: JsonObject = directory.read_json("selection.json")
    ids = tuple(kept.pop("ids"))
    return Selected(ids, SelectionRecord.of_json(kept, str(directory.path / "selection.json")))


def key_of(keys: Mapping[str, str], settings: RunSettings, rows: PoolTable, settled: ResolvedConstraints) -> str:
    """Return the fingerprint of a selection. keys: of the stages so far."""
    # Rows go into the files as they are, with what no model sees of them; hashed in the order in which the texts lie.
    texts = (hashlib.sha256(raw.encode("utf-8")).hexdigest()[:32] for raw in rows.raw)
    identity = sorted(zip(rows.ids, rows.sources, texts, strict=True))
    return fingerprint(
        "select",
        keys["fit"],
        keys.get("existing"),
        str(settings.objective),
        settings.seed,
        identity,
        settled.identity,
        settings.quota,
        settings.neighbours,
    )


def solve(
    rows: PoolTable,
    settled: ResolvedConstraints,
    whole: DenseProblem | GraphProblem,
    *,
    objective: str,
    seed: int,
    embedding_control: bool = True,
) -> Chosen:
    """Select from the rows, and value the controls under the same matrix and rules.

    embedding_control: also value what embeddings alone would select, and every similarity that a probe gives for free, each of
    which costs as much again as the selection. They are left out where they would cost far more: all pairs of rows, for an
    objective that looks at fewer.
    """
    check_room("selecting")
    if isinstance(whole, GraphProblem):
        return _on_graph(rows, settled, whole, seed)
    if whole.matrix.source_ids != rows.ids:
        raise UsageError("the matrix is not over this pool: its sources are other rows")
    score = whole.matrix.mean_per_source() if whole.score is None else whole.score
    whole = replace(whole, score=score)
    rest, kept = whole.without(settled.removed), rows.without(settled.removed)
    problem = pose(rest.matrix, objective, rest.given, reuse=True)
    subset = problem.choose(settled.k, seed, settled.rules)
    bearable = embedding_control and len(kept.ids) <= max(CONTROL_ROWS, len(rest.matrix.target_ids))

    def by_similarity(name: str) -> float:
        return problem.value(rest.similar_ids(name, objective, settled.k, seed, settled.rules))

    controls: dict[str, float | None] = {
        **_plain_controls(problem.value, kept, settled, len(subset), seed),
        **{name: by_similarity(name) if bearable else None for name in rest.similar.names},
    }
    return Chosen(subset, score, _record(rows, subset, controls, settled))


def _record(
    rows: PoolTable, subset: Subset, controls: Mapping[str, float | None], settled: ResolvedConstraints
) -> SelectionRecord:
    """Return what is reported of every selection."""
    return SelectionRecord(
        objective=subset.objective,
        budget=len(subset),
        value=subset.value,
        upper_bound=subset.upper_bound,
        share_of_optimum=subset.share_of_optimum,
        by_score=subset.by_score,
        controls=dict(controls),
        removed_duplicates=len(settled.removed),
        tokens=None if rows.tokens is None else sum(rows.tokens[place] for place in rows.places(subset.ids)),
    )


def _on_graph(rows: PoolTable, settled: ResolvedConstraints, found: GraphProblem, seed: int) -> Chosen:
    """Select on a graph, and value the controls on it too."""
    kept = rows.without(settled.removed) if settled.removed else rows
    score = dict(zip(rows.ids, found.score.tolist(), strict=True))
    subset, problem = choose_on(found, found.graph, settled, seed, score)
    controls: dict[str, float | None] = dict(_plain_controls(problem.value, kept, settled, len(subset), seed))
    for name, graph in found.alike.items():
        own = replace(found, objective="rr" if name == RDS else found.objective)
        alone = None if graph is None else choose_on(own, graph, settled, seed)[0]
        controls[name] = None if alone is None else problem.value(list(alone.ids))
    record = replace(_record(rows, subset, controls, settled), neighbours=NeighbourRecord(found.each, found.recall))
    return Chosen(subset, found.score, record)


def choose_on(
    found: GraphProblem,
    graph: Graph,
    settled: ResolvedConstraints,
    seed: int,
    score: Mapping[str, float] | None = None,
) -> tuple[Subset, Problem]:
    """Return what an objective chooses on a graph, and the problem that gives the value of a set on it."""
    problem: Problem
    if found.objective == "fl":
        problem = SparseCoverage(graph, score)
    elif found.objective == "max":
        problem = highest_on(graph, score)
    else:
        problem = SparseTurns(graph, score, found.subtask_of)
    return problem.choose(settled.k, seed, settled.rules), problem


def by_score_note(budget: int, by_score: int) -> str:
    """Return what is said where the objective is exhausted before the budget is."""
    more = "1 row more was" if by_score == 1 else f"{by_score:,} rows more were"
    return f"{budget - by_score:,} rows give all that the objective can have from this pool; {more} taken by score."


def write_selection(folder: Path, rows: PoolTable, settled: ResolvedConstraints, chosen: Chosen, **more: str) -> None:
    """Write the files of a selection. more: what its record says beside."""
    write_selection_table(folder / "selection.parquet", rows, settled, chosen)
    write_subset(folder / "subset.jsonl", rows, chosen)
    write_json(folder / "selection.json", {**chosen.record.to_json(), **more, "ids": list(chosen.subset.ids)})


def write_selection_table(path: Path, rows: PoolTable, settled: ResolvedConstraints, chosen: Chosen) -> None:
    """Write one line per row of the pool: chosen ones with rank and gain, the others with what they would still add."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    subset, ids = chosen.subset, rows.ids
    rank = {item: place for place, item in enumerate(subset.ids, 1)}
    gain = dict(zip(subset.ids, subset.gains.tolist(), strict=True))
    removed = settled.removed
    reasons = (
        removed[item].reason() if item in removed else subset.reasons[item] + chosen.how_sure(place)
        for place, item in enumerate(ids)
    )
    numbers: Mapping[str, tuple[Sequence[float | None] | npt.NDArray[Any], Any]] = {
        "rank": ([rank.get(item) for item in ids], pa.int64()),
        "selected": ([item in rank for item in ids], pa.bool_()),
        "gain": ([gain.get(item) for item in ids], pa.float64()),
        "would_add": ([subset.final_gain.get(item) for item in ids], pa.float64()),
        "score": (chosen.score, pa.float64()),
        "stability": (_or_nothing(chosen.stability, len(ids)), pa.float64()),
    }
    # Texts part by part: a million sentences are never held as such.
    table = pa.table(
        {
            "id": pa.chunked_array(_parts(ids, text_column), pa.string()),
            "source": pa.chunked_array(_parts(rows.sources, text_column), pa.string()),
            **{name: number_column(*column) for name, column in numbers.items()},
            "reason": pa.chunked_array(_parts(reasons, text_column), pa.string()),
            "length": number_column(list(rows.length), pa.int64()),
        }
    )
    with atomic(path) as part, part.open("wb") as stream:
        pq.write_table(table, stream)
    pa.default_memory_pool().release_unused()


def _or_nothing(values: npt.NDArray[np.float64] | None, size: int) -> npt.NDArray[np.float64]:
    return np.full(size, np.nan) if values is None else values


def _parts(values: Iterable[str], column: Callable[[list[str]], Any]) -> Iterator[Any]:
    """Yield Arrow arrays of a few thousand values each."""
    rest = iter(values)
    while some := list(islice(rest, AT_ONCE)):
        yield column(some)


def write_subset(path: Path, rows: PoolTable, chosen: Chosen) -> None:
    """Write the chosen rows as they were, in rank order, one a line."""
    with atomic(path) as part, part.open("wb") as handle:
        places = rows.places(chosen.subset.ids)
        for at in ranges(len(places), WRITTEN_AT_ONCE):
            handle.writelines(raw.encode("utf-8") + b"\n" for raw in rows.at("raw", places[at]))


def _plain_controls(
    value_of: Callable[[list[str]], float], rows: PoolTable, settled: ResolvedConstraints, size: int, seed: int
) -> dict[str, float]:
    """Return the values of random, stratified and longest rows under the same rules; random is a mean over draws."""
    ids = rows.ids

    def value(order: list[str]) -> float:
        return value_of(settled.rules.take(order, settled.k))

    # In proportion by source as far as the selection's size goes, and anything after that where rules pass rows over.
    by_source = stratified_ids(ids, rows.sources, size, seed)
    taken = set(by_source)
    by_source += [item for item in random_ids(ids, len(ids), seed) if item not in taken]
    return {
        "random": float(np.mean([value(random_ids(ids, len(ids), seed + draw)) for draw in range(RANDOM_DRAWS)])),
        "stratified": value(by_source),
        "longest": value(longest_ids(ids, rows.length, len(ids))),
    }
