"""All numbers of a report: what `report.json` holds and `report.html` shows, in the order in which they are shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nncift.core.seeds import shuffled
from nncift.evaluation.verdicts import NAMES
from nncift.runs.explain import cover, sampled_targets
from nncift.runs.finished import FinishedRun
from nncift.runs.report import calibration as heldout
from nncift.runs.report import report_coverage as coverage
from nncift.runs.report import report_rows as rows
from nncift.runs.report import shift
from nncift.runs.report.samples import draw

REGION_ROWS = 2000


def numbers(run: FinishedRun, truth: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the sections of the report of a finished run as JSON; truth: what only the demo knows.

    Raises DataError where the run's files cannot be read.
    """
    sample = draw(run)
    targets = sampled_targets(run)
    result: dict[str, Any] = {
        "asked": _asked(run),
        "cost": run.summary.get("ledger", {}),
        "coverage": coverage.curves(run, targets),
        "value": run.summary.get("selection", {}),
        "shift": shift.tables(run),
        "held_out": heldout.held_out(run),
        "quadrants": _quadrants(run),
        "gate": _gate(run),
        "scores": rows.scores(run),
        "map": rows.plane(run, sample),
        "pairs": heldout.extremes(run, sample),
        "pairs_are_scores": run.pointwise,
        "uncovered": {"among": 0, "worst": [], "regions": []},
        "near_copies": rows.near_copies(run, sample),
        "warnings": list(run.summary.get("warnings", [])),
        "rows": rows.listed(run, sample),
        "sampled": {
            "rows": len(sample.ids),
            "of": sample.chosen + sample.dropped,
            "targets": len(targets),
            "of_targets": len(run.target_ids),
        },
    }
    if not run.pointwise and run.chosen:
        # A sample of its own: half of the rows that are shown one by one are chosen ones.
        among = shuffled(run.rows.ids, run.settings.seed, "report", "regions")[:REGION_ROWS]
        # Rows of the pool are targets too where there is no target set.
        looked_at = targets if run.rows.target_ids else tuple(dict.fromkeys((*targets, *among)))
        result["uncovered"] = {"among": len(among), **coverage.uncovered(run, cover(run, looked_at), sample, among)}
    result["truth"] = dict(truth) if truth else None
    result["headline"] = _headline(run, result)
    return result


def _asked(run: FinishedRun) -> dict[str, Any]:
    settings = run.settings.model_dump(mode="json")
    names = (
        "pool",
        "target",
        "existing",
        "teacher",
        "model",
        "encoder",
        "labels",
        "plan",
        "student",
        "recipe",
        "features",
        "objective",
        "budget",
        "quota",
        "limit",
        "seed",
    )
    return {
        "settings": {name: settings[name] for name in names if settings.get(name) not in (None, [], {}, ())},
        "pool": run.summary.get("pool"),
        "rejected": run.summary.get("rejected"),
        "selected": len(run.chosen),
        "labels": run.summary.get("labels", {}),
    }


def _quadrants(run: FinishedRun) -> list[dict[str, Any]]:
    """Return the student's measures by quadrant, then those of every baseline that there is, on unseen items."""
    wanted = ("pairs", "r2", "r2_interval", "spearman", "spearman_interval", "mse")
    network = str(run.summary.get("student", "student"))
    found = [
        {"who": "student", "name": f"student ({network})", "quadrant": quadrant, **{key: of.get(key) for key in wanted}}
        for quadrant, of in run.fidelity.get("fidelity", {}).items()
        if of.get("pairs")
    ]
    for name, quadrants in run.fidelity.get("baselines", {}).items():
        of = quadrants.get("q4", {})
        if of.get("pairs"):
            shown = NAMES.get(name, name)
            found.append({"who": name, "name": shown, "quadrant": "q4", **{key: of.get(key) for key in wanted}})
    return found


def _gate(run: FinishedRun) -> list[dict[str, Any]]:
    """Return the held-out selection skill of the student and of what is free, the best first; empty where it is unknown."""
    gate = run.fidelity.get("gate") or {}
    network = str(run.summary.get("student", "student"))
    found = [
        {
            "who": name,
            "name": f"student ({network})" if name == "student" else NAMES.get(name, name),
            **of,
            "used": name == gate.get("used"),
        }
        for name, of in gate.get("skill", {}).items()
    ]
    return sorted(found, key=lambda line: (-line["skill"], line["who"]))


def _headline(run: FinishedRun, result: dict[str, Any]) -> dict[str, Any]:
    """Return the answer in one sentence and the few figures that it rests on."""
    q4 = [line for line in result["quadrants"] if line["quadrant"] == "q4" and line["spearman"] is not None]
    student = next((line for line in q4 if line["who"] == "student"), None)
    best = max((line for line in q4 if line["who"] != "student"), key=lambda line: line["spearman"], default=None)
    verdict, level = _by_skill(result["gate"]) if result["gate"] else _by_rank(student, best, result["warnings"])
    value, controls = result["value"].get("value"), result["value"].get("controls", {})
    above = [name for name, other in controls.items() if value is not None and other is not None and other >= value]
    if above:
        names = ", ".join(coverage.CONTROLS.get(name, name) for name in above)
        verdict += f" By its own measure, the selection is no better than: {names}."
        level = "doubt"
    return {"verdict": verdict, "level": level, "student": student, "best_baseline": best}


def _by_skill(gate: list[dict[str, Any]]) -> tuple[str, str]:
    """Return sentence and level from what selects well on held-out rows, where 0 is chance and 1 the teacher's labels."""
    used = next(line for line in gate if line["used"])
    who = f"the {used['name']}" if used["who"] == "student" else used["name"]
    rival = next((line for line in gate if line is not used), None)
    beside = f"; {rival['name']} reaches {rival['skill']:.2f}" if rival else ""
    verdict = (
        f"On rows it has not seen, what {who} selects is worth {used['skill']:.2f} of the way from chance to what the teacher's "
        f"own labels select (standard error {used['error']:.2f}){beside}."
    )
    if used["who"] != "student":
        return f"{verdict} It is free: the student did worse, and its labels bought little.", "doubt"
    if used["skill"] <= 2 * used["error"]:
        return f"{verdict} That cannot be told from chance: read the warnings before you train on this.", "doubt"
    return verdict, "fair"


def _by_rank(student: dict[str, Any] | None, best: dict[str, Any] | None, warnings: list[str]) -> tuple[str, str]:
    """Return sentence and level from rank correlations, where no skill could be measured."""
    if student is None:
        return "How well the student predicts new rows could not be measured: too few held-out pairs.", "unknown"
    if best is not None and best["spearman"] >= student["spearman"]:
        return (
            f"On rows it has not seen, {best['name']} orders pairs at least as well as the student "
            f"({best['spearman']:.2f} against {student['spearman']:.2f} Spearman): read the warnings before you train on this."
        ), "doubt"
    rival = "" if best is None else f", the best baseline, {best['name']}, {best['spearman']:.2f}"
    verdict = (
        f"On rows it has not seen, the student reaches a Spearman correlation of {student['spearman']:.2f}{rival}."
    )
    return verdict, "doubt" if warnings else "fair"
