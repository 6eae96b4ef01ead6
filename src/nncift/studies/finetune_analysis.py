"""Fine-tuning of every arm over seeds of the whole chain: labels, student, selection and training are all drawn anew."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from nncift.errors import UsageError
from nncift.studies.grid import Analysis
from nncift.studies.workspace import Workshop

SMALL = "small-teacher"


def tune_arms(shop: Workshop, analysis: Analysis, seeds: range) -> list[dict[str, Any]]:
    """Return one record per way to use the rows and budget: arms, and their comparisons over all seeds.

    options are the settings of `nncift tune`; budgets, test rows and seeds are the study's. Without a smaller model the arm
    small-teacher is left out, and the record says so.
    """
    from nncift.finetune.comparison import joined, tell
    from nncift.finetune.experiment import TuneExperiment
    from nncift.finetune.tune_settings import resolve

    pool = shop.pools[analysis.pool]
    if pool.test is None:
        raise UsageError(f"analysis {analysis.name!r} judges by held-out rows: give its pool hold_out or test")
    options = dict(analysis.options)
    lacks = SMALL in options.get("arms", ()) and pool.small_model is None
    if lacks:
        options["arms"] = [arm for arm in options["arms"] if arm != SMALL]
    parts, costs, passes = defaultdict(list), [], []
    for seed in seeds:
        run = shop.run(shop.settings(analysis, {}, seed))
        given = {
            **options,
            "test": [pool.test],
            "budget": [f"{100 * share:.10g}%" for share in analysis.budgets],
            "seeds": 1,
            "seed": seed,
            "device": shop.device,
            "small_model": pool.small_model if SMALL in options.get("arms", ()) else None,
        }
        folder = shop.folder / analysis.name / f"seed-{seed}"
        proof = TuneExperiment(run, resolve(given), folder, shop.progress, truth=shop.truth_folder(run))
        for group in proof.groups:
            parts[group.how, group.budget].append(group)
        about = proof.record()
        costs.append(about["costs"])
        ledger = run.summary["ledger"]
        passes.append({name: ledger[name] for name in ("teacher_passes", "full_teacher_passes", "saving")})
    result = []
    for groups in parts.values():
        record = tell(joined(groups), proof.units, 0)
        result.append(
            {
                **record,
                "seeds": len(seeds),
                "test_rows": about["test_rows"],
                "recipe": about["recipe"],
                "metrics": {
                    name: {"unit": unit, "higher_is_better": higher} for name, (unit, higher) in proof.units.items()
                },
                "costs": costs,
                "passes": passes,
                "left_out": [SMALL] if lacks else [],
            }
        )
    return result
