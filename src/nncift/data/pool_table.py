"""The rows of a pool as a selection needs them, kept in the run so that choosing again reads no input file and no model."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from nncift.core.lazily import Lazily
from nncift.core.memory import pass_on
from nncift.data import Examples
from nncift.data.layout import value_at
from nncift.data.pool_file import NAME as FILE
from nncift.data.records import kept_row
from nncift.errors import DataError, UsageError
from nncift.storage import checksums
from nncift.storage.parquet import Column, read_columns

__all__ = ["FILE", "Rows"]


_NEEDED = ("axis", "id", "source", "content", "tokens", "response_chars", "raw")


@dataclass(frozen=True)
class Rows:
    """One entry per row of the pool. length: characters of the response; tokens: of the whole row, None where not counted.

    content: hash of what models see; raw: the original row as JSON text.
    """

    ids: tuple[str, ...]
    sources: tuple[str, ...]
    content: Sequence[str]
    length: Sequence[int]
    raw: Sequence[str]
    tokens: tuple[int, ...] | None = None

    @classmethod
    def of(cls, pool: Examples, tokens: Mapping[str, int] | None = None) -> Rows:
        """Return the rows of a pool."""
        return cls(
            pool.ids,
            tuple(row.source for row in pool),
            Lazily(attrgetter("content_hash"), pool.items),
            Lazily(lambda row: len(row.response), pool.items),
            Lazily(attrgetter("raw"), pool.items),
            None if tokens is None else tuple(tokens[row.id] for row in pool),
        )

    def places(self, ids: Iterable[str]) -> list[int]:
        """Return where some rows stand. Raises KeyError for an unknown id."""
        asked = list(ids)
        wanted = set(asked)
        found = {item: place for place, item in enumerate(self.ids) if item in wanted}
        return [found[item] for item in asked]

    def column(self, name: str) -> dict[str, str]:
        """Return the text of a column for every row: `file` is where it was read, other names are fields of the original row.

        `source` is the file too, unless all rows come from one file and have a column of this name; `row.NAME` is always the
        row's own column, `a.b` the field `b` of the object in `a`. Raises UsageError where a row lacks the column, and where
        `source` could mean both.
        """
        files = dict(zip(self.ids, self.sources, strict=True))
        if name == "file":
            return files
        if name == "source" and not (self.raw and "source" in kept_row(self.raw[0])):
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

    def without(self, ids: Collection[str]) -> Rows:
        """Return the rows but these."""
        keep = [place for place, item in enumerate(self.ids) if item not in ids]
        ids, sources = (tuple(part[i] for i in keep) for part in (self.ids, self.sources))
        content = Lazily(self.content.__getitem__, keep)
        raw = Lazily(self.raw.__getitem__, keep)
        tokens = None if self.tokens is None else tuple(self.tokens[i] for i in keep)
        return Rows(ids, sources, content, Lazily(self.length.__getitem__, keep), raw, tokens)

    @classmethod
    def load(cls, path: Path) -> Rows:
        """Read the sources of a run's rows file (`rows_file`). Raises DataError where it is missing or damaged."""
        import pyarrow as pa

        checksums.verify(path.parent, path.name)
        try:
            # Not read_table, whose data sets bring pandas along.
            table = read_columns(path, _NEEDED)
            # Sources come first: a slice is no second copy. Counted without pyarrow.compute, whose import ends the process where
            # it is refused memory.
            table = table.slice(0, sum(axis == "source" for axis in Column(table["axis"])))
            tokens: Sequence[int | None] = table["tokens"].to_pylist()
            counted = tuple(n for n in tokens if n is not None)
            return cls(
                tuple(table["id"].to_pylist()),
                tuple(map(sys.intern, Column(table["source"]))),
                Column(table["content"]),
                Column(table["response_chars"]),
                Column(table["raw"]),
                counted if len(counted) == len(tokens) else None,
            )
        except (OSError, KeyError, ValueError, pa.ArrowException) as error:
            pass_on(error)
            raise DataError(f"{str(path)!r} cannot be read ({error}); run the same `nncift run` again") from error
