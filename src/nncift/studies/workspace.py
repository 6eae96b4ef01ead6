"""What a study computes, piece by piece: every piece is a file, so that a study that was stopped goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nncift.config import RunSettings, TeacherSettings
from nncift.core.amounts import Budget
from nncift.core.fingerprints import fingerprint
from nncift.core.pairs import UtilityMatrix
from nncift.core.progress import Progress, silent
from nncift.models.loading import fingerprint as fingerprint_of
from nncift.models.loading import locate
from nncift.runs.finished import FinishedRun
from nncift.runs.full_teacher import truth_of
from nncift.storage.atomic import digest, write_json
from nncift.storage.run_directory import SUMMARY
from nncift.studies.grid import Analysis, check
from nncift.studies.pools import Ready


@dataclass(frozen=True)
class Workshop:
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
        if registry.takes(found.teacher, "model"):
            given["model"] = pool.model
        return found.model_copy(update=given)

    def run(self, settings: RunSettings) -> FinishedRun:
        """Return the run with these settings, made where it is not finished; analyses with the same settings share it."""
        from nncift.pipeline import execute
        from nncift.stages.request import Request

        record = settings.model_dump(mode="json", exclude={"device", "pool", "model"})
        content = [digest(Path(path)) for path in settings.pool]
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
        key = fingerprint("truth", asked, encoder, rows, drawn)
        return self.folder / "truth" / key

    def cell(self, analysis: Analysis, key: Mapping[str, Any], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what is stored under a key of an analysis, computed where it is not there yet."""
        pool = self.pools[analysis.pool]
        files = [pool.test, pool.truth, *pool.files]
        content = [None if path is None else digest(Path(path)) for path in files]
        mark = fingerprint("cell", analysis.kind, content, self._model(pool.model), dict(key))
        path = self.folder / analysis.name / "cells" / f"{mark}.json"
        if path.exists():
            stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return stored
        found = {**key, **compute()}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, found)
        return found
