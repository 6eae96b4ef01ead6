"""Runs over combinations of settings: fidelity on unseen items, and what the selection is worth under the truth."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from nncift.runs.finished import FinishedRun
from nncift.runs.full_teacher import judged_objective, skill_by_budget, true_problem
from nncift.studies.grid import Analysis
from nncift.studies.workspace import Workshop


def sweep(shop: Workshop, analysis: Analysis, seeds: range) -> list[dict[str, Any]]:
    """Return one record per combination and seed: settings, fidelity on q4, skill by budget, passes and seconds by stage."""
    found = []
    combinations = analysis.combinations()
    with shop.progress(f"{analysis.name}: runs", len(combinations) * len(seeds)) as advance:
        for chosen in combinations:
            for seed in seeds:
                key = {"run": {**analysis.run, **chosen.settings}, "budgets": list(analysis.budgets), "seed": seed}
                found.append(shop.cell(analysis, key, partial(_measured, shop, analysis, chosen.settings, seed)))
                found[-1] |= {"name": chosen.name, "names": list(chosen.names)}
                advance(1)
    return found


def _measured(shop: Workshop, analysis: Analysis, chosen: Mapping[str, Any], seed: int) -> dict[str, Any]:
    run = shop.run(shop.settings(analysis, chosen, seed))
    ledger = run.summary["ledger"]
    record: dict[str, Any] = {
        "fidelity": _unseen(run),
        "baselines": _free(run),
        "gate": run.fidelity["gate"]["used"],
        "labels": run.summary["labels"],
        "passes": ledger["teacher_passes"],
        "full_passes": ledger["full_teacher_passes"],
        "saving": ledger["saving"],
        "seconds": {name: cost["seconds"] for name, cost in ledger["stages"].items()},
        "full_teacher_seconds": ledger["full_teacher_seconds"],
    }
    if analysis.truth:
        objective = judged_objective(run)
        problem = true_problem(run, objective, shop.truth(run), device=shop.device, progress=shop.progress)
        record["skill"] = skill_by_budget(run, problem, objective, analysis.budgets)
    return record


def _unseen(run: FinishedRun) -> dict[str, Any]:
    found: dict[str, Any] = run.fidelity["fidelity"]["q4"]
    return {name: found[name] for name in ("mse", "r2", "spearman", "pairs")}


def _free(run: FinishedRun) -> dict[str, Any]:
    """Return R^2 and Spearman on q4 of everything that is free."""
    return {
        name: {measure: record["q4"][measure] for measure in ("mse", "r2", "spearman")}
        for name, record in run.fidelity["baselines"].items()
    }
