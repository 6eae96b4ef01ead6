"""All numbers of a report: what `report.json` holds and `report.html` shows, in the order in which they are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import PurePath
from typing import Any

from nncift.core.result_types import JsonObject
from nncift.core.seeds import shuffled
from nncift.evaluation.fidelity import HeldOutPairs, Interval
from nncift.evaluation.run_verdict import Verdict, selection_key, training_record
from nncift.evaluation.verdicts import NAMES, grouped
from nncift.runs.explain import cover, sampled_targets
from nncift.runs.finished import FinishedRun
from nncift.runs.renew_verdict import verdict
from nncift.runs.report.extreme_pairs import Extremes, extremes
from nncift.runs.report.label_issues import Issue, issues
from nncift.runs.report.report_coverage import Coverage, Uncovered, curves, uncovered
from nncift.runs.report.report_rows import (
    Lengths,
    NearCopies,
    PoolMap,
    Row,
    Scores,
    lengths,
    listed,
    near_copies,
    plane,
    scores,
)
from nncift.runs.report.samples import PROMPT_BYTES, RESPONSE_BYTES, Sample, cut, draw, listing
from nncift.runs.report.shift import ShiftTable, tables

REGION_ROWS = 2000
WHOLE_ROWS, WHOLE_CHARACTERS = 10, 4000
ASKED = (
    "pool target existing teacher model encoder labels plan student recipe features objective budget quota limit seed"
).split()
"""The settings that are shown, where they were given."""
FILES = ("pool", "target", "existing")


@dataclass(frozen=True)
class Asked:
    """What was asked of the run, and how many rows it read, rejected and selected. all_labelled: nothing is predicted."""

    settings: dict[str, Any]
    pool: int | None
    rejected: int | None
    selected: int
    labels: dict[str, Any]
    all_labelled: bool = False


@dataclass(frozen=True)
class Fidelity:
    """Measures of the student or of a baseline on the pairs of a quadrant; None for what the run has not measured."""

    who: str
    name: str
    quadrant: str
    pairs: int
    r2: float | None = None
    r2_interval: Interval = None
    spearman: float | None = None
    spearman_interval: Interval = None
    mse: float | None = None


@dataclass(frozen=True)
class GateSkill:
    """Selection skill on held-out rows of the student, of the one beside it, or of what is free. used: the run selects by it."""

    who: str
    name: str
    skill: float
    error: float
    interval: Interval
    used: bool


@dataclass(frozen=True)
class FullRow:
    """A chosen row with its whole texts, up to a few thousand characters."""

    id: str
    rank: int | None
    prompt: str
    response: str


@dataclass(frozen=True)
class Report:
    """All sections. cost, value, truth: as the run stores them. listing: rows of the page's table, those of `rows` first.

    target_texts: of the targets that rows name. training: what `nncift tune` found of this selection, in sentences.
    texts: whether the rows' texts are shown.
    """

    verdict: Verdict
    headline: str
    asked: Asked
    cost: dict[str, Any]
    coverage: Coverage
    value: dict[str, Any]
    shift: list[ShiftTable]
    held_out: HeldOutPairs | None
    quadrants: list[Fidelity]
    gate: list[GateSkill]
    scores: Scores
    map: PoolMap
    pairs: Extremes
    pairs_are_scores: bool
    uncovered: Uncovered
    near_copies: NearCopies
    issues: list[Issue]
    lengths: Lengths
    full: list[FullRow]
    warnings: list[str]
    rows: list[Row]
    listing: list[Row]
    target_texts: dict[str, str]
    sampled: dict[str, int]
    truth: dict[str, Any] | None
    training: Mapping[str, Any] | None
    student: Fidelity | None
    best_baseline: Fidelity | None
    texts: bool = True

    def to_json(self) -> JsonObject:
        """Return what `report.json` holds: of the table only the rows that are described one by one."""
        bare = replace(self, listing=[], rows=[])
        found = {**asdict(bare), "verdict": self.verdict.to_json(), "rows": [_brief(row) for row in self.rows]}
        found["issues"] = [{name: value for name, value in one.items() if name != "ids"} for one in found["issues"]]
        found["uncovered"].pop("centres")
        return {name: value for name, value in found.items() if name not in ("listing", "training")}


def _brief(row: Row) -> JsonObject:
    """Return a row with the beginnings of its texts."""
    return replace(row, prompt=cut(row.prompt, PROMPT_BYTES), response=cut(row.response, RESPONSE_BYTES)).to_json()


def numbers(run: FinishedRun, truth: Mapping[str, Any] | None = None, *, texts: bool = True) -> Report:
    """Return the report of a finished run; truth: what only the demo knows. Raises DataError where files cannot be read.

    texts: False leaves out the rows' texts and the folders of files, for a copy to pass on.
    """
    sample, targets = draw(run, texts=texts), sampled_targets(run)
    least = Uncovered()
    if not run.pointwise and run.chosen:
        # A sample of its own: half of the rows that are shown one by one are chosen ones.
        among = shuffled(run.rows.ids, run.settings.seed, "report", "regions")[:REGION_ROWS]
        # Rows of the pool are targets too where there is no target set.
        looked_at = targets if run.rows.target_ids else tuple(dict.fromkeys((*targets, *among)))
        least = uncovered(run, cover(run, looked_at), sample, among)
    value, warnings = run.summary.get("selection", {}), list(run.summary.get("warnings", []))
    quadrants, gate = _quadrants(run), _gate(run)
    student, best = _unseen(quadrants)
    found = issues(run, sample, (truth or {}).get("auc"))
    marked = {item: tuple(one.kind for one in found if item in one.ids) for one in found for item in one.ids}
    shown = listed(run, sample, listing(sample), least.centres, marked)
    rows = shown[: len(sample.ids)]
    answer = verdict(run)
    return Report(
        verdict=answer,
        headline=answer.headline,
        asked=_asked(run, texts),
        cost=run.summary.get("ledger", {}),
        coverage=curves(run, targets),
        value=value,
        shift=tables(run),
        held_out=run.fidelity.held_out,
        quadrants=quadrants,
        gate=gate,
        scores=scores(run),
        map=plane(run, sample),
        pairs=extremes(run, sample),
        pairs_are_scores=run.pointwise,
        uncovered=least,
        near_copies=near_copies(run, sample),
        issues=found,
        lengths=lengths(run),
        full=_full(run) if texts else [],
        warnings=grouped(warnings),
        rows=rows,
        listing=shown,
        target_texts=_target_texts(run, sample, shown),
        sampled={
            "rows": len(sample.ids),
            "listed": len(shown),
            "of": sample.chosen + sample.dropped,
            "targets": len(targets),
            "of_targets": len(run.target_ids),
        },
        truth=dict(truth) if truth else None,
        training=training_record(run.path, selection_key(list(run.chosen))),
        student=student,
        best_baseline=best,
        texts=texts,
    )


def _unseen(quadrants: list[Fidelity]) -> tuple[Fidelity | None, Fidelity | None]:
    """Return the measures of the student and of the best baseline on pairs of unseen items, as far as there are any."""
    q4 = [line for line in quadrants if line.quadrant == "q4" and line.spearman is not None]
    student = next((line for line in q4 if line.who == "student"), None)
    best = max((line for line in q4 if line.who != "student"), key=lambda line: line.spearman or 0.0, default=None)
    return student, best


def _full(run: FinishedRun) -> list[FullRow]:
    found = []
    for item in run.chosen[:WHOLE_ROWS]:
        example = run.rows.example(item)
        prompt, response = (_at_most(text, WHOLE_CHARACTERS) for text in (example.prompt, example.response))
        found.append(FullRow(item, run.choices[item].rank, prompt, response))
    return found


def _at_most(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]} … ({len(text):,} characters in all)"


def _target_texts(run: FinishedRun, sample: Sample, rows: Sequence[Row]) -> dict[str, str]:
    """Return the beginnings of the targets that rows name."""
    named = {one[0] for row in rows for one in row.serves or ()}
    return {item: sample.text(item, 90) for item in sorted(named)}


def _asked(run: FinishedRun, folders: bool) -> Asked:
    settings = run.settings.model_dump(mode="json")
    given = {name: settings[name] for name in ASKED if settings.get(name) not in (None, [], {}, ())}
    if not folders:
        given |= {name: [PurePath(file).name for file in given[name]] for name in FILES if name in given}
        given |= {name: PurePath(given[name]).name for name in ("model", "encoder") if name in given}
    summary = run.summary
    counts = summary.get("pool"), summary.get("rejected"), len(run.chosen)
    return Asked(given, *counts, summary.get("labels", {}), bool(summary.get("all_labelled")))


def _named(run: FinishedRun, who: str) -> str:
    return f"student ({run.summary.get('student', 'student')})" if who == "student" else NAMES.get(who, who)


def _quadrants(run: FinishedRun) -> list[Fidelity]:
    """Return the student's measures by quadrant, then those of every baseline that there is, on unseen items."""
    found = [("student", quadrant, of) for quadrant, of in run.fidelity.fidelity.items()]
    found += [(name, "q4", of["q4"]) for name, of in run.fidelity.baselines.items() if "q4" in of]
    wanted = [one.name for one in fields(Fidelity)][3:]
    return [
        Fidelity(who, _named(run, who), quadrant, **{key: getattr(of, key) for key in wanted})
        for who, quadrant, of in found
        if of.pairs
    ]


def _gate(run: FinishedRun) -> list[GateSkill]:
    """Return the held-out selection skill of every candidate, the best first; empty where it is unknown."""
    gate = run.fidelity.gate
    found = [
        GateSkill(name, _named(run, name), of.skill, of.error, of.interval, name == gate.used)
        for name, of in gate.skill.items()
    ]
    return sorted(found, key=lambda line: (-line.skill, line.who))
