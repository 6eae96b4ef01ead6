"""A finished run as export reads it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that lays out what export reads of a finished run."""

    def make(*rows: dict[str, Any], **settings: Any) -> Path:
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        ids = [f"id-{place}" for place in range(len(rows))]
        # dict[str, Any]s of the pool stand in another order than that of their ranks, and one is not selected.
        order = [*reversed(range(len(rows)))]
        table = pa.table(
            {
                "id": [*(ids[k] for k in order), "dropped"],
                "rank": pa.array([*(k + 1 for k in order), None], pa.int64()),
                "selected": [*(True for _ in order), False],
                "source": [*("p" for _ in order), "p"],
                "score": [*(1 / (k + 1) for k in order), 0.0],
                "gain": pa.array([*(0.5 for _ in order), None], pa.float64()),
            }
        )
        pq.write_table(table, folder / "selection.parquet")
        (folder / "subset.jsonl").write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
        )
        (folder / "manifest.yaml").write_text(yaml.safe_dump({"pool": ["p.jsonl"], **settings}))
        return folder

    return make
