"""What a run leaves for people and programs: the subset, the account of every row, and the summary (docs/cli.md)."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nncift.data import Examples, write_rejected
from nncift.data.contamination import CONTAMINATED
from nncift.data.examples import Rejection
from nncift.errors import DataError, ResourceError
from nncift.evaluation.gate import advice
from nncift.evaluation.meaning import HeldOutSignal
from nncift.labels.sizes import too_little
from nncift.labels.store import Axes, LabelStore
from nncift.stages import TEACHER, RunContext
from nncift.stages.embed_existing import ABOUT as EXISTING
from nncift.storage.atomic import atomic, write_json
from nncift.storage.ledger import ModelCost
from nncift.storage.run_directory import SUMMARY
from nncift.student.model import Student
from nncift.teachers import RowTeacher
from nncift.teachers.abilities import HasLanguageModel, pass_weight


@dataclass(frozen=True)
class Run:
    """A finished run.

    subset: the selected examples in rank order. fidelity: quadrants, baselines and verdicts. ledger: cost by stage and
    saving. summary: what `--json` prints.
    """

    path: Path
    subset: Examples
    fidelity: Mapping[str, Any]
    ledger: Mapping[str, Any]
    summary: Mapping[str, Any]
    warnings: tuple[str, ...]


def finish(
    context: RunContext,
    axes: Axes,
    subset: Examples,
    selection: dict[str, Any],
    rejected: tuple[Rejection, ...],
    fidelity: Mapping[str, Any],
    notes: tuple[str, ...],
) -> Run:
    """Write summary, fidelity, ledger and rejected rows, and return the run."""
    directory, settings = context.directory, context.settings
    write_rejected(directory.file("rejected.jsonl"), rejected)
    labelling = context.labels()
    ledger = _ledger(context, labelling, len(axes.sources))
    counts = labelling.counts()
    by_row = isinstance(context.teacher, RowTeacher)
    small = [] if context.whole else too_little(counts, len(axes.sources), by_row=by_row)
    noise = _noise(fidelity, whole=context.whole)
    warnings = (*notes, *small, *labelling.warnings(), *noise, *fidelity["verdicts"])
    if not context.whole and context.features == "text" and isinstance(context.teacher, HasLanguageModel):
        hint = advice(fidelity["gate"], len(axes.rows))
        warnings += () if hint is None else (hint,)
    summary = {
        "run": str(directory.path),
        "pool": len(axes.sources),
        "rejected": len(rejected),
        "contaminated": sum(row.kind == CONTAMINATED for row in rejected),
        "selected": len(subset),
        "teacher": settings.teacher,
        "student": settings.student,
        "features": context.features,
        "gate": fidelity["gate"],
        "growth": fidelity["growth"],
        "pair_interval": fidelity["pair_interval"],
        "plan": settings.plan,
        "labels": counts,
        "fidelity": fidelity["fidelity"],
        "baselines": fidelity["baselines"],
        "selection": selection,
        "ledger": ledger,
        "warnings": list(warnings),
    }
    write_json(directory.file("ledger.json"), ledger)
    write_json(directory.file(SUMMARY), summary)
    directory.close()
    return Run(directory.path, subset, fidelity, ledger, summary, warnings)


def _noise(fidelity: Mapping[str, Any], *, whole: bool) -> tuple[str, ...]:
    """Return a sentence where nothing predicts the labels of unseen items."""
    baselines = {name: of["q4"] for name, of in fidelity["baselines"].items()}
    signal = HeldOutSignal.of(fidelity["fidelity"]["q4"], baselines)
    return () if signal is None else signal.warnings(whole=whole)


def record_of(context: RunContext, pool: Examples) -> dict[str, Any]:
    """Return what a manifest records: rows, and, as soon as they were used, teacher and encoder with hashes of their weights."""
    known = {"rows_read": len(pool), "rejected": len(pool.rejected)}
    encoder: dict[str, Any] = {}
    teacher: dict[str, Any] = {}
    # What cannot be read is made again further on, or refused there.
    with contextlib.suppress(DataError):
        encoder = context.directory.whole_json("embeddings.json", "embed", {}).get("encoder", {})
        teacher = context.directory.read_json(TEACHER, {}, sealed=True)
    return {**known, **({"encoder": encoder} if encoder else {}), **({"teacher": teacher} if teacher else {})}


def _ledger(context: RunContext, labels: LabelStore[Any], rows: int) -> dict[str, Any]:
    """Return the cost by stage, and what the teacher's model costs against labelling everything and against training on all rows.

    rows: of the pool.
    """
    # As they are stored, so that running again computes the same figures.
    stages = {name: cost.to_json() for name, cost in context.directory.costs().items()}
    labelling = stages["label"]
    # Hidden states of the teacher's own model are passes of it too.
    others = stages["embed"]["model_passes"] if context.settings.encoder == "lm" else 0
    others += stages.get("probe", {}).get("model_passes", 0)
    others += context.directory.read_json(EXISTING, {}).get("teacher_passes", 0)
    full = labels.full_passes()
    spent = ModelCost(labelling["model_passes"], pass_weight(context.teacher), others, full, rows)
    return {
        "stages": stages,
        **spent.to_json(),
        "full_teacher_seconds": round(labelling["seconds"] * full / max(labelling["model_passes"], 1), 1),
        "seconds": round(sum(cost["seconds"] for cost in stages.values()), 3),
    }


def score_file(examples: Examples, run: Path, out: Path, *, device: str = "auto") -> dict[str, Any]:
    """Score rows with the student of a finished run, write `id, score, interval_low, interval_high`, and sum it up.

    Raises DataError where the run has no student, ResourceError where the file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    student = Student.load(run / "student")
    scores = student.score(examples, device=device)
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
        with atomic(out) as part:
            pq.write_table(table, part)
    except OSError as error:
        raise ResourceError(f"--out {str(out)!r} cannot be written: {error.strerror}") from error
    quartiles = np.quantile(scores.score, [0, 0.25, 0.5, 0.75, 1]).tolist()
    return {
        "out": str(out),
        "rows": len(scores.ids),
        "rejected": len(examples.rejected),
        "score_quartiles": quartiles,
        "interval_half_width": student.half_width,
        "interval": student.about.get("interval"),
        "warnings": list(examples.notes),
    }
