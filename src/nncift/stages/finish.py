"""What a run leaves for people and programs: the subset, the account of every row, and the summary (docs/cli.md)."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nncift import config
from nncift.core.result_types import JsonObject, Record
from nncift.data import Examples, write_rejected
from nncift.data.contamination import CONTAMINATED
from nncift.data.examples import Rejection
from nncift.errors import DataError, ResourceError
from nncift.evaluation.fidelity import FidelityReport
from nncift.evaluation.gate import advice
from nncift.evaluation.meaning import HeldOutSignal
from nncift.evaluation.run_verdict import NO_VERDICT, RunSummary, Verdict, selection_key, training_record, verdict_of
from nncift.labels.sizes import too_little
from nncift.labels.store import Axes, LabelStore
from nncift.selection.solve import SelectionRecord
from nncift.stages.context import RunContext
from nncift.stages.embed_existing import ABOUT as EXISTING
from nncift.stages.holdout import RECORD as HOLDOUT
from nncift.stages.label import TEACHER
from nncift.storage.atomic import write_json
from nncift.storage.ledger import Ledger, ModelCost
from nncift.storage.outputs import check_replaces_nothing, inputs_of
from nncift.storage.run_directory import MANIFEST, SUMMARY
from nncift.storage.selection_folder import run_behind
from nncift.storage.table_files import check_table_suffix, write_table
from nncift.student.model import Student
from nncift.teachers import RowTeacher
from nncift.teachers.abilities import HasLanguageModel, pass_weight


@dataclass(frozen=True)
class Run:
    """A finished run. subset: the selected examples in rank order."""

    path: Path
    subset: Examples
    result: RunSummary
    report: FidelityReport

    @property
    def summary(self) -> Mapping[str, Any]:
        """What `--json` prints."""
        return self.result.to_json()

    @property
    def verdict(self) -> Verdict:
        """Whether the selection agrees with the teacher, whether it trains better, why, and what to do next."""
        return self.result.verdict

    @property
    def fidelity(self) -> Mapping[str, Any]:
        """Quadrants, baselines and verdicts."""
        return self.report.to_json()

    @property
    def ledger(self) -> Mapping[str, Any]:
        """Cost by stage and saving."""
        return self.result.ledger.to_json()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user has to know, in plain sentences."""
        return self.result.warnings


def finish(
    context: RunContext,
    axes: Axes,
    subset: Examples,
    selection: SelectionRecord,
    rejected: tuple[Rejection, ...],
    fidelity: FidelityReport,
    notes: tuple[str, ...],
) -> Run:
    """Write summary, fidelity, ledger and rejected rows, and return the run."""
    directory, settings = context.directory, context.settings
    write_rejected(directory.file("rejected.jsonl"), rejected)
    labelling = context.labels()
    ledger = _ledger(context, labelling, len(axes.sources))
    summary = RunSummary(
        run=str(directory.path),
        pool=len(axes.sources),
        rejected=len(rejected),
        contaminated=sum(row.kind == CONTAMINATED for row in rejected),
        holdout=len(directory.read_json(HOLDOUT, [])),
        selected=len(subset),
        verdict=NO_VERDICT,
        teacher=settings.teacher,
        student=settings.student,
        features=context.features,
        gate=fidelity.gate,
        growth=fidelity.growth,
        pair_interval=fidelity.pair_interval,
        plan=str(settings.plan),
        labels=labelling.counts(),
        all_labelled=context.whole,
        fidelity=fidelity.fidelity,
        baselines=fidelity.baselines,
        selection=selection,
        ledger=ledger,
        warnings=_warnings(context, axes, labelling, fidelity, notes),
    )
    training = training_record(directory.path, selection_key(list(subset.ids)))
    summary = replace(summary, verdict=verdict_of(summary, settings, training))
    write_json(directory.file("ledger.json"), ledger.to_json())
    write_json(directory.file(SUMMARY), summary.to_json())
    directory.close()
    return Run(directory.path, subset, summary, fidelity)


def _warnings(
    context: RunContext, axes: Axes, labelling: LabelStore[Any], fidelity: FidelityReport, notes: tuple[str, ...]
) -> tuple[str, ...]:
    by_row, whole = isinstance(context.teacher, RowTeacher), context.whole
    small = () if whole else too_little(labelling.counts(), len(axes.sources), by_row=by_row)
    # Where nothing predicts the labels of unseen items.
    signal = HeldOutSignal.of(fidelity.unseen, {name: of["q4"] for name, of in fidelity.baselines.items()})
    noise = () if signal is None else signal.warnings(whole=whole)
    found = (*notes, *small, *labelling.warnings(), *noise, *fidelity.verdicts)
    if whole or context.features != "text" or not isinstance(context.teacher, HasLanguageModel):
        return found
    hint = advice(fidelity.gate, len(axes.rows))
    return found if hint is None else (*found, hint)


def record_of(context: RunContext, pool: Examples) -> JsonObject:
    """Return what a manifest records: rows, and, as soon as they were used, teacher and encoder with hashes of their weights."""
    known = {"rows_read": len(pool), "rejected": len(pool.rejected)}
    encoder: JsonObject = {}
    teacher: JsonObject = {}
    # What cannot be read is made again further on, or refused there.
    with contextlib.suppress(DataError):
        encoder = context.directory.whole_json("embeddings.json", "embed", {}).get("encoder", {})
        teacher = context.directory.read_json(TEACHER, {}, sealed=True)
    return {**known, **({"encoder": encoder} if encoder else {}), **({"teacher": teacher} if teacher else {})}


def _ledger(context: RunContext, labels: LabelStore[Any], rows: int) -> Ledger:
    """Return the cost by stage, and what the teacher's model costs against labelling everything and against training on all rows.

    rows: of the pool.
    """
    stages = {name: replace(cost) for name, cost in context.directory.costs().items()}
    labelling = stages["label"]
    # Hidden states of the teacher's own model are passes of it too.
    others = stages["embed"].model_passes if context.settings.encoder == "lm" else 0
    others += stages["probe"].model_passes if "probe" in stages else 0
    others += context.directory.read_json(EXISTING, {}).get("teacher_passes", 0)
    full = labels.full_passes()
    spent = ModelCost(labelling.model_passes, pass_weight(context.teacher), others, full, rows)
    # As they are stored, so that running again computes the same figures.
    seconds = round(labelling.seconds, 3) * full / max(labelling.model_passes, 1)
    return Ledger.of(stages, spent, round(seconds, 1))


@dataclass(frozen=True)
class ScoreSummary(Record):
    """What is reported of rows that were scored; see `score_file`."""

    out: str
    rows: int
    rejected: int
    score_quartiles: tuple[float, ...]
    interval_half_width: float | None
    interval: str | None
    warnings: tuple[str, ...]


def score_file(examples: Examples, run: Path, out: Path, *, device: str = "auto", fetch: bool = False) -> ScoreSummary:
    """Score rows with the student of a finished run, write `id, score, interval_low, interval_high`, and sum it up.

    out: what its suffix says, .parquet, .csv or .jsonl. fetch: see `Student.score`. Raises UsageError for another suffix,
    DataError where the run has no student, ResourceError where the file cannot be written.
    """
    import pyarrow as pa

    check_table_suffix(out)
    run = run_behind(run)
    if not (run / "student").is_dir():
        raise DataError(f"there is no finished run in {str(run)!r}; give the --out of a run that has ended")
    if (run / MANIFEST).exists():
        check_replaces_nothing(out, inputs_of(config.recorded(run / MANIFEST)))
    student = Student.load(run / "student")
    scores = student.score(examples, device=device, fetch=fetch)
    table = pa.table(
        {
            "id": pa.array(scores.ids, pa.string()),
            "score": pa.array(scores.score, pa.float64()),
            "interval_low": pa.array([None] * len(scores.ids) if scores.low is None else scores.low, pa.float64()),
            "interval_high": pa.array([None] * len(scores.ids) if scores.high is None else scores.high, pa.float64()),
        }
    )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_table(table, out)
    except OSError as error:
        raise ResourceError(f"--out {str(out)!r} cannot be written: {error.strerror}") from error
    quartiles = tuple(np.quantile(scores.score, [0, 0.25, 0.5, 0.75, 1]).tolist())
    note = student.about.get("interval")
    return ScoreSummary(
        str(out), len(scores.ids), len(examples.rejected), quartiles, student.half_width, note, tuple(examples.notes)
    )
