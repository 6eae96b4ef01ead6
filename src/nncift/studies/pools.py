"""The rows of a study: made or read once, split, and written beside its results."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from nncift.core.seeds import shuffled
from nncift.data import Examples, read
from nncift.demo import make_world, model_path
from nncift.errors import UsageError
from nncift.storage.atomic import write_text
from nncift.studies.grid import Pool

DEMO = "demo"


@dataclass(frozen=True)
class Ready:
    """A pool on disk. files: of the pool; test: held-out rows; truth: what is known of every row, for a generated world."""

    name: str
    files: tuple[str, ...]
    test: str | None
    truth: Path | None
    model: str | None
    small_model: str | None


def prepare(name: str, pool: Pool, folder: Path) -> Ready:
    """Write a pool's rows and its test rows into a folder; the same bytes every time.

    Raises the errors of reading, and UsageError where more rows are held out than there are.
    """
    model = str(model_path()) if pool.model == DEMO else pool.model
    if pool.world is not None:
        world = make_world(pool.world.rows, pool.world.seed, test_rows=pool.world.test_rows)
        files = world.write(folder)
        return Ready(name, (str(files.pool),), str(files.test), files.truth, model, pool.small_model)
    rows = read(*pool.files, limit=pool.limit, seed=0)
    if pool.hold_out >= len(rows):
        raise UsageError(f"pool {name!r} holds out {pool.hold_out} rows, and there are {len(rows)}")
    held = set(shuffled(rows.ids, 0, "study", "hold out")[: pool.hold_out])
    test = _write(folder / "test.jsonl", Examples(tuple(row for row in rows if row.id in held))) if held else pool.test
    kept = Examples(tuple(row for row in rows if row.id not in held))
    return Ready(name, write_pool(folder / "pool", kept), test, None, model, pool.small_model)


def write_pool(folder: Path, rows: Examples) -> tuple[str, ...]:
    """Write rows as they were read, a file per source, so that a run still knows where a row comes from."""
    by_source: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        by_source[Path(row.source).stem].append(row.id)
    return tuple(_write(folder / f"{stem}.jsonl", rows.subset(ids)) for stem, ids in sorted(by_source.items()))


def _write(path: Path, rows: Examples) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(f"{row.raw}\n" for row in rows))
    return str(path)
