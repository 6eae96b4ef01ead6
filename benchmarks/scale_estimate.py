"""What ten million rows and 64 GPUs would take, on paper: `python benchmarks/scale_estimate.py [--rows 10000000] [--gpus 64]`.

Measured here, on generated rows: bytes of memory and on disk per row, and how fast one driver keeps chunks of labels and a shard
its pieces. The rest is arithmetic: passes from the plan, hours by assumed passes a second of a GPU, since none was at hand.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np

from nncift.config import RunSettings
from nncift.core.parallel import TaskGroup, TaskResult
from nncift.data import read
from nncift.data.pool import PoolTable
from nncift.distributed.piece_cache import PieceCache
from nncift.labels import LabelBudget, LabelFormat, PairLabelStore, RowLabelStore, grow, grow_rows
from nncift.labels.pair_labels import PAIR_FORMAT
from nncift.storage.atomic import write_json
from nncift.storage.run_directory import RunDir
from nncift.teachers import RowLabels

WORDS = (
    "the of a sort list name add sum red blue green cat dog bird sky sea tree house long short first last word".split()
)
RATES = (10, 50, 200)
"""Assumed passes a second of an 8B model on one GPU."""
DIM = 1024


def write_rows(path: Path, rows: int) -> None:
    """Write rows of about 80 words each."""
    random = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as stream:
        for number in range(rows):
            words = [WORDS[place] for place in random.integers(len(WORDS), size=80)]
            row = {"id": f"{number:08d}", "instruction": " ".join(words[:20]), "output": " ".join(words[20:])}
            stream.write(json.dumps(row) + "\n")


def measured(rows: int) -> dict[str, float]:
    """Return bytes per row and rates, measured in this process."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "pool.jsonl", rows)
        found["bytes_of_a_row_in_the_file"] = (folder / "pool.jsonl").stat().st_size / rows
        began = time.perf_counter()
        read(folder / "pool.jsonl")
        found["rows_read_a_second"] = rows / (time.perf_counter() - began)
        tracemalloc.start()
        pool = read(folder / "pool.jsonl")
        found["bytes_of_a_row_in_memory"] = tracemalloc.get_traced_memory()[0] / rows
        tracemalloc.stop()
        write_json(folder / "pool.json", {row.id: row.content_hash for row in pool})
        found["bytes_of_a_row_in_pool_json"] = (folder / "pool.json").stat().st_size / rows
        with RunDir(folder / "run", RunSettings()) as directory:
            PoolTable.of(pool).write(directory)
        found["bytes_of_a_row_in_rows_parquet"] = (folder / "run" / "rows.parquet").stat().st_size / rows
        store = PairLabelStore(folder / "labels")
        label_budget = LabelBudget(None, 2000, "scatter", 30, 20)
        store.adopt(grow(None, pool.ids, pool.ids, label_budget, 0, shared=True, relative=True), PAIR_FORMAT)
        found["bytes_of_a_row_in_a_plan"] = (folder / "labels" / "plan-000.json").stat().st_size / rows
        pending = list(store.pending())
        began = time.perf_counter()
        for chunk in pending:
            values = np.zeros((len(chunk.positions), 1), np.float32)
            store.write(chunk, RowLabels(values, 0, len(values), {"shortened": 0.0}), 0.0)
        store.flush()
        found["chunks_kept_a_second"] = len(pending) / (time.perf_counter() - began)
        found["measured_rows_kept_a_second"] = _rows_kept(folder / "rows", pool.ids)
        block = TaskResult({"vectors": np.ones((512, DIM), np.float32)})
        group, pieces = TaskGroup("embed", "embed", "key", ""), PieceCache(folder)
        began = time.perf_counter()
        with pieces.writing(group) as keep:
            for number in range(100):
                keep(str(number), block)
        found["gb_of_pieces_written_a_second"] = (
            100 * block.arrays["vectors"].nbytes / (time.perf_counter() - began) / 1e9
        )
        began = time.perf_counter()
        assert sum(1 for _ in pieces.read(group)) == 100
        found["gb_of_pieces_read_a_second"] = 100 * block.arrays["vectors"].nbytes / (time.perf_counter() - began) / 1e9
    return found


def _rows_kept(folder: Path, ids: tuple[str, ...]) -> float:
    """Return how many rows of a teacher that labels rows are kept a second, 8 numbers each, in chunks of 16."""
    store = RowLabelStore(folder)
    store.adopt(grow_rows(None, ids, ids, LabelBudget(0.9, None, "rows", 30, 20), 0, shared=True), LabelFormat(8))
    pending = list(store.pending())
    began = time.perf_counter()
    for chunk in pending:
        store.write(chunk, RowLabels(np.zeros((len(chunk.ids), 8), np.float32), 0, 0), 0.0)
    store.flush()
    return sum(len(chunk.ids) for chunk in pending) / (time.perf_counter() - began)


def passes(n: int) -> dict[str, int]:
    """Return passes of the 8B model by what is asked for; held-out items (50) and their few thousand pairs are left out."""
    return {
        "`--labels 2000000`, scatter: pairs, and each target once without an example": 4_000_000,
        "`--labels 20000000`, scatter": 20_000_000 + n,
        "`--labels 1%`, block or scatter: (n/100)² pairs": (n // 100) ** 2 + (n if n < 10**10 else 0),
        "`--features probe`: every row once": n,
        "LESS, `--labels 1%`, 4 checkpoints: rows, each forward and backward": 4 * (n // 100),
    }


def sizes(n: int, per: dict[str, float]) -> dict[str, float]:
    """Return gigabytes by what holds them."""
    return {
        f"disk: `embeddings.npy`, {DIM} numbers a row": n * DIM * 4 / 1e9,
        "disk: the same in the cache by content, and once more in shards until they are joined": 2 * n * DIM * 4 / 1e9,
        "disk: `probe.npy`, 2,825 numbers a row": n * 2825 * 4 / 1e9,
        "disk: `rows.parquet`": n * per["bytes_of_a_row_in_rows_parquet"] / 1e9,
        "disk: `pool.json`, and the ids of a label plan": n
        * (per["bytes_of_a_row_in_pool_json"] + per["bytes_of_a_row_in_a_plan"])
        / 1e9,
        "disk: 2 million labels, 18 bytes each, and 33 a chunk": 2e6 * (18 + 33) / 1e9,
        "memory: rows, in the driver and in every shard": n * per["bytes_of_a_row_in_memory"] / 1e9,
        "memory: the matrix of all pairs and its copy (without `--neighbours`)": 8 * n * n / 1e9,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--gpus", type=int, default=64)
    parser.add_argument("--measured-rows", type=int, default=10_000)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    n, per = given.rows, measured(given.measured_rows)
    record: dict[str, Any] = {
        "rows": n,
        "gpus": given.gpus,
        "measured": per,
        "passes": passes(n),
        "gigabytes": sizes(n, per),
    }
    if given.json:
        print(json.dumps(record))
        return
    for name, value in per.items():
        print(f"{name.replace('_', ' ')}: {value:,.1f}")
    print(
        "\n| asked for | passes | "
        + " | ".join(f"{rate} passes/s" for rate in RATES)
        + " |\n|---|---:|"
        + "---:|" * len(RATES)
    )
    for name, count in record["passes"].items():
        hours = " | ".join(f"{count / rate / given.gpus / 3600:,.2f} h" for rate in RATES)
        print(f"| {name} | {count:,} | {hours} |")
    print("\n| what | GB |\n|---|---:|")
    for name, size in record["gigabytes"].items():
        print(f"| {name} | {size:,.1f} |")


if __name__ == "__main__":
    main()
