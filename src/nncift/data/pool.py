"""The rows of a pool, and of its target set, as one table: made of examples, or read from `rows.parquet` of a run.

Selections, reports and explanations read rows here and no input file. Columns are made when they are asked for, or held in
Arrow; the texts of a finished run stay in its file.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any

from nncift.core.lazily import Lazily
from nncift.core.memory import pass_on
from nncift.core.texts import first_line, listed
from nncift.data.examples import Example, Examples
from nncift.data.formats import parse, prompt_text
from nncift.data.layout import Layout, value_at
from nncift.data.records import kept_row
from nncift.data.turns import UnusableError
from nncift.errors import DataError, UsageError
from nncift.storage import checksums
from nncift.storage.atomic import atomic
from nncift.storage.parquet import Column, FileColumn, check_types, parquet_file, read_columns
from nncift.storage.run_directory import RunDir

FILE = "rows.parquet"
GROUP = 1 << 15
"""Rows that are written at once."""

EACH_TELLS = Layout(None)
"""The layout of rows whose own columns tell their format."""

_OF_EXAMPLES: Mapping[str, Callable[[Example], Any]] = {
    "source": attrgetter("source"),
    "line": attrgetter("line"),
    "content": attrgetter("content_hash"),
    "turns": lambda row: len(row.messages) + 1,
    "prompt_chars": lambda row: len(row.prompt),
    "response_chars": lambda row: len(row.response),
    "raw": attrgetter("raw"),
}


_TYPES = {
    "axis": "string",
    "id": "string",
    "source": "string",
    "line": "int64",
    "content": "string",
    "tokens": "int64",
    "turns": "int32",
    "prompt_chars": "int64",
    "response_chars": "int64",
    "raw": "string",
}
"""Columns of the file, and their types in Arrow."""

_THERE = ("source", "content", "turns", "prompt_chars", "response_chars")
"""Those that every row has a value of."""


@dataclass(frozen=True)
class PoolTable:
    """One entry per row of the pool.

    columns, each `(n,)`: `source` where the row was read, `line` there, `content` hash of what models see, `tokens` of the whole
    row (None where not counted), `turns`, `prompt_chars`, `response_chars`, `raw` the original row as JSON text.
    layout: how rows say what they say. targets: the rows of the target set, None where there is none.
    """

    ids: tuple[str, ...]
    columns: Mapping[str, Sequence[Any]]
    layout: Layout = EACH_TELLS
    targets: PoolTable | None = None

    @classmethod
    def of(cls, pool: Examples, targets: Examples | None = None, tokens: Mapping[str, int] | None = None) -> PoolTable:
        """Return the rows of a pool. tokens: of each of its rows as a whole."""
        columns: dict[str, Sequence[Any]] = {name: Lazily(make, pool.items) for name, make in _OF_EXAMPLES.items()}
        columns["tokens"] = Lazily((tokens or {}).get, pool.ids)
        return cls(pool.ids, columns, targets=None if targets is None else cls.of(targets))

    @classmethod
    def open(cls, run: Path, layout: Layout = EACH_TELLS) -> PoolTable:
        """Read the rows of a run. Raises DataError where its file is missing or damaged."""
        import pyarrow as pa

        path = run / FILE
        checksums.verify(run, FILE)
        try:
            # Not read_table, whose data sets bring pandas along.
            table = read_columns(path, without=("raw",))
            check_types(table, _TYPES)
            if str(kind := parquet_file(path).schema_arrow.field("raw").type) != _TYPES["raw"]:
                raise ValueError(f"its column 'raw' holds {kind}, expected string")
            # Sources come first. Counted without pyarrow.compute, whose import ends the process where it is refused memory.
            sources = sum(axis == "source" for axis in Column(table["axis"]))
            if any(axis == "source" for axis in Column(table["axis"].slice(sources))):
                raise ValueError("targets stand among its sources")
            parts = [(table.slice(0, sources), FileColumn(path, "raw", range(sources)))]
            if sources < len(table):
                parts.append((table.slice(sources), FileColumn(path, "raw", range(sources, len(table)))))
            pool, *targets = (
                cls(
                    tuple(part["id"].to_pylist()),
                    {name: Column(part[name]) for name in (*_OF_EXAMPLES, "tokens") if name != "raw"} | {"raw": raw},
                    layout,
                )
                for part, raw in parts
            )
            for found in (pool, *targets):
                if (
                    None in found.ids
                    or len(set(found.ids)) < len(found.ids)
                    or any(table[name].null_count for name in _THERE)
                ):
                    raise ValueError(f"a row has the id of another, or no id, {listed(_THERE)}")
        except (OSError, KeyError, ValueError, pa.ArrowException) as error:
            pass_on(error)
            raise DataError(
                f"{str(path)!r} cannot be read ({first_line(error)}); run the same `nncift run` again, which writes it"
            ) from error
        return replace(pool, targets=targets[0]) if targets else pool

    def write(self, directory: RunDir) -> None:
        """Write `rows.parquet`, the pool's rows first; a file that holds the same rows already stays as it is."""
        parts = [("source", self), *([("target", self.targets)] if self.targets else [])]
        with directory.stage("rows", _fingerprint(parts), (FILE,)) as stage:
            if not stage.done:
                _write(directory.file(FILE), parts)

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """The name of the file or data set that each row was read from."""
        return tuple(map(sys.intern, self.columns["source"]))

    @property
    def content(self) -> Sequence[str]:
        """Hashes of what models see of each row."""
        return self.columns["content"]

    @property
    def length(self) -> Sequence[int]:
        """Characters of each row's response."""
        return self.columns["response_chars"]

    @property
    def raw(self) -> Sequence[str]:
        """The original rows as JSON text."""
        return self.columns["raw"]

    @cached_property
    def tokens(self) -> tuple[int, ...] | None:
        """Tokens of each row as a whole, None where they were not counted."""
        found = tuple(count for count in self.columns["tokens"] if count is not None)
        return found if len(found) == len(self.ids) else None

    @property
    def target_ids(self) -> tuple[str, ...] | None:
        """Ids of the target set, None where the pool's rows are the targets."""
        return None if self.targets is None else self.targets.ids

    @cached_property
    def _place(self) -> dict[str, int]:
        return {item: place for place, item in enumerate(self.ids)}

    def places(self, ids: Iterable[str]) -> list[int]:
        """Return where some rows stand. Raises KeyError for an unknown id."""
        asked = list(ids)
        wanted = set(asked)
        found = {item: place for place, item in enumerate(self.ids) if item in wanted}
        return [found[item] for item in asked]

    def column(self, name: str, ids: Iterable[str]) -> list[Any]:
        """Return a column's values for some rows. Raises KeyError for an unknown id."""
        return self.at(name, [self._place[item] for item in ids])

    def at(self, name: str, places: Sequence[int]) -> list[Any]:
        """Return a column's values at some places (`places`)."""
        values = self.columns[name]
        return values.at(places) if isinstance(values, Column | FileColumn) else [values[place] for place in places]

    def keep(self, ids: Iterable[str]) -> None:
        """Hold the texts of some rows from now on, which will be asked for one by one and in any order."""
        if isinstance(self.raw, FileColumn):
            self.raw.keep([self._place[item] for item in ids])

    def without(self, ids: Collection[str]) -> PoolTable:
        """Return the rows but these."""
        if not ids:
            return self
        kept = [place for place, item in enumerate(self.ids) if item not in ids]
        columns = {name: Lazily(column.__getitem__, kept) for name, column in self.columns.items()}
        return PoolTable(tuple(self.ids[place] for place in kept), columns, self.layout, self.targets)

    @property
    def examples(self) -> Examples:
        """The pool's rows as they were read."""
        return Examples(tuple(map(self.example, self.ids)))

    @property
    def target_examples(self) -> Examples | None:
        """The target set as it was read, None where there is none."""
        return None if self.targets is None else self.targets.examples

    def example(self, item: str) -> Example:
        """Return a row of the pool or of the target set as it was read.

        Raises KeyError for an unknown id, DataError for a damaged row.
        """
        if self.targets is not None and item not in self._place:
            return self.targets.example(item)
        at = self._place[item]
        source, raw = self.columns["source"][at], self.raw[at]
        try:
            record = parse(kept_row(raw), self.layout.of(source))
        except UnusableError as error:
            raise DataError(f"the row {item!r} that the run kept is damaged: {error}; run it again") from error
        prompt = prompt_text(record.messages)
        return Example(item, prompt, record.response, record.messages, source, self.columns["line"][at], raw)

    def texts(self, name: str) -> dict[str, str]:
        """Return the text of a column for every row: `file` is where it was read, other names are fields of the original row.

        `source` is the file too, unless all rows come from one file and have a column of this name; `row.NAME` is always the
        row's own column, `a.b` the field `b` of the object in `a`. Raises UsageError where a row lacks the column, and where
        `source` could mean both.
        """
        files = dict(zip(self.ids, self.sources, strict=True))
        if name == "file":
            return files
        if name == "source" and not (self.ids and "source" in kept_row(self.raw[0])):
            return files
        own = self._own(name.removeprefix("row."))
        if name == "source":
            if len(own) < len(self.ids):
                return files
            if len(set(self.sources)) > 1:
                raise UsageError(
                    "--quota names `source`, and rows from several files have a column of this name too; write `file` for the "
                    "file, or `row.source` for the column"
                )
            return own
        lacking = [item for item in self.ids if item not in own]
        if lacking:
            raise UsageError(
                f"--quota names the column {name!r}, and {len(lacking)} of {len(self.ids)} rows lack it, the first "
                f"{lacking[0]!r}; there is also `file`, where each row was read"
            )
        return own

    def _own(self, name: str) -> dict[str, str]:
        """Return the text of a column of the rows' own, of those that have it."""
        found: dict[str, str] = {}
        for item, raw in zip(self.ids, self.raw, strict=True):
            row = kept_row(raw)
            value = row[name] if name in row else value_at(row, name)
            if name in row or value is not None:
                found[item] = value if isinstance(value, str) else json.dumps(value)
        return found


def _fingerprint(parts: Sequence[tuple[str, PoolTable]]) -> str:
    """Hash rows one by one: as one text, a million of them would take a gigabyte more."""
    digest = hashlib.sha256()
    for axis, table in parts:
        columns = (table.ids, table.columns["source"], table.raw, table.columns["tokens"])
        for row in zip(*columns, strict=True):
            digest.update(json.dumps([axis, *row], ensure_ascii=True).encode("ascii") + b"\n")
    return digest.hexdigest()[:16]


def _write(path: Path, parts: Sequence[tuple[str, PoolTable]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in _TYPES.items()])
    with (
        atomic(path) as part,
        part.open("wb") as stream,
        pq.ParquetWriter(stream, schema, compression="zstd") as writer,
    ):
        for columns in _groups(parts):
            writer.write_table(pa.table({name: list(columns[name]) for name in schema.names}, schema=schema))
    pa.default_memory_pool().release_unused()


def _groups(parts: Sequence[tuple[str, PoolTable]]) -> Iterator[dict[str, Sequence[Any]]]:
    """Yield columns of so many rows that a million of them are never held as a table beside what they are."""
    for axis, table in parts:
        for start in range(0, len(table.ids), GROUP):
            some = slice(start, start + GROUP)
            ids = table.ids[some]
            yield {"axis": [axis] * len(ids), "id": ids, **{name: held[some] for name, held in table.columns.items()}}
