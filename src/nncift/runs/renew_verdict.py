"""The verdict of a finished run, worked out again where something was learned after it: by training, or by another selection."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from nncift.core.result_types import JsonObject
from nncift.evaluation.run_verdict import Verdict, selection_key, training_record, verdict_of
from nncift.runs.finished import FinishedRun
from nncift.storage import checksums
from nncift.storage.atomic import write_json
from nncift.storage.run_directory import FINISH, LEFT, SUMMARY


def verdict(run: FinishedRun, training: JsonObject | None = None) -> Verdict:
    """Return the verdict of a run as it stands now. training: what a tune recorded, by default what lies in the run's folder."""
    if training is None:
        training = training_record(run.path, selection_key(list(run.chosen)))
    # A run may have been moved since.
    return verdict_of(replace(run.result, run=str(run.path)), run.settings, training)


def renew(path: str | Path, training: JsonObject | None = None) -> Verdict | None:
    """Write the verdict of a run into its summary, and make its report again; None for a folder that `select --out` wrote.

    training: see `verdict`. Raises DataError where there is no finished run.
    """
    from nncift.runs.report import write_report

    run = FinishedRun(path)
    if not (run.path / checksums.MARKS / f"{FINISH}.json").exists():
        return None
    found = verdict(run, training)
    write_json(run.path / SUMMARY, {**run.summary, "verdict": found.to_json()})
    checksums.write_mark(run.path, FINISH, "", LEFT)
    write_report(run.path)
    return found
