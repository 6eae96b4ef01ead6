"""All numbers of a report: what `report.json` holds and `report.html` shows, in the order in which they are shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from nncift.core.seeds import shuffled
from nncift.evaluation.verdicts import NAMES
from nncift.runs.explain import cover, sampled_targets
from nncift.runs.finished import FinishedRun
from nncift.runs.report.calibration import Extremes, HeldOut, extremes, held_out
from nncift.runs.report.report_coverage import CONTROLS, Coverage, Uncovered, curves, uncovered
from nncift.runs.report.report_rows import NearCopies, PoolMap, Row, Scores, listed, near_copies, plane, scores
from nncift.runs.report.samples import draw
from nncift.runs.report.shift import ShiftTable, tables

REGION_ROWS = 2000
ASKED = (
    "pool target existing teacher model encoder labels plan student recipe features objective budget quota limit seed"
).split()
"""The settings that are shown, where they were given."""


@dataclass(frozen=True)
class Asked:
    """What was asked of the run, and how many rows it read, rejected and selected."""

    settings: dict[str, Any]
    pool: int | None
    rejected: int | None
    selected: int
    labels: dict[str, Any]


@dataclass(frozen=True)
class Fidelity:
    """Measures of the student or of a baseline on the pairs of a quadrant; None for what the run has not measured."""

    who: str
    name: str
    quadrant: str
    pairs: int
    r2: float | None = None
    r2_interval: list[float] | None = None
    spearman: float | None = None
    spearman_interval: list[float] | None = None
    mse: float | None = None


@dataclass(frozen=True)
class GateSkill:
    """Selection skill on held-out rows of the student or of what is free. used: the run selects by it."""

    who: str
    name: str
    skill: float
    error: float
    interval: list[float] | None
    used: bool


@dataclass(frozen=True)
class Headline:
    """The answer in one sentence, how sure it is (fair, doubt, unknown), and the figures that it rests on."""

    verdict: str
    level: str
    student: Fidelity | None
    best_baseline: Fidelity | None


@dataclass(frozen=True)
class Report:
    """All sections, in the order in which they are shown. cost, value, truth: as the run stores them."""

    asked: Asked
    cost: dict[str, Any]
    coverage: Coverage
    value: dict[str, Any]
    shift: list[ShiftTable]
    held_out: HeldOut | None
    quadrants: list[Fidelity]
    gate: list[GateSkill]
    scores: Scores
    map: PoolMap
    pairs: Extremes
    pairs_are_scores: bool
    uncovered: Uncovered
    near_copies: NearCopies
    warnings: list[str]
    rows: list[Row]
    sampled: dict[str, int]
    truth: dict[str, Any] | None
    headline: Headline

    def to_json(self) -> dict[str, Any]:
        """Return what `report.json` holds."""
        return {**asdict(self), "rows": [row.to_json() for row in self.rows]}


def numbers(run: FinishedRun, truth: Mapping[str, Any] | None = None) -> Report:
    """Return the report of a finished run; truth: what only the demo knows. Raises DataError where files cannot be read."""
    sample, targets = draw(run), sampled_targets(run)
    least = Uncovered()
    if not run.pointwise and run.chosen:
        # A sample of its own: half of the rows that are shown one by one are chosen ones.
        among = shuffled(run.rows.ids, run.settings.seed, "report", "regions")[:REGION_ROWS]
        # Rows of the pool are targets too where there is no target set.
        looked_at = targets if run.rows.target_ids else tuple(dict.fromkeys((*targets, *among)))
        least = uncovered(run, cover(run, looked_at), sample, among)
    value, warnings = run.summary.get("selection", {}), list(run.summary.get("warnings", []))
    quadrants, gate = _quadrants(run), _gate(run)
    return Report(
        asked=_asked(run),
        cost=run.summary.get("ledger", {}),
        coverage=curves(run, targets),
        value=value,
        shift=tables(run),
        held_out=held_out(run),
        quadrants=quadrants,
        gate=gate,
        scores=scores(run),
        map=plane(run, sample),
        pairs=extremes(run, sample),
        pairs_are_scores=run.pointwise,
        uncovered=least,
        near_copies=near_copies(run, sample),
        warnings=warnings,
        rows=listed(run, sample),
        sampled={
            "rows": len(sample.ids),
            "of": sample.chosen + sample.dropped,
            "targets": len(targets),
            "of_targets": len(run.target_ids),
        },
        truth=dict(truth) if truth else None,
        headline=_headline(quadrants, gate, warnings, value),
    )


def _asked(run: FinishedRun) -> Asked:
    settings = run.settings.model_dump(mode="json")
    given = {name: settings[name] for name in ASKED if settings.get(name) not in (None, [], {}, ())}
    summary = run.summary
    return Asked(given, summary.get("pool"), summary.get("rejected"), len(run.chosen), summary.get("labels", {}))


def _named(run: FinishedRun, who: str) -> str:
    return f"student ({run.summary.get('student', 'student')})" if who == "student" else NAMES.get(who, who)


def _quadrants(run: FinishedRun) -> list[Fidelity]:
    """Return the student's measures by quadrant, then those of every baseline that there is, on unseen items."""
    found = [("student", quadrant, of) for quadrant, of in run.fidelity.get("fidelity", {}).items()]
    found += [(name, "q4", of.get("q4", {})) for name, of in run.fidelity.get("baselines", {}).items()]
    wanted = [one.name for one in fields(Fidelity)][3:]
    return [
        Fidelity(who, _named(run, who), quadrant, **{key: of.get(key) for key in wanted})
        for who, quadrant, of in found
        if of.get("pairs")
    ]


def _gate(run: FinishedRun) -> list[GateSkill]:
    """Return the held-out selection skill of the student and of what is free, the best first; empty where it is unknown."""
    gate = run.fidelity.get("gate") or {}
    found = [
        GateSkill(name, _named(run, name), of["skill"], of["error"], of.get("interval"), name == gate.get("used"))
        for name, of in gate.get("skill", {}).items()
    ]
    return sorted(found, key=lambda line: (-line.skill, line.who))


def _headline(
    quadrants: list[Fidelity], gate: list[GateSkill], warnings: list[str], measured: Mapping[str, Any]
) -> Headline:
    q4 = [line for line in quadrants if line.quadrant == "q4" and line.spearman is not None]
    student = next((line for line in q4 if line.who == "student"), None)
    best = max((line for line in q4 if line.who != "student"), key=lambda line: line.spearman or 0.0, default=None)
    verdict, level = _by_skill(gate) if gate else _by_rank(student, best, warnings)
    value, controls = measured.get("value"), measured.get("controls", {})
    above = [name for name, other in controls.items() if value is not None and other is not None and other >= value]
    if above:
        names = ", ".join(CONTROLS.get(name, name) for name in above)
        verdict += f" By its own measure, the selection is no better than: {names}."
        level = "doubt"
    return Headline(verdict, level, student, best)


def _by_skill(gate: list[GateSkill]) -> tuple[str, str]:
    """Return sentence and level from what selects well on held-out rows, where 0 is chance and 1 the teacher's labels."""
    used = next(line for line in gate if line.used)
    who = f"the {used.name}" if used.who == "student" else used.name
    rival = next((line for line in gate if line is not used), None)
    beside = f"; {rival.name} reaches {rival.skill:.2f}" if rival else ""
    verdict = (
        f"On rows it has not seen, what {who} selects is worth {used.skill:.2f} of the way from chance to what the teacher's "
        f"own labels select (standard error {used.error:.2f}){beside}."
    )
    if used.who != "student":
        return f"{verdict} It is free: the student did worse, and its labels bought little.", "doubt"
    if used.skill <= 2 * used.error:
        return (
            f"{verdict} That is no significant difference from chance: read the warnings before you train on this.",
            "doubt",
        )
    return verdict, "fair"


def _by_rank(student: Fidelity | None, best: Fidelity | None, warnings: list[str]) -> tuple[str, str]:
    """Return sentence and level from rank correlations, where no skill could be measured."""
    if student is None or student.spearman is None:
        return "How well the student predicts new rows could not be measured: too few held-out pairs.", "unknown"
    own, other = student.spearman, None if best is None else best.spearman
    if best is not None and other is not None and other >= own:
        return (
            f"On rows it has not seen, {best.name} orders pairs at least as well as the student ({other:.2f} against {own:.2f} "
            "Spearman): read the warnings before you train on this."
        ), "doubt"
    rival = "" if best is None else f", the best baseline, {best.name}, {other:.2f}"
    verdict = f"On rows it has not seen, the student reaches a Spearman correlation of {own:.2f}{rival}."
    return verdict, "doubt" if warnings else "fair"
