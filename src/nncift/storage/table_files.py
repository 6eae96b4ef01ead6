"""Tables as files: what is written follows from the suffix."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from nncift.errors import UsageError
from nncift.storage.atomic import atomic

TABLE_SUFFIXES = (".parquet", ".csv", ".jsonl")


def check_table_suffix(out: Path) -> None:
    """Raise UsageError for a file whose suffix stands for no table."""
    if out.suffix.lower() not in TABLE_SUFFIXES:
        raise UsageError(f"--out was given as {str(out)!r}; expected a name that ends in {', '.join(TABLE_SUFFIXES)}")


def write_table(table: Any, out: Path) -> None:
    """Write an Arrow table as Parquet, as CSV (a null is an empty cell) or as JSON lines. Raises OSError."""
    with atomic(out) as part:
        if out.suffix.lower() == ".parquet":
            import pyarrow.parquet as pq

            with part.open("wb") as file:
                pq.write_table(table, file)
            return
        with part.open("w", encoding="utf-8", newline="") as stream:
            rows = (row for batch in table.to_batches() for row in batch.to_pylist())
            if out.suffix.lower() == ".csv":
                writer = csv.DictWriter(stream, table.column_names, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
            else:
                stream.writelines(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
