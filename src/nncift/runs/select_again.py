"""Choosing again from a finished run, without its input files, its language model, or torch: `nncift select`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from nncift import config
from nncift.config import RunSettings
from nncift.core.pairs import LabelledPairs
from nncift.core.parallel import Executor, map_by
from nncift.core.result_types import JsonObject, Record
from nncift.core.yaml_text import read_yaml
from nncift.data.pool import PoolTable
from nncift.distributed.local import LocalExecutor
from nncift.errors import DataError, UsageError
from nncift.evaluation.fidelity import FidelityReport
from nncift.evaluation.run_verdict import RunSummary, Verdict, selection_key, training_record, verdict_of
from nncift.labels import SCORE, read_utilities
from nncift.labels.vectors import VectorFiles, Vectors
from nncift.selection.constraints import Constraints
from nncift.selection.problem import KNOWS_EXISTING, Sets, build, check_graph, check_sets
from nncift.selection.solve import FILES, Posing, Selected, SelectionRecord, choose, solve, write_selection
from nncift.selection.stability import Refits
from nncift.selection.utilities import Utilities
from nncift.stages.embed_existing import VECTORS as EXISTING
from nncift.stages.embed_existing import load_existing
from nncift.storage import checksums
from nncift.storage.atomic import write_json, write_text
from nncift.storage.run_directory import FINISH, LEFT, MANIFEST, SUMMARY, RunDir
from nncift.storage.selection_folder import is_selection_folder, place_of, run_behind
from nncift.student.model import Student
from nncift.teachers import subtasks

EMBEDDING_CONTROL_ROWS = 5000
"""Pools up to this size also get the controls that select by similarities; each costs as much as the selection."""


@dataclass(frozen=True)
class Reselection(Record):
    """What was selected again from a run. out: where it lies; pool, selected: rows."""

    run: str
    out: str
    pool: int
    selected: int
    verdict: Verdict
    selection: SelectionRecord


def reselect(
    run: Path, given: Mapping[str, Any], out: Path | None = None, executor: Executor | None = None
) -> Reselection:
    """Select again from a finished run.

    given: settings of the selection that differ from the run's. out: a new directory for the files; without it the run's own
    selection, summary, report and manifest are replaced. executor: has calculations done, in this process by default. Raises
    DataError where there is no finished run, UsageError where a setting does not fit it, InfeasibleError where the request cannot
    be met.
    """
    result = _reselected(run, given, out, executor or LocalExecutor())
    if out is None:
        from nncift.runs.report import write_report

        # After the lock, for the old page tells of the selection that was replaced; and with nothing else in memory.
        write_report(run)
    return result


def _reselected(run: Path, given: Mapping[str, Any], out: Path | None, executor: Executor) -> Reselection:
    settings = _settings(run, given)
    if out is not None:
        _check_new_folder(out)
    elif is_selection_folder(run):
        raise UsageError(f"{str(run)!r} is a folder of `nncift select --out`, which stays as it is; give --out DIR")
    run = run_behind(run)
    with executor.open(run, settings) as directory:
        checksums.verify(run, *LEFT)
        rows, vectors, labels = _finished(run)
        sets = _sets(directory, settings, labels, given)
        constraints = Constraints.read(settings)
        constraints.check(rows)
        settled = constraints.settle(rows, vectors.text)
        existing = load_existing(run) if sets.existing and settings.objective in KNOWS_EXISTING else None
        student, subtask_of = Student.load(run / "student"), subtasks.kept(directory)
        utilities = Utilities(student, vectors, labels, rows.content, existing, subtask_of, map_by(executor))
        course, used = _fitted(directory)
        kept = run, str(checksums.read_mark(run, "fit").get("fingerprint"))
        refits = Refits(utilities, settings, course, used, kept)
        posing = Posing(partial(build, utilities, settings, settled.removed), refits)
        control = len(rows.ids) <= EMBEDDING_CONTROL_ROWS
        if out is None:
            keys: JsonObject = {name: checksums.read_mark(run, name).get("fingerprint") for name in ("fit", "existing")}
            directory.forget(FINISH)
            _rewrite_manifest(directory)
            found = choose(directory, keys, settings, rows, settled, posing, embedding_control=control)
            record, verdict = found.record, _rewrite_summary(directory, found, settings)
        else:
            objective, seed = str(settings.objective), settings.seed
            chosen = solve(rows, settled, posing.build(), objective=objective, seed=seed, embedding_control=control)
            chosen = posing.with_stability(rows, settled, chosen)
            record = chosen.record
            with _appearing(out) as part:
                write_selection(part, rows, settled, chosen, **place_of(run, out))
                _write_settings(part, settings)
                checksums.write_mark(part, "select", "", (*FILES, MANIFEST))
            # A selection of its own has not been trained on.
            verdict = verdict_of(replace(_summary(directory), run=str(out), selection=record), settings)
    return Reselection(str(run), str(out or run), len(rows.ids), record.budget, verdict, record)


def _summary(directory: RunDir) -> RunSummary:
    path = directory.path
    return RunSummary.of_json(directory.read_json(SUMMARY), str(path / SUMMARY), config.made_by(path / MANIFEST))


def _fitted(directory: RunDir) -> tuple[Mapping[str, Any], str]:
    """Return how the run's student was fitted, and what selects. Raises DataError where that is damaged."""
    name, path = "fidelity.json", directory.path
    checksums.verify(path, name)
    found = FidelityReport.of_json(
        directory.read_json(name, sealed=True), str(path / name), config.made_by(path / MANIFEST)
    )
    return found.course, found.gate.used


def _finished(run: Path) -> tuple[PoolTable, Vectors, dict[str, LabelledPairs]]:
    """Return the rows of a finished run, with their vectors and labels."""
    rows, labels = PoolTable.open(run), read_utilities(run / "labels")
    _check_same_rows(rows, next(iter(labels.values())).source_ids)
    # The ids of a large pool are in memory once.
    labels = {name: pairs.named(rows.ids) for name, pairs in labels.items()}
    axes = next(iter(labels.values()))
    return rows, VectorFiles(run).on(axes.target_ids, axes.source_ids), labels


def _sets(
    directory: RunDir, settings: RunSettings, labels: Mapping[str, LabelledPairs], given: Mapping[str, Any]
) -> Sets:
    """Return which sets the run has for its objective. Raises UsageError where that does not fit them."""
    axes, objective = next(iter(labels.values())), str(settings.objective)
    pointwise, target = axes.target_ids == SCORE, axes.target_ids[:1] != axes.source_ids[:1]
    # Rows that were trained on already stay in the run for another time.
    left_aside = "objective" in given and objective not in KNOWS_EXISTING
    existing = (directory.path / EXISTING).exists() and not left_aside
    sets = Sets(pointwise, target and not pointwise, existing)
    check_sets(objective, sets)
    in_subtasks = subtasks.kept(directory) is not None
    if in_subtasks:
        subtasks.check_knows_subtasks(objective)
    check_graph(settings, objective, sets, subtasks=in_subtasks)
    return sets


def _settings(run: Path, given: Mapping[str, Any]) -> RunSettings:
    if not (run_behind(run) / SUMMARY).exists() or not (run / MANIFEST).exists():
        raise DataError(f"there is no finished run in {str(run)!r}; give the --out of a run that has ended")
    checksums.verify(run, MANIFEST)
    return config.recorded(run / MANIFEST, given)


def _check_same_rows(rows: PoolTable, source_ids: tuple[str, ...]) -> None:
    if rows.ids != source_ids:
        raise DataError("the rows and the labels of this run do not belong together; run the same `nncift run` again")


def _check_new_folder(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {str(out)!r} exists and is not empty; give a new directory")


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """Give a folder to write into that takes its name when it is whole, so that a kill leaves nothing in the way."""
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_settings(folder: Path, settings: RunSettings) -> None:
    """Write the settings of a selection, as those of a run: a valid `--config`."""
    import yaml

    values = {name: value for name, value in settings.model_dump(mode="json").items() if value is not None}
    write_text(folder / MANIFEST, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def _rewrite_manifest(directory: RunDir) -> None:
    """Write the new settings with the record of the run, less what is recorded anew."""
    before = read_yaml(directory.path / MANIFEST).get("record", {})
    # The summary is kept until the new one takes its place, so that a killed selection goes on with the same command.
    record = {name: value for name, value in before.items() if name not in ("versions", "machine")}
    directory.write_manifest(record, keep_summary=True)


def _rewrite_summary(directory: RunDir, found: Selected, settings: RunSettings) -> Verdict:
    """Write the summary of a run for its new selection, and return its verdict."""
    before = _summary(directory)
    ledger = before.ledger.with_stages(directory.costs())
    write_json(directory.file("ledger.json"), ledger.to_json())
    summary = replace(before, selected=found.record.budget, selection=found.record, ledger=ledger)
    training = training_record(directory.path, selection_key(found.ids))
    summary = replace(summary, verdict=verdict_of(summary, settings, training))
    write_json(directory.file(SUMMARY), summary.to_json())
    directory.close()
    return summary.verdict
