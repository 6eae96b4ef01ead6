"""The analyses of a study: each returns its records, from which tables and figures are made.

sweep: runs over combinations of settings. layers: networks of other depths and widths on the labels of one run, the paper's
study of its student's size (method.md 6). tune: fine-tuning of every arm, over seeds of the whole chain. bad data: which score
finds bad rows.
"""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nncift.core.arrays import Floats
from nncift.core.pairs import LabelledPairs
from nncift.core.result_types import JsonObject
from nncift.core.seeds import derive
from nncift.data import Examples
from nncift.demo.world import read_truth
from nncift.errors import UsageError
from nncift.evaluation.metrics import number, r2, spearman
from nncift.labels.vectors import VectorFiles
from nncift.models.causal_lm import CausalLM
from nncift.runs import bad_rows as detection
from nncift.runs.finished import FinishedRun
from nncift.runs.full_teacher import judged_objective, skill_by_budget, true_problem
from nncift.runs.planting import KINDS, Planted, plant_kinds
from nncift.stages.inputs import read_pool
from nncift.storage.atomic import write_text
from nncift.student.paper_recipe import RECIPES
from nncift.studies.grid import Analysis
from nncift.studies.workspace import Ready, Workspace, write_pool

WIDTHS = (5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
DEPTHS = (1, 2, 3, 4, 5)
DEEP_WIDTHS = WIDTHS[:8]
CONFIGURATIONS: tuple[tuple[int, ...], ...] = tuple(
    (width,) * depth for depth in DEPTHS for width in (WIDTHS if depth <= 3 else DEEP_WIDTHS)
)
"""46 of them: ten widths for one to three layers, the eight smaller ones for four and five."""

SMALL = "small-teacher"


def sweep(workspace: Workspace, analysis: Analysis, seeds: range) -> list[JsonObject]:
    """Return one record per combination and seed: settings, fidelity on q4, skill by budget, passes and seconds by stage."""
    found = []
    combinations = analysis.combinations()
    with workspace.progress(f"{analysis.name}: runs", len(combinations) * len(seeds)) as advance:
        for chosen in combinations:
            for seed in seeds:
                key = {"run": {**analysis.run, **chosen.settings}, "budgets": list(analysis.budgets), "seed": seed}
                found.append(
                    workspace.cell(analysis, key, partial(_run_measured, workspace, analysis, chosen.settings, seed))
                )
                found[-1] |= {"name": chosen.name, "names": list(chosen.names)}
                advance(1)
    return found


def _run_measured(workspace: Workspace, analysis: Analysis, chosen: Mapping[str, Any], seed: int) -> JsonObject:
    run = workspace.run(workspace.settings(analysis, chosen, seed))
    ledger = run.result.ledger
    record: JsonObject = {
        "fidelity": _unseen(run),
        "baselines": _free(run),
        "gate": run.fidelity.gate.used,
        "labels": dict(run.result.labels),
        "passes": ledger.teacher_passes,
        "full_passes": ledger.full_teacher_passes,
        "saving": ledger.saving,
        "seconds": {name: cost.seconds for name, cost in ledger.stages.items()},
        "full_teacher_seconds": ledger.full_teacher_seconds,
    }
    if analysis.truth:
        objective = judged_objective(run)
        problem = true_problem(
            run, objective, workspace.truth(run), device=workspace.device, progress=workspace.progress
        )
        steps = skill_by_budget(run, problem, objective, analysis.budgets)
        record["skill"] = [step.to_json() for step in steps]
    return record


def _unseen(run: FinishedRun) -> JsonObject:
    return {name: getattr(run.fidelity.unseen, name) for name in ("mse", "r2", "spearman", "pairs")}


def _free(run: FinishedRun) -> JsonObject:
    """Return R^2 and Spearman on q4 of everything that is free."""
    return {
        name: {measure: getattr(record["q4"], measure) for measure in ("mse", "r2", "spearman")}
        for name, record in run.fidelity.baselines.items()
    }


def layers(workspace: Workspace, analysis: Analysis, seeds: range) -> list[JsonObject]:
    """Return one record per configuration and seed: parameters, seconds, and MSE, R^2 and Spearman on unseen items (q4).

    option widest: networks with wider layers are left out, and named.
    """
    widest = int(analysis.options.get("widest", WIDTHS[-1]))
    found: list[JsonObject] = []
    todo = [shape for shape in CONFIGURATIONS if shape[0] <= widest]
    found += [{"shape": list(shape), "left_out": True} for shape in CONFIGURATIONS if shape[0] > widest]
    with workspace.progress(f"{analysis.name}: networks", len(todo) * len(seeds)) as advance:
        for seed in seeds:
            run = workspace.run(workspace.settings(analysis, {}, seed))
            for shape in todo:
                key = {"run": analysis.run, "shape": list(shape), "seed": seed}
                found.append(workspace.cell(analysis, key, partial(_network_measured, run, shape, seed)))
                advance(1)
    return found


def _network_measured(run: FinishedRun, shape: Sequence[int], seed: int) -> JsonObject:
    labels = run.labels
    vectors = VectorFiles(run.path).on(labels["train"].target_ids, labels["train"].source_ids)
    train, test = labels["train"].present(), labels["test"].present()
    began = time.perf_counter()
    output, parameters = learned(shape, train, test, vectors.targets, vectors.sources, derive(seed, "layers"))
    guess = output.astype(np.float64)
    truth, once = test.value.astype(np.float64), np.ones(len(test))
    return {
        "parameters": parameters,
        "seconds": round(time.perf_counter() - began, 2),
        "labels": len(train),
        "mse": float(np.mean((truth - guess) ** 2)),
        "r2": number(r2(truth, guess, float(train.value.mean(dtype=np.float64)), once)),
        "spearman": number(spearman(truth, guess, once)),
    }


def learned(
    shape: Sequence[int], train: LabelledPairs, test: LabelledPairs, targets: Floats, sources: Floats, seed: int
) -> tuple[Floats, int]:
    """Train a network with these hidden layers by the published recipe; return its predictions of `test`, and its parameters."""
    import torch

    recipe = RECIPES["paper"]
    across, along = (torch.from_numpy(np.require(part, requirements=["C", "W"])) for part in (targets, sources))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = [across.shape[1] + along.shape[1], *shape, 1]
        steps: list[torch.nn.Module] = []
        for into, out in itertools.pairwise(sizes):
            steps += [torch.nn.Linear(into, out), torch.nn.ReLU()]
        network = torch.nn.Sequential(*steps[:-1])
        optimiser = torch.optim.Adam(network.parameters(), lr=recipe.learning_rate)
        target, source = (torch.from_numpy(codes.astype(np.int64)) for codes in (train.target, train.source))
        value = torch.from_numpy(train.value)
        for _ in range(recipe.epochs):
            for picked in torch.randperm(len(value)).split(recipe.batch):
                optimiser.zero_grad(set_to_none=True)
                pair = torch.cat([across[target[picked]], along[source[picked]]], dim=1)
                torch.nn.functional.mse_loss(network(pair)[:, 0], value[picked]).backward()
                optimiser.step()
        with torch.inference_mode():
            pair = torch.cat([across[test.target.astype(np.int64)], along[test.source.astype(np.int64)]], dim=1)
            guess = network(pair)[:, 0].numpy()
    return guess, sum(parameter.numel() for parameter in network.parameters())


def tune_arms(workspace: Workspace, analysis: Analysis, seeds: range) -> list[JsonObject]:
    """Return one record per way to use the rows and budget: arms, and their comparisons over all seeds.

    options are the settings of `nncift tune`; budgets, test rows and seeds are the study's. Every combination of `over` is an
    arm beside them: what the run selects with these settings of the selection in the place of its own. Without a smaller model
    the arm small-teacher is left out, and the record says so.
    """
    from nncift.finetune.comparison import summarise, with_costs
    from nncift.finetune.experiment import TuneExperiment
    from nncift.finetune.learning_rates import joined
    from nncift.finetune.tune_settings import resolve

    pool = workspace.pools[analysis.pool]
    if pool.test is None:
        raise UsageError(f"analysis {analysis.name!r} judges by held-out rows: give its pool hold_out or test")
    options = dict(analysis.options)
    lacks = SMALL in options.get("arms", ()) and pool.small_model is None
    if lacks:
        options["arms"] = [arm for arm in options["arms"] if arm != SMALL]
    parts, costs, passes = defaultdict(list), [], []
    for seed in seeds:
        run = workspace.run(workspace.settings(analysis, {}, seed))
        given = {
            **options,
            "test": [pool.test],
            "budget": [f"{100 * share:.10g}%" for share in analysis.budgets],
            "seeds": 1,
            "seed": seed,
            "device": workspace.device,
            "small_model": pool.small_model if SMALL in options.get("arms", ()) else None,
        }
        folder = workspace.folder / analysis.name / f"seed-{seed}"
        given["subset"] = _selected_otherwise(run, analysis, folder)
        experiment = TuneExperiment(run, resolve(given), folder, workspace.progress, truth=workspace.truth_folder(run))
        for group in experiment.rated:
            parts[group.how, group.budget].append(group)
        about = experiment.record()
        # What a run measured serves every selection from it.
        alike = {name: about["costs"].get("selected", {}) for name in given["subset"]}
        costs.append({**about["costs"], **alike})
        ledger = run.result.ledger
        passes.append({name: getattr(ledger, name) for name in ("teacher_passes", "full_teacher_passes", "saving")})
    result = []
    for groups in parts.values():
        found = summarise(experiment.best(joined(groups)), experiment.units, 0)
        result.append(
            {
                **with_costs(found, _mean_costs(costs), len(run.rows.ids)).to_json(),
                "seeds": len(seeds),
                "test_rows": about["test_rows"],
                "recipe": about["recipe"],
                "metrics": {
                    name: {"unit": unit, "higher_is_better": higher}
                    for name, (unit, higher) in experiment.units.items()
                },
                "costs": costs,
                "passes": passes,
                "left_out": [SMALL] if lacks else [],
            }
        )
    return result


def _selected_otherwise(run: FinishedRun, analysis: Analysis, folder: Path) -> dict[str, str]:
    """Write what a run selects with each combination of `over`, and return by its name as an arm a file of ids."""
    from nncift.finetune.arms import selected_ids

    files = {}
    share = f"{100 * max(analysis.budgets):.10g}%"
    for chosen in analysis.combinations() if analysis.over else ():
        ids = selected_ids(run, share, folder / "selections", chosen.settings)
        path = folder / "selections" / f"{chosen.as_arm}.txt"
        write_text(path, "".join(f"{row}\n" for row in ids))
        files[chosen.as_arm] = str(path)
    return files


def _mean_costs(seeds: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Return what choosing each arm's rows cost in forward passes, the mean over seeds."""
    arms = dict.fromkeys(arm for costs in seeds for arm in costs)
    return {arm: {"cost": float(np.mean([costs.get(arm, {}).get("cost", 0) for costs in seeds]))} for arm in arms}


def bad_data(workspace: Workspace, analysis: Analysis, seeds: range) -> list[JsonObject]:
    """Return one record per kind of bad row and seed: areas under the ROC curve with intervals over rows.

    `over` names the teachers. Of a generated world the corrupted and the repeated rows are known; in other pools shares of the
    rows (option plant, by kind) are made bad, anew for every seed.
    """
    found = []
    pool = workspace.pools[analysis.pool]
    if (pool.truth is None) != isinstance(analysis.options.get("plant"), Mapping):
        raise UsageError(
            f"analysis {analysis.name!r}: bad rows of a generated world are known; other pools need the option plant, shares of "
            f"rows by kind, such as {{swapped: 0.2}}; kinds: {', '.join(KINDS)}"
        )
    with workspace.progress(f"{analysis.name}: seeds", len(seeds)) as advance:
        for seed in seeds:
            key = {"run": analysis.run, "over": analysis.over, "options": analysis.options, "seed": seed}
            found += workspace.cell(analysis, key, partial(_bad_rows_found, workspace, analysis, seed))["found"]
            advance(1)
    return found


def _bad_rows_found(workspace: Workspace, analysis: Analysis, seed: int) -> JsonObject:
    pool = workspace.pools[analysis.pool]
    bads: dict[str, Collection[str]]
    copied: Collection[str] = ()
    if pool.truth is None:
        pool, planted = _planted(workspace, analysis, seed)
        workspace = replace(workspace, pools={**workspace.pools, analysis.pool: pool})
        bads = {KINDS[kind]: one.bad for kind, one in planted.items()}
        copied = frozenset().union(*(one.copied for one in planted.values()))
    else:
        truth = read_truth(Path(str(pool.truth)))
        bads = {
            "corrupted": [item for item, known in truth.items() if known.corrupted],
            "repeated": [item for item, known in truth.items() if known.duplicate_of],
        }
    runs, matrices, known = {}, {}, set()
    for chosen in analysis.combinations():
        run = workspace.run(workspace.settings(analysis, chosen.settings, seed))
        ledger = run.result.ledger
        # Runs that differ in their student alone have one full teacher; what costs nothing or a few passes is measured below.
        free = run.settings.teacher in detection.FREE and pool.model is not None
        if not free and (place := workspace.truth_folder(run)) not in known:
            known.add(place)
            matrices[chosen.name] = workspace.truth(run)
        runs[f"{chosen.name}, student ({ledger.teacher_passes / ledger.full_teacher_passes:.1%} of its passes)"] = run
    examples = _common([run.rows.examples for run in runs.values()])
    lm = None if pool.model is None else CausalLM.load(pool.model, device=workspace.device)
    scores = detection.pool_scores(
        examples, runs={name: run.path for name, run in runs.items()}, matrices=matrices, lm=lm, seed=seed
    )
    # A row that was made bad in another way, or that a copy repeats, is no example of a good one.
    spoilt = set().union(*bads.values(), copied) if pool.truth is None else set()
    record = []
    for what, bad in bads.items():
        among = set(examples.ids) - (spoilt - set(bad))
        judged = detection.judge(scores, set(bad) & among, among=among, seed=seed)
        unread = len(set().union(*(run.rows.ids for run in runs.values()))) - len(examples)
        record.append({"bad": what, "seed": seed, "unread": unread, "found": judged.to_json()})
    return {"found": record}


def _planted(workspace: Workspace, analysis: Analysis, seed: int) -> tuple[Ready, dict[str, Planted]]:
    """Return the pool with some rows made bad, and which these are, by kind."""
    pool = workspace.pools[analysis.pool]
    clean = read_pool(workspace.settings(analysis, analysis.combinations()[0].settings, seed))
    planted = plant_kinds(clean, analysis.options["plant"], seed)
    folder = workspace.folder / "pools" / f"{pool.name}-planted-{'-'.join(planted)}-{seed}"
    return replace(pool, files=write_pool(folder, [*planted.values()][-1].examples)), planted


def _common(pools: list[Examples]) -> Examples:
    """Return the rows that every teacher could read."""
    first, *rest = pools
    return first.subset([item for item in first.ids if all(item in other.ids for other in rest)])
