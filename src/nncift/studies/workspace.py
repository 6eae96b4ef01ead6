"""What a study works with: its pools, made or read once, and its pieces. Every piece is a file, so that a study can go on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nncift.config import RunSettings, TeacherSettings
from nncift.core.amounts import Budget
from nncift.core.fingerprints import fingerprint
from nncift.core.pairs import UtilityMatrix
from nncift.core.progress import Progress, silent
from nncift.core.result_types import JsonObject
from nncift.core.seeds import shuffled
from nncift.core.texts import parsed_file
from nncift.data import Example, Examples, read
from nncift.demo import make_world, model_path
from nncift.errors import UsageError
from nncift.models.loading import fingerprint as fingerprint_of
from nncift.models.loading import locate
from nncift.runs.finished import FinishedRun
from nncift.runs.full_teacher import truth_of
from nncift.storage.atomic import digest, write_json, write_text
from nncift.storage.run_directory import SUMMARY
from nncift.studies.grid import Analysis, Pool, check

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
    target: str | None = None


def prepare(name: str, pool: Pool, folder: Path) -> Ready:
    """Write a pool's rows and its test rows into a folder; the same bytes every time.

    Raises the errors of reading, and UsageError where more rows are held out, or drawn, than there are.
    """
    model = str(model_path()) if pool.model == DEMO else pool.model
    if pool.world is not None:
        world = make_world(pool.world.rows, pool.world.seed, test_rows=pool.world.test_rows)
        files = world.write(folder)
        return Ready(name, (str(files.pool),), str(files.test), files.truth, model, pool.small_model)
    target, apart = _target_rows(name, pool, folder)
    rows = _drawn(name, pool, apart)
    if pool.hold_out >= len(rows):
        raise UsageError(f"pool {name!r} holds out {pool.hold_out} rows, and there are {len(rows)}")
    held = set(shuffled(rows.ids, 0, "study", "hold out")[: pool.hold_out])
    test = _write(folder / "test.jsonl", Examples(tuple(row for row in rows if row.id in held))) if held else pool.test
    if target is not None:
        test = str(folder / "test.jsonl")
    kept = Examples(tuple(row for row in rows if row.id not in held))
    return Ready(name, write_pool(folder / "pool", kept), test, None, model, pool.small_model, target)


def _target_rows(name: str, pool: Pool, folder: Path) -> tuple[str | None, Collection[str]]:
    """Write the target set and its test rows, and return the file of the first and hashes of the content of both."""
    if pool.target is None:
        return None, ()
    wanted = pool.target
    rows = _short(read(*wanted.files), pool)
    order = shuffled(rows.ids, 0, "study", "target")
    if wanted.evenly:
        by_file = _by_file(rows.subset(order))
        # In turns, until one of the files has no more.
        order = [row for turn in zip(*(by_file[source] for source in sorted(by_file)), strict=False) for row in turn]
    if len(order) < wanted.rows + wanted.test:
        evenly = ", as many of every file" if wanted.evenly else ""
        raise UsageError(
            f"pool {name!r} draws {wanted.rows} target rows and {wanted.test} test rows{evenly}, and its target has {len(order)}"
        )
    order = order[: wanted.rows + wanted.test]
    _write(folder / "test.jsonl", rows.subset(order[wanted.rows :]))
    drawn = rows.subset(order)
    return _write(folder / "target.jsonl", rows.subset(order[: wanted.rows])), {row.content_hash for row in drawn}


def _by_file(rows: Iterable[Example]) -> dict[str, list[str]]:
    """Return the ids of rows by the file that they come from, in their order."""
    found: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        found[row.source].append(row.id)
    return found


def _drawn(name: str, pool: Pool, apart: Collection[str]) -> Examples:
    """Return the rows of a pool of files: short enough, in no other set, and as many of every file as are asked for."""
    if pool.each is None and pool.longest is None and not apart:
        return read(*pool.files, limit=pool.limit, seed=0)
    rows = _short(read(*pool.files, limit=None if pool.each else pool.limit, seed=0), pool)
    free = [row for row in rows if row.content_hash not in apart]
    if pool.each is None:
        return Examples(tuple(free))
    found: list[str] = []
    for source, ids in _by_file(free).items():
        if len(ids) < pool.each:
            raise UsageError(f"pool {name!r} takes {pool.each} rows of each file, and {source} has {len(ids)} that fit")
        found += shuffled(ids, 0, "study", "each")[: pool.each]
    return rows.subset(found)


def _short(rows: Examples, pool: Pool) -> Examples:
    """Return the rows of no more letters than a pool takes."""
    most = pool.longest
    return rows if most is None else Examples(tuple(row for row in rows if len(row.prompt) + len(row.response) <= most))


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


@dataclass(frozen=True)
class Workspace:
    """Where a study works: its folder, its pools, the device of its models.

    What it keeps is known by the content of rows and models, never by where they lie: other rows under an old name are computed
    anew, and a study goes on where its files were moved.
    """

    folder: Path
    pools: Mapping[str, Ready]
    device: str = "auto"
    progress: Progress = silent
    _models: dict[str, str] = field(default_factory=dict)

    def settings(self, analysis: Analysis, chosen: Mapping[str, Any], seed: int) -> RunSettings:
        """Return the settings of one run: the analysis's, its pool's, and what was chosen among combinations."""
        from nncift.teachers import registry

        pool = self.pools[analysis.pool]
        found = check(analysis, chosen)
        given: dict[str, Any] = {
            "pool": pool.files,
            "seed": seed,
            "device": self.device,
            "budget": Budget.parse(analysis.budgets[0]),
        }
        if pool.target is not None:
            given["target"] = (pool.target,)
        if registry.takes(found.teacher, "model"):
            given["model"] = pool.model
        return found.model_copy(update=given)

    def run(self, settings: RunSettings) -> FinishedRun:
        """Return the run with these settings, made where it is not finished; analyses with the same settings share it."""
        from nncift.pipeline import execute
        from nncift.stages.request import Request

        record = settings.model_dump(mode="json", exclude={"device", "pool", "model", "target"})
        content = [digest(Path(path)) for path in (*settings.pool, *settings.target)]
        folder = self.folder / "runs" / fingerprint("run", record, content, self._model(settings.model))
        if not (folder / SUMMARY).exists():
            execute(Request.resolve(settings, out=folder), folder, progress=self.progress)
        return FinishedRun(folder)

    def _model(self, name: str | None) -> str | None:
        """Return the hash of a model's files, read once."""
        if name is not None and name not in self._models:
            self._models[name] = fingerprint_of(locate(name))
        return None if name is None else self._models[name]

    def truth(self, run: FinishedRun) -> UtilityMatrix:
        """Return all pairs' utilities by a run's teacher."""
        return truth_of(run, self.truth_folder(run), device=self.device, progress=self.progress)

    def truth_folder(self, run: FinishedRun) -> Path:
        """Return where they are kept: runs whose teacher asks the same share them."""
        from nncift.teachers import registry

        settings = run.settings
        # What a teacher draws (a warm-up, a projection) follows the seed; one that draws nothing is the same for all.
        drawn = settings.seed if registry.takes(settings.teacher, "seed") else None
        encoder = settings.encoder if registry.takes(settings.teacher, "encoder") else None
        asked = {**settings.part(TeacherSettings), "model": self._model(settings.model)}
        rows = sorted([row.id, row.content_hash] for row in run.rows.examples)
        aimed = sorted([row.id, row.content_hash] for row in run.rows.target_examples or ())
        key = fingerprint("truth", asked, encoder, rows, drawn, *([aimed] if aimed else []))
        return self.folder / "truth" / key

    def cell(self, analysis: Analysis, key: Mapping[str, Any], compute: Callable[[], JsonObject]) -> JsonObject:
        """Return what is stored under a key of an analysis, computed where it is not there yet."""
        pool = self.pools[analysis.pool]
        files = [pool.test, pool.truth, *pool.files, *([] if pool.target is None else [pool.target])]
        content = [None if path is None else digest(Path(path)) for path in files]
        mark = fingerprint("cell", analysis.kind, content, self._model(pool.model), dict(key))
        path = self.folder / analysis.name / "cells" / f"{mark}.json"
        try:
            stored: JsonObject = parsed_file(path)
            return stored
        except (OSError, ValueError, RecursionError):
            # It is not there, or not whole.
            pass
        found = {**key, **compute()}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, found)
        return found
