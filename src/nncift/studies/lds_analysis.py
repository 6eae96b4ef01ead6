"""The analysis retrain: which estimates foresee training, over students and the rows that they measured (method.md 6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from nncift.core.result_types import JsonObject
from nncift.finetune.estimates import STUDENT, TEACHER
from nncift.finetune.lds import Agreement
from nncift.finetune.retrain_report import lds_chart, lds_rows
from nncift.finetune.retrain_settings import resolve
from nncift.finetune.retraining import Experiment
from nncift.runs.report.charts import Sheet
from nncift.runs.report.report_tables import markdown
from nncift.studies.grid import Analysis
from nncift.studies.study_report import Page
from nncift.studies.workspace import Workspace


def retrain_arms(workspace: Workspace, analysis: Analysis, seeds: range) -> list[JsonObject]:
    """Return one record per combination and seed: what its student's estimates, its teacher's and all rivals foresee.

    options are the settings of `nncift evaluate --retrain`. Combinations over the same rows share their trainings, and those of
    other analyses too. With `truth` the full teacher is judged too, on the pairs of these targets and rows alone; runs whose
    teacher asks the same share them.
    """
    found = []
    combinations = analysis.combinations()
    with workspace.progress(f"{analysis.name}: runs", len(combinations) * len(seeds)) as advance:
        for seed in seeds:
            for chosen in combinations:
                key = {"run": {**analysis.run, **chosen.settings}, "options": analysis.options, "seed": seed}
                key |= {"truth": analysis.truth}
                compute = partial(_judged, workspace, analysis, chosen.settings, seed)
                found.append(
                    workspace.cell(analysis, key, compute) | {"name": chosen.name, "names": list(chosen.names)}
                )
                advance(1)
    return found


def _judged(workspace: Workspace, analysis: Analysis, chosen: Mapping[str, Any], seed: int) -> JsonObject:
    run = workspace.run(workspace.settings(analysis, chosen, seed))
    settings = resolve(
        {"model": workspace.pools[analysis.pool].model, **analysis.options, "seed": seed, "device": workspace.device}
    )
    folder = workspace.folder / "trainings"
    experiment = Experiment(run, settings, analysis.truth, workspace.progress, shared=folder)
    ledger = run.result.ledger
    return {
        # By its place in the study, which may be moved, and whose tables are published.
        "retraining": experiment.result().to_json() | {"run": run.path.relative_to(workspace.folder).as_posix()},
        "passes": ledger.teacher_passes,
        "full_passes": ledger.full_teacher_passes,
        "saving": ledger.saving,
    }


def retrain_page(analysis: Analysis, records: Sequence[Mapping[str, Any]]) -> Page:
    """Return every estimate's score: students and teachers by run, rivals once, and a figure of each seed."""
    text, drawn = [], {}
    for seed in dict.fromkeys(record["seed"] for record in records):
        mine = [record for record in records if record["seed"] == seed]
        first = mine[0]["retraining"]
        scores, shares = _scores(mine)
        limit = first["ceiling"]
        text.append(
            f"## Seed {seed}: {first['halves']} halves of {first['half']} of {first['rows']} rows, {first['targets']} targets\n\n"
            f"- Loss of the targets: {first['loss']['untrained']:.3f} before training, {first['loss']['trained']:.3f} after it.\n"
            + (
                f"- {first['repeats']} trainings of each half, whose mean losses are forecast: by what they agree on, no score "
                f"above {limit:.2f} can be expected.\n"
                if limit is not None
                else "- One training of each half, so that what chance does to a training is not known.\n"
            )
        )
        text.append(markdown(lds_rows(scores, shares)))
        title = f"seed {seed}"
        drawn[f"{analysis.name}-{seed}.svg"] = Sheet(
            {title: lds_chart(title, scores, "LDS, 95 % intervals over targets and halves")}, 1
        ).svg()
    return Page("\n".join(text), drawn)


def _scores(records: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Agreement], dict[str, str]]:
    """Return by name an estimate's score, and what was measured for it."""
    found: dict[str, Agreement] = {}
    shares: dict[str, str] = {}
    for record in records:
        lds = {name: Agreement.of_json(one, "a study's record") for name, one in record["retraining"]["lds"].items()}
        name = f"{STUDENT}: {record['name']}"
        found[name] = lds.pop(STUDENT)
        shares[name] = f"{record['passes'] / record['full_passes']:.0%}" if record["full_passes"] else "-"
        if TEACHER in lds:
            name = f"{TEACHER}: {_teacher_of(record['run'])}"
            found.setdefault(name, lds.pop(TEACHER))
            shares[name] = "100%"
        for name, one in lds.items():
            found.setdefault(name, one)
    return found, {name: shares.get(name, "-") for name in found}


def _teacher_of(run: Mapping[str, Any]) -> str:
    """Return the name of a run's teacher; LESS along a target set's own directions is GIST."""
    along = (run.get("option") or {}).get("projection_kind")
    return "gist" if along == "target" else str(run.get("teacher", "teacher"))
