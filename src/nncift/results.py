"""What a run leaves for people and programs: the subset, the account of every row, and the summary (docs/cli.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nncift.data import Examples, write_rejected, write_rows
from nncift.data.examples import Rejection
from nncift.errors import ResourceError, UsageError
from nncift.files import atomic, write_json
from nncift.labelling import Axes, Labelling
from nncift.pairs import UtilityMatrix
from nncift.rundir import SUMMARY
from nncift.select import Subset, select
from nncift.select.baselines import embedding_ids, longest_ids, random_ids, stratified_ids
from nncift.select.objectives import facility_location_value, mean_utility_value
from nncift.stages import Work
from nncift.student.model import Student

Floats = npt.NDArray[np.float32]


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


def choose(
    work: Work, pool: Examples, score: Callable[[], UtilityMatrix], vectors: Floats, budget: int
) -> tuple[Examples, dict[str, Any]]:
    """Select, write `selection.parquet` and `subset.jsonl`, and return the subset and the values of its controls.

    score: gives the matrix to select from; not called where this selection is finished.
    """
    settings, directory = work.settings, work.directory
    # Rows go into the files as they are, with what no model sees of them.
    rows = sorted([example.id, example.source, example.raw] for example in pool)
    key = work.key("select", work.keys["fit"], settings.objective, budget, settings.seed, rows)
    files = ("subset.jsonl", "selection.parquet", "selection.json")
    if not directory.is_done("select", key, files):
        with directory.measured("score"):
            matrix = score()
    with directory.stage("select", key, files) as stage:
        if not stage.done:
            subset = select(matrix, budget, str(settings.objective), settings.seed)
            _write_selection(work.directory.file("selection.parquet"), pool, matrix, subset)
            write_rows(work.directory.file("subset.jsonl"), pool.subset(subset.ids))
            told = {
                "objective": settings.objective, "budget": budget, "value": subset.value,
                "upper_bound": subset.upper_bound, "share_of_optimum": subset.share_of_optimum,
                "controls": _controls(work, pool, matrix, vectors, budget), "ids": list(subset.ids),
            }  # fmt: skip
            write_json(work.directory.file("selection.json"), told)
    told = work.directory.read_json("selection.json")
    return pool.subset(told.pop("ids")), told


def finish(
    work: Work, axes: Axes, subset: Examples, selection: dict[str, Any], rejected: tuple[Rejection, ...],
    fidelity: Mapping[str, Any], notes: tuple[str, ...],
) -> Run:  # fmt: skip
    """Write summary, fidelity, ledger and rejected rows, and return the run."""
    directory, settings = work.directory, work.settings
    write_rejected(directory.file("rejected.jsonl"), rejected)
    labelling = work.labels()
    ledger = _ledger(work, labelling)
    warnings = (*notes, *labelling.warnings(), *fidelity["verdicts"])
    summary = {
        "run": str(directory.path),
        "pool": len(axes.sources),
        "rejected": len(rejected),
        "selected": len(subset),
        "teacher": settings.teacher,
        "student": settings.student,
        "plan": settings.plan,
        "labels": labelling.counts(),
        "fidelity": fidelity["fidelity"],
        "baselines": fidelity["baselines"],
        "selection": selection,
        "ledger": ledger,
        "warnings": list(warnings),
    }
    write_json(directory.file("ledger.json"), ledger)
    write_json(directory.file(SUMMARY), summary)
    return Run(directory.path, subset, fidelity, ledger, summary, warnings)


def _controls(
    work: Work, pool: Examples, matrix: UtilityMatrix, vectors: Floats, budget: int
) -> dict[str, float | None]:
    """Return the objective's value of the control selections under the same matrix; random is a mean over ten draws."""
    value = mean_utility_value if work.settings.objective == "topk" else facility_location_value
    seed, ids = work.settings.seed, matrix.source_ids
    draws = [value(matrix, random_ids(ids, budget, seed + draw)) for draw in range(10)]
    sources = [example.source for example in pool]
    return {
        "random": float(np.mean(draws)),
        "stratified": value(matrix, stratified_ids(ids, sources, budget, seed)),
        "longest": value(matrix, longest_ids(ids, [len(example.response) for example in pool], budget)),
        "embedding": value(matrix, embedding_ids(ids, vectors, budget)),
    }


def _ledger(work: Work, labels: Labelling) -> dict[str, Any]:
    """Return the cost by stage, and the teacher's passes against labelling every pair."""
    # As they are stored, so that running again computes the same figures.
    stages = {name: cost.to_json() for name, cost in work.directory.costs().items()}
    labelling = stages["label"]
    passes = labelling["model_passes"]
    if work.settings.encoder == "lm":
        # Hidden states of the teacher's own model are passes of it too.
        passes += stages["embed"]["model_passes"]
    full = labels.full_passes()
    return {
        "stages": stages,
        "teacher_passes": passes,
        "full_teacher_passes": full,
        "saving": 1 - passes / full if full else 0.0,
        "full_teacher_seconds": round(labelling["seconds"] * full / max(labelling["model_passes"], 1), 1),
        "seconds": round(sum(cost["seconds"] for cost in stages.values()), 3),
    }


def _write_selection(path: Path, pool: Examples, matrix: UtilityMatrix, subset: Subset) -> None:
    """Write one line per row of the pool: chosen ones with rank and gain, the others with what they would still add."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if matrix.source_ids != pool.ids:
        raise UsageError("the matrix is not over this pool: its sources are other rows")
    rank = {example_id: place for place, example_id in enumerate(subset.ids, 1)}
    gain = dict(zip(subset.ids, subset.gains.tolist(), strict=True))
    table = pa.table(
        {
            "id": pa.array(pool.ids, pa.string()),
            "source": pa.array([example.source for example in pool], pa.string()),
            "rank": pa.array([rank.get(example_id) for example_id in pool.ids], pa.int64()),
            "selected": pa.array([example_id in rank for example_id in pool.ids], pa.bool_()),
            "gain": pa.array([gain.get(example_id) for example_id in pool.ids], pa.float64()),
            "would_add": pa.array([subset.final_gain.get(example_id) for example_id in pool.ids], pa.float64()),
            "score": pa.array(matrix.mean_per_source(), pa.float64(), from_pandas=True),
            "reason": pa.array([subset.reasons[example_id] for example_id in pool.ids], pa.string()),
        }
    )
    with atomic(path) as part:
        pq.write_table(table, part)


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
