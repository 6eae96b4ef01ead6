"""Rows that a teacher takes once and keeps by: a sample of the pool, or those of a target set.

They are put on record in the teacher's folder, so that a pool may grow, and so that another process, which knows only the rows
that it measures, takes the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from nncift.core.fingerprints import fingerprint
from nncift.models.causal_lm import Row
from nncift.models.checkpoints import read_json
from nncift.storage.atomic import write_sealed

Kept = Mapping[str, Row]


class InWorkspace:
    """A teacher with a folder, `workspace`, for what must outlive a kill; None = nothing is kept."""

    workspace: Path | None

    def use_workspace(self, folder: Path | None) -> None:
        """Keep rows, and what is made of them, in this folder from now on."""
        self.workspace = folder

    def _in_workspace(self, name: str) -> Path | None:
        return None if self.workspace is None else self.workspace / name


def put(record: Path | None, key: str, rows: Kept) -> Kept:
    """Put rows on record, where there is a place for it, and return them. key: of all that decides how they are read."""
    if record is not None:
        record.parent.mkdir(parents=True, exist_ok=True)
        tokens = [row.record() for row in rows.values()]
        # Processes that begin at the same time take the same rows, and each puts them on record.
        own = record.with_name(f"{record.stem}-{os.getpid()}{record.suffix}")
        write_sealed(own, {"key": key, "ids": list(rows), "tokens": tokens})
        os.replace(own, record)
    return dict(rows)


def on_record(record: Path | None, key: Callable[[], str]) -> Kept | None:
    """Return the rows on record under a key, None where there are none. Raises DataError for a damaged record.

    key: asked for where there is a record alone, since a model's fingerprint may be part of it.
    """
    found = None if record is None else read_json(record)
    if found is None or found["key"] != key():
        return None
    rows = (Row(*tokens) for tokens in found["tokens"])
    return dict(zip(found["ids"], rows, strict=True))


def contents(rows: Kept | None) -> str | None:
    """Return a hash of what rows say, in their order; None where there are none."""
    return None if rows is None else fingerprint([row.record() for row in rows.values()])
