"""Real worlds: short rows of instruction files whose utilities by a real model are all known (see benchmarks/real.py).

A world is a folder: `rows.jsonl` (the larger pool, whose first rows are the smaller one), `world.json`, and arrays beside it, of
which `(target, source)` are the axes: `less.npy`, `delift.npy`, `text.npy`, `part.npy`, `probe.npy`. What takes long is made in
pieces, so that it goes on after a kill and two processes can share it.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from judging import World

from nncift.core.fingerprints import fingerprint
from nncift.core.pairs import UtilityMatrix
from nncift.core.seeds import shuffled
from nncift.data import Example, Examples, read
from nncift.distributed.shards import Shard
from nncift.errors import DataError, UsageError
from nncift.labels.vectors import Vectors
from nncift.models.causal_lm import CausalLM
from nncift.models.embedding_cache import EmbeddingCache
from nncift.models.encoders import create
from nncift.models.probe import SKETCH, Probe
from nncift.models.views import OUTPUT, TEXT, Views
from nncift.storage.atomic import atomic, cache_folder, digest, read_json, write_json, write_text
from nncift.storage.locks import locked
from nncift.storage.vector_store import load_array
from nncift.teachers import Chunk, FeatureTeacher
from nncift.teachers.delift import Delift
from nncift.teachers.ekfac import EkFac
from nncift.teachers.gist import Gist
from nncift.teachers.less import Less
from nncift.teachers.less_features import GradientFeatures

Floats = npt.NDArray[np.float32]

SOURCES = {
    "alpaca": "alpaca_labeled_dev",
    "gsm8k": "gsm8k_train",
    "t0": "t0_sample_dev",
    "codegen": "gpteacher_codegen",
    "roleplay": "gpteacher_roleplay",
}
"""Short names of the sources, and the files that they are read from."""

POOLS = (240, 600)
"""Rows of the pools, as many of each source; the smaller one is the start of the larger."""

PAIRWISE = 70
"""Rows, all of the smaller pool, whose pairs DELIFT labels."""

SHORT = (20, 128)
"""Tokens of a row's texts, from and to."""

PROJECTION = 65536
"""Dimensions of LESS's features: a narrower projection would be noise in what is taken for the truth."""

PARTS = ("text", "part", "probe", "less", "delift")
MORE = {"ekfac": "EK-FAC", "gist": "GIST"}
"""Other truths, over the smaller pool, by the name of their array; they are made where they are named."""

DIRECTIONS = 150
"""Rows whose gradients are GIST's directions, those behind the smaller pool."""

PART = 0.45
"""Share of each row that the probe of `part` reads: what a run of many rows affords by default."""

FEATURES = {"text": "text", "part": f"probe of {100 * PART:.0f} %", "probe": "probe"}
"""What students read, by the array that it comes from; `text` is read with both probes."""

SEED = 0
WHOLE = Shard(1, 1)


@dataclass(frozen=True)
class Pieces:
    """An array that is made in pieces. make: returns the rows of one piece. join: makes the array of all of them."""

    folder: Path
    count: int
    make: Callable[[int], Floats]
    join: Callable[[Sequence[Floats]], Floats]

    def path(self, number: int) -> Path:
        """Where a piece lies."""
        return self.folder / f"{number:03d}.npy"

    def fill(self, shard: Shard) -> None:
        """Make this shard's pieces that are not there yet."""
        self.folder.mkdir(parents=True, exist_ok=True)
        mine = [number for number in range(self.count) if shard.has(number)]
        lacking = [number for number in mine if not self.path(number).exists()]
        began = time.perf_counter()
        for done, number in enumerate(lacking, 1):
            _save(self.path(number), self.make(number))
            seconds = time.perf_counter() - began
            print(f"{self.folder.name}: {done} of {len(lacking)} pieces, {seconds:.0f} s", file=sys.stderr, flush=True)

    def joined(self, path: Path) -> bool:
        """Put all pieces together at a path, once; tell whether they were all there."""
        with locked(path.with_suffix(".lock")):
            if not path.exists():
                if not all(self.path(number).exists() for number in range(self.count)):
                    return False
                _save(path, self.join([load_array(self.path(number)) for number in range(self.count)]))
            shutil.rmtree(self.folder, ignore_errors=True)
        return True


@dataclass(frozen=True)
class RealWorld:
    """A folder of rows and what a model makes of them."""

    folder: Path

    @cached_property
    def about(self) -> Mapping[str, Any]:
        """What the world was made of. Raises UsageError where there is none."""
        try:
            found: Mapping[str, Any] = read_json(self.folder / "world.json")
        except FileNotFoundError as error:
            raise UsageError(f"there is no world in {str(self.folder)!r}; make it first (real.py make)") from error
        return found

    @cached_property
    def rows(self) -> Examples:
        """All rows, in the order of the arrays."""
        return read(str(self.folder / "rows.jsonl"))

    @property
    def sizes(self) -> dict[str, int]:
        """Numbers that tables name: parameters of the model, tokens of the rows from and to, dimensions of LESS."""
        model = self.about["model"]
        return {
            "parameters": model["parameters"],
            "low": SHORT[0],
            "high": SHORT[1],
            "projection": self.about["projection"],
        }

    @property
    def pairwise_ids(self) -> tuple[str, ...]:
        """Ids of the rows on both axes of DELIFT's utilities."""
        per_source = PAIRWISE // len(SOURCES)
        order = shuffled(self.rows.ids[: POOLS[0]], SEED, "pairwise")
        chosen = {item for name in SOURCES for item in [row for row in order if source_of(row) == name][:per_source]}
        return tuple(item for item in self.rows.ids if item in chosen)

    def array(self, part: str) -> Path:
        """Where the array of a part lies."""
        return self.folder / f"{part}.npy"

    def worlds(self, parts: Sequence[str] = PARTS) -> Iterator[World]:
        """Yield what can be judged: LESS on both pools, DELIFT on its rows, each where it was made."""
        ids, model = self.rows.ids, self.about["model"]["name"]
        if "less" in parts and self.array("less").exists():
            whole = load_array(self.array("less"))
            for size in POOLS:
                yield self._world(f"LESS, {size} rows", ids[:size], whole[:size, :size], model)
        if "delift" in parts and self.array("delift").exists():
            values = load_array(self.array("delift"))
            yield self._world(f"DELIFT, {PAIRWISE} rows", self.pairwise_ids, values, model)
        for part, name in MORE.items():
            if part in parts and self.array(part).exists():
                yield self._world(f"{name}, {POOLS[0]} rows", ids[: POOLS[0]], load_array(self.array(part)), model)

    def _world(self, name: str, ids: Sequence[str], values: Floats, model: str) -> World:
        matrix = np.asfortranarray(values.copy())
        np.fill_diagonal(matrix, np.nan)
        place = {item: row for row, item in enumerate(self.rows.ids)}
        at = [place[item] for item in ids]
        text = load_array(self.array("text"))[at]
        views = {TEXT: text.shape[1]}
        if self.about["views"][OUTPUT] != SKETCH:
            raise UsageError(
                "the probe of this world was made by another version of the probe; make it again: real.py make"
            )
        vectors = {"text": Vectors(text, text, Views.of(views))}
        for part in ("part", "probe"):
            if self.array(part).exists():
                both = np.concatenate([text, load_array(self.array(part))[at]], axis=1, dtype=np.float32)
                vectors[FEATURES[part]] = Vectors(both, both, Views.of({**views, **self.about["views"]}))
        return World(name, UtilityMatrix(tuple(ids), tuple(ids), matrix), vectors, f"{name} by {model}")


def default_folder(model: str) -> Path:
    """Return where the world of a model lies unless it is said."""
    return cache_folder() / "worlds" / Path(model).name


def source_of(item: str) -> str:
    """Return the short name of the source of a row."""
    return item.rpartition("-")[0]


def make(maker: Maker, data: Path, parts: Sequence[str] = PARTS, shard: Shard = WHOLE) -> bool:
    """Make what a world lacks, or a shard's share of it; tell whether all of the parts are there now."""
    maker.folder.mkdir(parents=True, exist_ok=True)
    with locked(maker.folder / "rows.lock"):
        maker.check_or_describe(data)
    world, whole = RealWorld(maker.folder), True
    for part in parts:
        if world.array(part).exists():
            continue
        pieces: Pieces = getattr(maker, part)(world)
        pieces.fill(shard)
        whole = pieces.joined(world.array(part)) and whole
    return whole


@dataclass(frozen=True)
class Maker:
    """Makes the parts of a world with a loaded model."""

    folder: Path
    lm: CausalLM
    encoder: str = "minilm"

    def check_or_describe(self, data: Path) -> None:
        """Draw the rows and describe the world, where that was not done. Raises UsageError where it is another model's."""
        path = self.folder / "world.json"
        if path.exists():
            described = read_json(path)
            known = described["model"]
            if known["fingerprint"] != self.lm.fingerprint:
                raise UsageError(
                    f"the world in {str(self.folder)!r} is that of {known['name']!r}; this is another model: give another --world"
                )
            views = Probe(self.lm).views.to_json()
            if described["views"] != views and (self.folder / "probe.npy").exists():
                raise UsageError(
                    f"the probe of the world in {str(self.folder)!r} was made by another version of the probe; delete "
                    f"{str(self.folder / 'probe.npy')!r} and make it again (real.py make --only probe)"
                )
            write_json(path, {**described, "views": views})
            return
        drawn = draw_rows(data, self.lm)
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in drawn)
        write_text(self.folder / "rows.jsonl", lines)
        parameters = int(self.lm.model.num_parameters())
        files = {name: digest(_file(data, stem)) for name, stem in SOURCES.items()}
        write_json(
            path,
            {
                "model": {"name": self.lm.name, "fingerprint": self.lm.fingerprint, "parameters": parameters},
                "views": Probe(self.lm).views.to_json(),
                "projection": PROJECTION,
                "seed": SEED,
                "files": files,
                "tokens": sum(row["tokens"] for row in drawn),
            },
        )

    def text(self, world: RealWorld) -> Pieces:
        """Embeddings of all rows, `(n_rows, dim)`."""
        encoder = EmbeddingCache(create(self.encoder, device="cpu"))
        return Pieces(
            self._pieces("text"),
            1,
            lambda number: encoder.embed([row.text for row in world.rows]).vectors,
            np.concatenate,
        )

    def probe(self, world: RealWorld) -> Pieces:
        """Probe features of all rows, `(n_rows, dim)`."""
        return self._probed("probe", Probe(self.lm), world)

    def part(self, world: RealWorld) -> Pieces:
        """Features of a probe that reads a part of each row, `(n_rows, dim)`."""
        return self._probed("part", Probe(self.lm, share=PART), world)

    def _probed(self, part: str, probe: Probe, world: RealWorld) -> Pieces:
        groups, dim = _groups(tuple(world.rows), 40), probe.views.dim
        return Pieces(
            self._pieces(part, probe.describe()),
            len(groups),
            lambda number: probe.read(groups[number])[0][:, :dim],
            np.concatenate,
        )

    def less(self, world: RealWorld) -> Pieces:
        """LESS with one checkpoint: all pairs follow from every row's gradient and update."""
        teacher = Less(self.lm, projection=PROJECTION, epochs=1, seed=SEED, workspace=self.folder / "less")
        _check_accepted(teacher.prepare(world.rows), self.lm)
        with locked(self.folder / "warmup.lock"):
            teacher.warm_up()
        groups = _groups(world.rows.ids, 24)

        def join(parts: Sequence[Floats]) -> Floats:
            features = np.concatenate(parts)
            return GradientFeatures(1, PROJECTION).utility(features, features, [1.0])

        pieces = self._pieces("less", teacher.describe())
        return Pieces(pieces, len(groups), lambda number: teacher.measure(groups[number]).values, join)

    def ekfac(self, world: RealWorld) -> Pieces:
        """EK-FAC over the smaller pool with its defaults and factors of its own rows."""
        rows = world.rows.subset(world.rows.ids[: POOLS[0]])
        teacher = EkFac(self.lm, seed=SEED, workspace=self.folder / "ekfac")
        _check_accepted(teacher.prepare(rows), self.lm)
        return self._by_row("ekfac", teacher, rows.ids)

    def gist(self, world: RealWorld) -> Pieces:
        """GIST with one checkpoint over the smaller pool, along the gradients of rows behind it."""
        first, last = POOLS[0], POOLS[0] + DIRECTIONS
        teacher = Gist(self.lm, epochs=1, seed=SEED, workspace=self.folder / "less")
        _check_accepted(teacher.prepare(world.rows), self.lm)
        teacher.aim(world.rows.subset(world.rows.ids[first:last]))
        return self._by_row("gist", teacher, world.rows.ids[:first])

    def _by_row(self, part: str, teacher: FeatureTeacher, ids: Sequence[str]) -> Pieces:
        groups = _groups(ids, 24)

        def join(parts: Sequence[Floats]) -> Floats:
            features = np.concatenate(parts)
            return np.asarray(teacher.utility(features, features), np.float32)

        pieces = self._pieces(part, teacher.describe())
        return Pieces(pieces, len(groups), lambda number: teacher.measure(groups[number]).values, join)

    def delift(self, world: RealWorld) -> Pieces:
        """DELIFT of every pair: a piece has one example in front of all targets, the first none."""
        ids = world.pairwise_ids
        teacher = Delift(self.lm)
        _check_accepted(teacher.prepare(world.rows.subset(ids)), self.lm)
        fronts: list[str | None] = [None, *ids]

        def join(parts: Sequence[Floats]) -> Floats:
            raw = np.concatenate(parts)
            return np.asarray(raw[0][:, None] - raw[1:].T, np.float32)

        def label(number: int) -> Floats:
            return np.asarray(teacher.label(Chunk(number, fronts[number], ids)).values[None], np.float32)

        return Pieces(self._pieces("delift", teacher.describe()), len(fronts), label, join)

    def _pieces(self, part: str, described: Mapping[str, Any] | None = None) -> Path:
        """Where pieces lie: what is made otherwise is not mixed with what is there."""
        return (
            self.folder / "pieces" / f"{part}-{fingerprint(dict(described or {}), digest(self.folder / 'rows.jsonl'))}"
        )


def draw_rows(data: Path, lm: CausalLM) -> list[dict[str, Any]]:
    """Return the rows of the larger pool, as many of each source, those of the smaller one first; drawn by the seed."""
    each = max(POOLS) // len(SOURCES)
    edges = [0, *(size // len(SOURCES) for size in POOLS)]
    drawn = {name: _drawn(name, _file(data, stem), lm, each) for name, stem in SOURCES.items()}
    rows = []
    for start, end in pairwise(edges):
        part = {row["id"]: row for of in drawn.values() for row in of[start:end]}
        rows += [part[item] for item in shuffled(part, SEED, "order")]
    return rows


def _drawn(name: str, file: Path, lm: CausalLM, each: int) -> list[dict[str, Any]]:
    examples = read(str(file))
    found: dict[str, dict[str, Any]] = {}
    for item in shuffled(examples.ids, SEED, "real world"):
        example = examples.by_id(item)
        tokens = _tokens(example, lm)
        if not example.response.strip() or not SHORT[0] <= tokens <= SHORT[1] or example.content_hash in found:
            continue
        turns = [{"role": turn.role, "content": turn.content} for turn in example.messages]
        turns.append({"role": "assistant", "content": example.response})
        found[example.content_hash] = {"id": f"{name}-{len(found):03d}", "messages": turns, "tokens": tokens}
        if len(found) == each:
            return list(found.values())
    raise DataError(
        f"{str(file)!r} has {len(found)} different rows of {SHORT[0]} to {SHORT[1]} tokens, and {each} are needed"
    )


def _tokens(example: Example, lm: CausalLM) -> int:
    text = "\n".join([*(turn.content for turn in example.messages), example.response])
    return len(lm.tokenizer(text, split_special_tokens=True, verbose=False)["input_ids"])


def _file(data: Path, stem: str) -> Path:
    found = sorted(data.glob(f"{stem}.json*")) + sorted(data.glob(f"{stem}.parquet"))
    if not found:
        raise UsageError(f"there is no {stem}.jsonl in {str(data)!r}; expected {', '.join(SOURCES.values())}")
    return found[0]


def _check_accepted(rejected: Sequence[Any], lm: CausalLM) -> None:
    if rejected:
        raise DataError(f"{lm.name!r} cannot read {len(rejected)} of the rows, the first: {rejected[0]}")


def _groups(items: Sequence[Any], size: int) -> list[Any]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _save(path: Path, values: Floats) -> None:
    with atomic(path) as part, part.open("wb") as stream:
        np.save(stream, np.asarray(values, np.float32))
