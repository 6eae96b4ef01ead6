"""`rows.parquet` of a run: every usable row of both axes as it was read, so that a finished run explains itself alone.

`nncift select` reads it too, as `table.Rows`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

from nncift.core.memory import pass_on
from nncift.data import Example, Examples
from nncift.data.formats import parse, prompt_text
from nncift.data.layout import Layout
from nncift.data.records import kept_row
from nncift.data.turns import UnusableError
from nncift.errors import DataError
from nncift.storage import checksums
from nncift.storage.atomic import atomic
from nncift.storage.parquet import Column, FileColumn, read_columns
from nncift.storage.run_directory import RunDir

NAME, RAW = "rows.parquet", "raw"
GROUP = 1 << 15
"""Rows that are written at once."""


def write_rows_file(directory: RunDir, sources: Examples, targets: Examples | None, tokens: Mapping[str, int]) -> None:
    """Write the rows, sources first; a file that holds the same rows already stays as it is.

    tokens: of each source as a whole; none are known where the mapping is empty.
    """
    rows = [(axis, row) for axis, part in (("source", sources), ("target", targets or ())) for row in part]
    key = _fingerprint(rows, tokens)
    with directory.stage("rows", key, (NAME,)) as stage:
        if not stage.done:
            _write(directory.file(NAME), rows, tokens)


def _fingerprint(rows: Sequence[tuple[str, Example]], tokens: Mapping[str, int]) -> str:
    """Hash rows one by one: as one text, a million of them would take a gigabyte more."""
    digest = hashlib.sha256()
    for axis, row in rows:
        line = json.dumps([axis, row.id, row.source, row.raw, tokens.get(row.id)], ensure_ascii=True)
        digest.update(line.encode("ascii") + b"\n")
    return digest.hexdigest()[:16]


def _write(path: Path, rows: Sequence[tuple[str, Example]], tokens: Mapping[str, int]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [
            *((name, pa.string()) for name in ("axis", "id", "source")),
            ("line", pa.int64()),
            ("content", pa.string()),
            ("tokens", pa.int64()),
            ("turns", pa.int32()),
            ("prompt_chars", pa.int64()),
            ("response_chars", pa.int64()),
            ("raw", pa.string()),
        ]
    )
    with atomic(path) as part, pq.ParquetWriter(part, schema, compression="zstd") as writer:
        # Part by part, so that a million rows are never held as a table beside what they are.
        for start in range(0, len(rows), GROUP) or (0,):
            columns = _columns(rows[start : start + GROUP], tokens)
            writer.write_table(pa.table(dict(zip(schema.names, columns, strict=True)), schema=schema))
    pa.default_memory_pool().release_unused()


def _columns(rows: Sequence[tuple[str, Example]], tokens: Mapping[str, int]) -> list[list[Any]]:
    return [
        [axis for axis, _ in rows],
        [row.id for _, row in rows],
        [row.source for _, row in rows],
        [row.line for _, row in rows],
        [row.content_hash for _, row in rows],
        [tokens.get(row.id) for _, row in rows],
        [len(row.messages) + 1 for _, row in rows],
        [len(row.prompt) for _, row in rows],
        [len(row.response) for _, row in rows],
        [row.raw for _, row in rows],
    ]


@dataclass(frozen=True)
class RowsFile:
    """The rows of a finished run by id. Their texts stay in the file until they are asked for, the other columns in Arrow."""

    sources: tuple[str, ...]
    targets: tuple[str, ...] | None
    columns: Mapping[str, Sequence[Any]]
    place: Mapping[str, int]
    layout: Layout

    @classmethod
    def open(cls, folder: Path, layout: Layout) -> RowsFile:
        """Read the file. Raises DataError where there is none, or where it is damaged."""
        import pyarrow as pa

        checksums.verify(folder, NAME)
        path = folder / NAME
        try:
            table = read_columns(path, without=(RAW,))
            ids: list[str] = table["id"].to_pylist()
            sources = tuple(compress(ids, (axis == "source" for axis in Column(table["axis"]))))
            targets = tuple(compress(ids, (axis == "target" for axis in Column(table["axis"]))))
            columns: dict[str, Sequence[Any]] = {
                name: Column(table[name]) for name in table.column_names if name not in ("axis", "id")
            }
            columns[RAW] = FileColumn(path, RAW)
        except (OSError, KeyError, ValueError, pa.ArrowException) as error:
            pass_on(error)
            raise DataError(
                f"{str(path)!r} cannot be read ({str(error).splitlines()[0]}); run the same command again, which writes it"
            ) from error
        return cls(sources, targets or None, columns, {name: at for at, name in enumerate(ids)}, layout)

    def column(self, name: str, ids: Iterable[str]) -> list[Any]:
        """Return a column's values for these ids."""
        values, places = self.columns[name], [self.place[item] for item in ids]
        return values.at(places) if isinstance(values, Column | FileColumn) else [values[place] for place in places]

    def keep(self, ids: Iterable[str]) -> None:
        """Hold the texts of some rows from now on, which will be asked for one by one and in any order."""
        raw = self.columns[RAW]
        if isinstance(raw, FileColumn):
            raw.keep([self.place[item] for item in ids])

    @property
    def pool(self) -> Examples:
        """The sources as they were read."""
        return Examples(tuple(map(self.example, self.sources)))

    @property
    def wanted(self) -> Examples | None:
        """The target set as it was read; None where the pool's rows are the targets."""
        return None if self.targets is None else Examples(tuple(map(self.example, self.targets)))

    def example(self, item: str) -> Example:
        """Return a row as it was read. Raises KeyError for an unknown id, DataError for a damaged row."""
        at = self.place[item]
        made = Example(item, "", "", (), self.columns["source"][at], self.columns["line"][at], self.columns[RAW][at])
        try:
            record = parse(kept_row(made.raw), self.layout.of(made.source))
        except UnusableError as error:
            raise DataError(f"the row {item!r} that the run kept is damaged: {error}; run it again") from error
        return Example(
            item, prompt_text(record.messages), record.response, record.messages, made.source, made.line, made.raw
        )
