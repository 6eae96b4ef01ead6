"""Which score finds bad rows: every teacher and its student beside loss, length, IFD and chance (`evaluate.detection`)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from nncift.data import Examples
from nncift.demo.world import read_truth
from nncift.errors import UsageError
from nncift.models.causal_lm import CausalLM
from nncift.runs import bad_rows as detection
from nncift.runs.planting import swapped
from nncift.stages.inputs import read_pool
from nncift.studies.grid import Analysis
from nncift.studies.pools import Ready, write_pool
from nncift.studies.workspace import Workshop


def bad_data(shop: Workshop, analysis: Analysis, seeds: range) -> list[dict[str, Any]]:
    """Return one record per kind of bad row and seed: areas under the ROC curve with intervals over rows.

    `over` names the teachers. Of a generated world the corrupted and the repeated rows are known; of other pools a share of
    the responses (option swap) is exchanged, anew for every seed.
    """
    found = []
    pool = shop.pools[analysis.pool]
    share = analysis.options.get("swap")
    if (pool.truth is None) == (share is None):
        raise UsageError(
            f"analysis {analysis.name!r}: of a generated world the bad rows are known, and other pools need the option swap"
        )
    with shop.progress(f"{analysis.name}: seeds", len(seeds)) as advance:
        for seed in seeds:
            key = {"run": analysis.run, "over": analysis.over, "options": analysis.options, "seed": seed}
            found += shop.cell(analysis, key, partial(_measured, shop, analysis, seed))["found"]
            advance(1)
    return found


def _measured(shop: Workshop, analysis: Analysis, seed: int) -> dict[str, Any]:
    pool = shop.pools[analysis.pool]
    share = analysis.options.get("swap")
    bads: dict[str, Collection[str]]
    if share is not None:
        pool, bad = _planted(shop, analysis, float(share), seed)
        shop, bads = replace(shop, pools={**shop.pools, analysis.pool: pool}), {"exchanged": bad}
    else:
        truth = read_truth(Path(str(pool.truth)))
        bads = {
            "corrupted": [item for item, known in truth.items() if known.corrupted],
            "repeated": [item for item, known in truth.items() if known.duplicate_of],
        }
    runs, matrices, known = {}, {}, set()
    for chosen in analysis.combinations():
        run = shop.run(shop.settings(analysis, chosen.settings, seed))
        ledger = run.summary["ledger"]
        # Runs that differ in their student alone have one full teacher.
        if (place := shop.truth_folder(run)) not in known:
            known.add(place)
            matrices[chosen.name] = shop.truth(run)
        runs[
            f"{chosen.name}, student ({ledger['teacher_passes'] / ledger['full_teacher_passes']:.1%} of its passes)"
        ] = run
    examples = _common([run.rows.examples for run in runs.values()])
    lm = None if pool.model is None else CausalLM.load(pool.model, device=shop.device)
    record = []
    for what, bad in bads.items():
        judged = detection.bad_data(
            examples,
            set(bad) & set(examples.ids),
            runs={name: run.path for name, run in runs.items()},
            matrices=matrices,
            lm=lm,
            seed=seed,
        )
        unread = len(set().union(*(run.rows.ids for run in runs.values()))) - len(examples)
        record.append({"bad": what, "seed": seed, "unread": unread, "found": judged.as_dict()})
    return {"found": record}


def _planted(shop: Workshop, analysis: Analysis, share: float, seed: int) -> tuple[Ready, Collection[str]]:
    """Return the pool with some responses exchanged, and the ids of these rows."""
    pool = shop.pools[analysis.pool]
    clean = read_pool(shop.settings(analysis, analysis.combinations()[0].settings, seed))
    planted = swapped(clean, share, seed)
    folder = shop.folder / "pools" / f"{pool.name}-exchanged-{seed}"
    return replace(pool, files=write_pool(folder, planted.examples)), planted.bad


def _common(pools: list[Examples]) -> Examples:
    """Return the rows that every teacher could read."""
    first, *rest = pools
    return first.subset([item for item in first.ids if all(item in other.ids for other in rest)])
