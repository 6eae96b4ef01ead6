"""A finished run, read from its directory: what was chosen, predicted and known. Loads no teacher and no torch.

What report and `explain` ask of a run goes through here, so that both show the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from nncift import config
from nncift.config import RunSettings
from nncift.core.arrays import Floats
from nncift.core.lazily import LazilyBy
from nncift.core.pairs import LabelledPairs
from nncift.core.permissions import NOTHING, Permissions
from nncift.core.result_types import JsonObject, Record
from nncift.core.texts import parsed_file
from nncift.data.layout import Layout
from nncift.data.pool import PoolTable
from nncift.errors import DataError, UsageError
from nncift.evaluation.fidelity import FidelityReport
from nncift.evaluation.run_verdict import RunSummary
from nncift.labels import SCORE, measured_values, read_utilities
from nncift.labels.vectors import VectorFiles
from nncift.models.encoders import check_encoder_is_local
from nncift.models.loading import check_is_local
from nncift.models.views import TEXT
from nncift.selection.probe_controls import FreeSimilarities
from nncift.storage import checksums
from nncift.storage.atomic import check_regular, read_json
from nncift.storage.parquet import Column
from nncift.storage.run_directory import MANIFEST, SUMMARY, TEACHER
from nncift.storage.selection_folder import RECORD, place_of, read_selection, run_behind
from nncift.storage.vector_store import VectorFile
from nncift.student.model import Student
from nncift.teachers.subtasks import FILE as SUBTASKS

R = TypeVar("R", bound=Record)
FIDELITY = "fidelity.json"
DECISIVE = ("model", "weights", "encoder", "wording")
"""What a teacher says of the files that it loads, and of how rows are worded."""


@dataclass(frozen=True)
class Choice:
    """What became of a row: see `selection.parquet` (docs/cli.md)."""

    id: str
    source: str
    rank: int | None
    selected: bool
    gain: float | None
    would_add: float | None
    score: float | None
    reason: str
    stability: float | None = None


class FinishedRun:
    """A run directory whose `summary.json` exists, or a folder of `select --out`. Everything is read when it is asked for.

    path: where the selection lies; base: where everything else does, which is the same but for a folder of `select --out`.
    allowed: what the call permits to be done with the models that the run's files name.
    """

    def __init__(self, path: str | Path, allowed: Permissions = NOTHING) -> None:
        self.path, self.allowed = Path(path), allowed
        self.base = run_behind(self.path)
        check_regular(self.base)
        if not (self.base / SUMMARY).exists():
            raise DataError(f"there is no finished run in {str(self.path)!r}; give the --out of a run that has ended")

    @cached_property
    def settings(self) -> RunSettings:
        """The settings of the run; what it was permitted counts where this call permits it too."""
        found = self._recorded
        return found.model_copy(update={config.CODE: found.trust_remote_code and self.allowed.code})

    @cached_property
    def _recorded(self) -> RunSettings:
        checksums.verify(self.path, MANIFEST)
        return config.recorded(self.path / MANIFEST)

    def check_models(self, *, model: bool = True, encoder: bool = True) -> None:
        """Raise UsageError where the run's model, or its encoder, may not be loaded with what this call permits.

        Its model brings code and was trusted when the run was made, or one of both is not at hand.
        """
        made, by = self._recorded, f"the run {str(self.path)!r}"
        if model and made.model is not None:
            if made.trust_remote_code and not self.allowed.code:
                raise UsageError(
                    f"{by} was made with --trust-remote-code, which ran the code that comes with {made.model!r}. A file permits "
                    "nothing: give --trust-remote-code (trust_remote_code=True in Python) to run it again"
                )
            check_is_local(made.model, by, fetch=self.allowed.fetch)
        if encoder:
            check_encoder_is_local(made.encoder, by, fetch=self.allowed.fetch)

    def check_same(self, found: Mapping[str, Any]) -> None:
        """Raise DataError where a model or an encoder at hand is not the one that gave the run's labels.

        found: what a teacher says of itself, or a part of that.
        """
        before = self._labelled_by
        differ = sorted(name for name in DECISIVE if name in found and before.get(name, found[name]) != found[name])
        if one := next(iter(differ), None):
            raise DataError(
                f"the labels of {str(self.path)!r} are of other files than those at hand: {' and '.join(differ)} differ now "
                f"({found[one]!r}, and it was {before[one]!r}). Put back what the run was made with, or use another --out"
            )

    @cached_property
    def _labelled_by(self) -> JsonObject:
        checksums.verify(self.base, TEACHER)
        try:
            return dict(read_json(path)) if (path := self.base / TEACHER).exists() else {}
        except (OSError, TypeError, ValueError, RecursionError) as error:
            raise DataError(f"{str(path)!r} is damaged ({error}); run the same `nncift run` again") from error

    @cached_property
    def summary(self) -> JsonObject:
        """What `--json` printed. Raises DataError as `result` does."""
        found = self._json(SUMMARY)
        if self.path != self.base:
            selection = self._json(RECORD, self.path)
            own = {
                key: value for key, value in selection.items() if key not in ("ids", *place_of(self.base, self.path))
            }
            found = {**found, "run": str(self.path), "selected": own.get("budget"), "selection": own}
        self._record(RunSummary, found, SUMMARY)
        return found

    @cached_property
    def result(self) -> RunSummary:
        """The same with its types. Raises DataError for a summary that is damaged, or of a version that wrote other keys."""
        return self._record(RunSummary, self.summary, SUMMARY)

    @cached_property
    def fidelity(self) -> FidelityReport:
        """How well the student predicts, beside its baselines. Raises DataError as `result` does."""
        return self._record(FidelityReport, self._json(FIDELITY), FIDELITY)

    def _record(self, kind: type[R], found: JsonObject, name: str) -> R:
        return kind.of_json(found, str(self.base / name), config.made_by(self.base / MANIFEST))

    @cached_property
    def _selection_table(self) -> Mapping[str, Sequence[Any]]:
        """The columns of `selection.parquet`."""
        table = read_selection(self.path, Choice.__dataclass_fields__)
        return {name: Column(table[name]) for name in table.column_names}

    @cached_property
    def choices(self) -> Mapping[str, Choice]:
        """What became of every row of the pool, by id."""
        columns = self._selection_table
        ids = list(columns["id"])
        place = self._places(ids)

        # As many as a report lists, which asks for each several times.
        @lru_cache(maxsize=20_000)
        def choice(item: str) -> Choice:
            row = place[item]
            known: list[Any] = [columns[name][row] if name in columns else None for name in Choice.__dataclass_fields__]
            return Choice(*known)

        return LazilyBy(choice, place)

    def column(self, name: str) -> Sequence[Any]:
        """Return one field of all `choices`, in their order, without making these."""
        found = self._selection_table.get(name)
        return [None] * len(self.choices) if found is None else found

    def _places(self, ids: list[str]) -> dict[str, int]:
        """Return where each id stands; with the ids of the rows themselves where they are the same, not with copies."""
        same = "rows" in self.__dict__ and tuple(ids) == self.rows.ids
        return {item: at for at, item in enumerate(self.rows.ids if same else ids)}

    def check_same_rows(self) -> None:
        """Raise DataError where the rows and what became of them are not of the same pool."""
        # The rows first: what is read after them shares their ids.
        ids = self.rows.ids
        if tuple(self.choices) != ids and (odd := set(ids) ^ set(self.choices)):
            raise DataError(
                f"rows.parquet and selection.parquet of {str(self.path)!r} are not about the same rows ({min(odd)!r} is in one "
                "of them): one is damaged; run the same nncift run again"
            )

    @cached_property
    def chosen(self) -> tuple[str, ...]:
        """Ids of the selected rows, in rank order."""
        ranks = zip(self.choices, self._selection_table["selected"], self._selection_table["rank"], strict=True)
        return tuple(item for _, item in sorted((rank or 0, item) for item, selected, rank in ranks if selected))

    @cached_property
    def dropped(self) -> list[str]:
        """Ids of the other rows, in the order of the pool."""
        taken = set(self.chosen)
        return [item for item in self.choices if item not in taken]

    @property
    def layout(self) -> Layout:
        """How the run's rows say what they say, and which of their turns are learned from."""
        return Layout.from_settings(self.settings.format, self.settings.map, self.settings.turns)

    @cached_property
    def rows(self) -> PoolTable:
        """The rows themselves."""
        return PoolTable.open(self.base, self.layout)

    @cached_property
    def labels(self) -> dict[str, LabelledPairs]:
        """The teacher's utilities by split."""
        return read_utilities(self.base / "labels")

    @cached_property
    def pointwise(self) -> bool:
        """Whether the teacher scores rows and knows no targets."""
        return next(iter(self.labels.values())).target_ids == SCORE

    @property
    def target_ids(self) -> tuple[str, ...]:
        """Ids of the target axis."""
        return SCORE if self.pointwise else self.rows.target_ids or self.rows.ids

    @cached_property
    def student(self) -> Student:
        """The trained student."""
        checksums.verify(self.base, "student/student.json", "student/student.safetensors")
        return Student.load(self.base / "student")

    @cached_property
    def _files(self) -> VectorFiles:
        return VectorFiles(self.base)

    def vectors(self, ids: Sequence[str]) -> Floats:
        """Return embeddings of rows, `(n, dim)`, of unit norm."""
        return self._files.views.take(self._files.of(ids), TEXT)

    def pooled(self, ids: Sequence[str], reader: Mapping[str, Any]) -> Floats | None:
        """Return what RDS+ compares, where this run's labels or its probe hold it; see `VectorFiles.pooled`."""
        own = measured_values(self.base / "labels", ids) if self._labelled_by == dict(reader) else None
        return self._files.pooled(ids, reader) if own is None else own

    @cached_property
    def similarities(self) -> FreeSimilarities:
        """The similarities of this run's targets and sources that cost no label."""
        sources, blank = self._files.of(self.rows.ids), np.zeros((1, 0), np.float32)
        shared, existing = not self.pointwise and self.rows.target_ids is None, self.base / "existing.npy"
        targets = blank if self.pointwise else sources if shared else self._files.of(self.target_ids)
        second = VectorFile(self.base, "existing", ids="contents").vectors if existing.exists() else None
        return FreeSimilarities(self._files.views, targets, sources, shared, second, self.subtask_of)

    @cached_property
    def subtask_of(self) -> Mapping[str, str] | None:
        """Each target's subtask, None where the run has none."""
        path = self.base / SUBTASKS
        found: dict[str, str] | None = read_json(path) if path.exists() else None
        return found

    def similar_ids(self, name: str, k: int) -> list[str]:
        """Return `k` rows that the run's objective takes from a similarity in the place of utilities, without the run's rules.

        Raises UsageError for a similarity that this run does not have.
        """
        similar, record = self.similarities, self.summary.get("selection", {})
        objective = str(record.get("objective") or self.settings.objective or "fl")
        if name not in similar.names:
            raise UsageError(
                f"this run has no similarity {name!r}; there is {', '.join(similar.names)}, and a run with --features probe has "
                "those of a probe"
            )
        targets = self.target_ids
        if objective == "flmi":
            # It looks at the pool's rows as targets, and at what the target set's rows do for them.
            targets = self.rows.ids
            similar = FreeSimilarities(similar.views, similar.sources, similar.sources, True, similar.targets)
        return similar.ids(name, objective, targets, self.rows.ids, k, seed=self.settings.seed)

    @cached_property
    def _axes(self) -> tuple[_Axis, _Axis]:
        """Targets and sources, with what the student needs of each."""
        student, blank = self.student, np.zeros((1, 0), np.float32)
        targets = student.project_targets(blank if self.pointwise else self._files.of(self.target_ids))
        sources = student.project_sources(self._files.of(self.rows.ids))
        return _Axis.of(self.target_ids, targets), _Axis.of(self.rows.ids, sources)

    @cached_property
    def _known(self) -> _Known:
        targets, sources = self._axes
        return _Known.of(list(self.labels.values()), targets.place, sources.place)

    def block(self, targets: Sequence[str], sources: Sequence[str]) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Return utilities `(n_targets, n_sources)` as the selection saw them, and which the teacher gave.

        Known values are exact, the others predicted; NaN for a row as its own target and for what the teacher could not give.
        Raises KeyError for ids that are not on their axis.
        """
        across, along = self._axes
        t, s = across.codes(targets), along.codes(sources)
        values = np.asarray(self.student.predict_block(across.projected[t], along.projected[s]))
        known = np.zeros(values.shape, bool)
        line = np.full(len(across.ids), -1, np.int64)
        line[t] = np.arange(len(t))
        for column, code in enumerate(s):
            of, value = self._known.of_source(code)
            here = line[of] >= 0
            values[line[of[here]], column] = value[here]
            known[line[of[here]], column] = True
            itself = across.place.get(along.ids[code], -1)
            if itself >= 0 and line[itself] >= 0:
                values[line[itself], column] = np.nan
        return values, known

    def predicted_for(self, targets: Floats) -> Floats:
        """Return predictions of all sources for new targets, `(n_targets, n_sources)`; targets: their projections."""
        return np.asarray(self.student.predict_block(targets, self._axes[1].projected))

    def predicted(self, pairs: LabelledPairs) -> Floats:
        """Return the student's predictions for labelled pairs, `(n_pairs,)`."""
        student = self.student
        targets, t = _used(pairs.target_ids, pairs.target)
        sources, s = _used(pairs.source_ids, pairs.source)
        across = student.project_targets(np.zeros((1, 0), np.float32) if self.pointwise else self._files.of(targets))
        moved = LabelledPairs(tuple(targets), tuple(sources), t, s, pairs.value)
        return student.predict_pairs(moved, across, student.project_sources(self._files.of(sources)))

    def _json(self, name: str, folder: Path | None = None) -> JsonObject:
        folder = folder or self.base
        checksums.verify(folder, name)
        try:
            record = parsed_file(folder / name)
            if not isinstance(record, dict):
                raise ValueError("it holds no object")
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(
                f"{name} of {str(folder)!r} cannot be read ({error}); run the same command again"
            ) from error
        return record


@dataclass(frozen=True)
class _Axis:
    """An axis: ids, the place of each, and projections `(n, hidden)`."""

    ids: tuple[str, ...]
    place: dict[str, int]
    projected: Floats

    @classmethod
    def of(cls, ids: tuple[str, ...], projected: Floats) -> _Axis:
        return cls(ids, {name: at for at, name in enumerate(ids)}, projected)

    def codes(self, wanted: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return the places of some ids."""
        if wanted is self.ids:
            return np.arange(len(self.ids))
        return np.fromiter((self.place[name] for name in wanted), np.int64, len(wanted))


@dataclass(frozen=True)
class _Known:
    """The teacher's utilities, grouped by source: those of source k are entries `start[k]` to `start[k + 1]`."""

    target: npt.NDArray[np.int64]
    value: Floats
    start: npt.NDArray[np.int64]

    @classmethod
    def of(cls, parts: list[LabelledPairs], targets: dict[str, int], sources: dict[str, int]) -> _Known:
        across, along, values = [], [], []
        for pairs in parts:
            t = np.array([targets.get(name, -1) for name in pairs.target_ids], np.int64)[pairs.target]
            s = np.array([sources.get(name, -1) for name in pairs.source_ids], np.int64)[pairs.source]
            here = (t >= 0) & (s >= 0)
            across.append(t[here])
            along.append(s[here])
            values.append(pairs.value[here])
        source = np.concatenate(along)
        order = np.argsort(source, kind="stable")
        start = np.searchsorted(source[order], np.arange(len(sources) + 1))
        return cls(np.concatenate(across)[order], np.concatenate(values)[order], start)

    def of_source(self, code: int | np.integer[Any]) -> tuple[npt.NDArray[np.int64], Floats]:
        """Return target codes and values of a source."""
        entries = slice(self.start[code], self.start[code + 1])
        return self.target[entries], self.value[entries]


def _used(axis: Sequence[str], codes: npt.NDArray[np.int32]) -> tuple[list[str], npt.NDArray[np.int32]]:
    """Return the ids that occur, and codes into them."""
    present, moved = np.unique(codes, return_inverse=True)
    return [axis[code] for code in present], moved.astype(np.int32)
