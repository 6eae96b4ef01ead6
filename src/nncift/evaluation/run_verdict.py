"""The verdict of a run: whether its selection agrees with the teacher, whether it trains better, and what to type next.

Two questions that are kept apart. Agreement is read from the selection skill on held-out labels, with its 90 % interval: yes,
where it is better than chance and at least half of the way to the teacher's own selection; no, where the whole interval lies
below that half; else unclear. Whether training on it helps is answered by training alone (`nncift tune`).
"""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nncift.config import RunSettings
from nncift.core.fingerprints import fingerprint
from nncift.core.result_types import JsonObject, Record
from nncift.core.texts import seconds
from nncift.evaluation.fidelity import LabelRound, Measures
from nncift.evaluation.gate import GateRecord
from nncift.evaluation.intervals import PairInterval
from nncift.evaluation.verdicts import NAMES
from nncift.selection.solve import SelectionRecord
from nncift.storage.atomic import read_json, write_json
from nncift.storage.ledger import Ledger
from nncift.student.candidates import is_free, is_student

Agreement = Literal["yes", "no", "unclear"]
Training = Literal["yes", "no", "unclear", "not measured"]

HALF = 0.5
"""Skill from which on a selection is said to agree: half of the way from chance to what the teacher's labels select."""

ENOUGH_ROWS = 300
"""Rows to take where fewer were: below these, agreement is known roughly."""

ALMOST_ALL = 0.9
"""Labelled share of an axis from which on more labels are no advice."""

BEARABLE = 1800.0
"""Seconds up to which labelling everything is advised to settle the question."""

AGREES = {
    "yes": "Yes: the selection agrees with the teacher",
    "no": "No: the selection does not agree with the teacher",
    "unclear": "Unclear: the labels do not settle whether the selection agrees with the teacher",
}
TRAINS = {
    "yes": "training on it is better than on random rows",
    "no": "training on it is worse than on random rows",
    "unclear": "training shows no significant difference from random rows",
    "not measured": "whether it trains better has not been measured",
}
TUNE, TUNED = Path("tune") / "tune.json", "tuned.json"
RANDOM_CONTROLS = {"random": "random rows", "stratified": "random rows by source", "longest": "the longest responses"}


@dataclass(frozen=True)
class Verdict(Record):
    """The answer to both questions, why in one or two sentences, and commands to type next."""

    agrees_with_teacher: Agreement
    trains_better: Training
    why: str
    next: tuple[str, ...]

    @property
    def headline(self) -> str:
        """The answer in one sentence."""
        return f"{AGREES[self.agrees_with_teacher]}; {TRAINS[self.trains_better]}."


NO_VERDICT = Verdict("unclear", "not measured", "", ())
"""Stands in a summary until its verdict is known."""


@dataclass(frozen=True)
class RunSummary(Record):
    """What `--json` prints and `summary.json` holds.

    contaminated: of the rejected rows, those that test rows are in. holdout: rows that are set aside. labels: by split.
    growth: what each round of labels reached. all_labelled: the teacher labelled every row, since a student would have saved
    nothing.
    """

    run: str
    pool: int
    rejected: int
    contaminated: int
    holdout: int
    selected: int
    verdict: Verdict
    teacher: str
    student: str
    features: str
    gate: GateRecord
    growth: tuple[LabelRound, ...]
    pair_interval: PairInterval
    plan: str
    labels: Mapping[str, int]
    all_labelled: bool
    fidelity: Mapping[str, Measures]
    baselines: Mapping[str, Mapping[str, Measures]]
    selection: SelectionRecord
    ledger: Ledger
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class TuneMetric(Record):
    """What a tune measured in."""

    unit: str
    higher_is_better: bool


@dataclass(frozen=True)
class TuneFigures(Record):
    """An arm in a metric, over seeds."""

    mean: float | None
    deviation: float | None = None


@dataclass(frozen=True)
class TuneArm(Record):
    """An arm, by metric."""

    metrics: Mapping[str, TuneFigures | None]


@dataclass(frozen=True)
class TuneComparison(Record):
    """An arm less another in a metric. wins, losses: test rows on which it is better, and worse; 1 where nobody counted."""

    metric: str
    arm: str
    against: str
    verdict: str
    difference: float | None
    interval: tuple[float, float] | None
    wins: int = 1
    losses: int = 1


@dataclass(frozen=True)
class TuneGroup(Record):
    """Arms that were trained alike."""

    how: str
    budget: str
    rows: int
    arms: Mapping[str, TuneArm]
    comparisons: tuple[TuneComparison, ...]


@dataclass(frozen=True)
class TuneModel(Record):
    """The model that was trained."""

    name: str


@dataclass(frozen=True)
class TuneRecord(Record):
    """What verdict and report read of `tune.json`, which holds more."""

    metrics: Mapping[str, TuneMetric]
    model: TuneModel
    test_rows: int
    seeds: int
    results: tuple[TuneGroup, ...]

    def __post_init__(self) -> None:
        """Raise ValueError for a comparison in a metric that was not measured."""
        if odd := {one.metric for group in self.results for one in group.comparisons} - set(self.metrics):
            raise ValueError(f"it compares in {min(odd)!r}, which it has not measured")


def selection_key(ids: Sequence[str]) -> str:
    """Return the hash of a selection by which a tune says what it trained on."""
    return fingerprint("selection", list(ids))


def training_record(run: Path, selection: str) -> JsonObject | None:
    """Return what `nncift tune` recorded of this selection, with its `folder` as the run sees it; None where it has not trained.

    That is the folder that the last tune left word of (`leave_word`), else the run's own. Raises DataError for a damaged one.
    """
    word = _object(run / TUNED)
    for folder in ((word or {}).get("folder"), str(TUNE.parent)):
        path = run / str(folder) / TUNE.name
        found = _object(path) if folder else None
        if found is not None and found.get("selection") == selection:
            TuneRecord.of_json(found, str(path), command="nncift tune")
            return {**found, "folder": folder}
    return None


def leave_word(run: Path, folder: Path) -> None:
    """Write into a run where its last tune lies, so that its report and verdict know of it wherever `--out` was."""
    write_json(run / TUNED, {"folder": Path(os.path.relpath(folder.resolve(), run.resolve())).as_posix()})


def _object(path: Path) -> JsonObject | None:
    """Return the JSON object of a file; None where there is none."""
    try:
        found = read_json(path)
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def verdict_of(summary: RunSummary, settings: RunSettings, training: JsonObject | None = None) -> Verdict:
    """Return the verdict of a run; that of its summary is not looked at. training: what a tune recorded."""
    agrees, why = _agreement(summary)
    trains, trained = training_verdict(training)
    advice = list(_advice(summary, settings, agrees, trains))
    said = (why, trained, *(one.about for one in advice))
    return Verdict(agrees, trains, " ".join(part for part in said if part), tuple(one.command for one in advice))


def _agreement(summary: RunSummary) -> tuple[Agreement, str]:
    if summary.all_labelled:
        return "yes", "The teacher labelled every row itself: nothing of the selection is predicted."
    gate, used, found = summary.gate, summary.gate.used, summary.gate.headline
    if found is None:
        return (
            "unclear",
            f"It could not be measured: {gate.items:,} labelled rows with {gate.pairs:,} pairs are too few to repeat the "
            "selection on.",
        )
    skill, (low, high) = found.skill, found.interval
    better = "is free" if is_free(used) else "learns from the same labels"
    who = (
        "the student"
        if is_student(used)
        else f"{NAMES.get(used, used)}, which {better} and did better than the student,"
    )
    measured = (
        f"On rows whose labels it has not seen, what {who} selects is worth {skill:.2f} of the way from chance (0) to the "
        f"teacher's own selection (1), 90 % interval {low:.2f} to {high:.2f}"
    )
    beaten = _beaten_by(summary.selection)
    if low > 0 and skill >= HALF:
        if beaten:
            return "unclear", f"{measured}; yet by the values of this run itself it is no better than {beaten}."
        return "yes", f"{measured}.{_free_rival(gate)}"
    if high < HALF:
        return "no", f"{measured}: nearer to chance than to the teacher.{_free_rival(gate)}"
    if low > 0:
        return "unclear", f"{measured}: better than chance, but it may be less than half of what the teacher finds."
    return "unclear", f"{measured}: too wide an interval to tell it from chance."


def _free_rival(gate: GateRecord) -> str:
    """Return a sentence on the best of what is free, where it selects no worse than the student that is used."""
    free = {name: of.skill for name, of in gate.skill.items() if is_free(name)}
    if not free or gate.headline is None or is_free(gate.used):
        return ""
    best = max(free, key=lambda name: free[name])
    if free[best] < gate.headline.skill:
        return ""
    return f" {_capital(NAMES.get(best, best))} reaches {free[best]:.2f}, and costs no label."


def _beaten_by(selection: SelectionRecord) -> str | None:
    """Return what needs no influence at all and has at least the selection's value; None where nothing does."""
    for name, said in RANDOM_CONTROLS.items():
        value = selection.controls.get(name)
        if value is not None and value >= selection.value:
            return said
    return None


def training_verdict(record: JsonObject | None) -> tuple[Training, str]:
    """Return what a tune found of the selection beside random rows, without rows shown in context.

    The first metric decides that tells a single test row apart: where a model solves nothing, exact answers say nothing.
    """
    if record is None:
        return "not measured", ""
    every = list(_beside_random(record))
    known = list(record.get("metrics") or {})
    telling = [one["metric"] for one in every if one.get("wins", 1) or one.get("losses", 1)]
    decides = min(telling or [one["metric"] for one in every], key=known.index, default=None)
    found = [one for one in every if one["metric"] == decides]
    if not found:
        return "not measured", ""
    sides = {one["verdict"] for one in found}
    answer: Training = "unclear"
    if "better" in sides and "worse" not in sides:
        answer = "yes"
    elif "worse" in sides and "better" not in sides:
        answer = "no"
    first = next((one for one in found if one["verdict"] in ("better", "worse")), found[0])
    unit, higher = record["metrics"][first["metric"]]["unit"], record["metrics"][first["metric"]]["higher_is_better"]
    bounds = first["interval"]
    between = "" if bounds is None else f", 95 % interval {bounds[0]:+.3g} to {bounds[1]:+.3g}"
    model = Path(record["model"]["name"]).name
    return answer, (
        f"Trained on it, the model {model} differs from training on random rows by {first['difference']:+.3g} in "
        f"{first['metric']} ({unit}; {'higher' if higher else 'lower'} is better{between}, {record['test_rows']} test rows, "
        f"{record['seeds']} training runs).{_same_in(known[: known.index(first['metric'])])}"
    )


def _same_in(names: Sequence[str]) -> str:
    return f" By {', '.join(names)} both models did the same on every test row." if names else ""


def _beside_random(record: JsonObject) -> Iterator[JsonObject]:
    """Yield the comparisons of the selection with random rows, of arms that were trained."""
    for group in record.get("results") or ():
        if group["how"] == "context":
            continue
        for one in group["comparisons"]:
            if (one["arm"], one["against"]) == ("selected", "random") and one["difference"] is not None:
                yield one


@dataclass(frozen=True)
class _Advice:
    """A command, and in a sentence what it brings or costs."""

    command: str
    about: str = ""


def _advice(summary: RunSummary, settings: RunSettings, agrees: Agreement, trains: Training) -> Iterator[_Advice]:
    """Yield what to do next, what helps most first."""
    run = summary.run
    if agrees != "yes":
        yield from _to_measure_more(summary, settings, run)
    if trains == "not measured":
        # Rows that were set aside need no test file.
        tests = "" if settings.holdout is not None else " --test TEST.jsonl"
        yield _Advice(f"nncift tune {shlex.quote(run)}{tests} --arms selected,random,none")
    if agrees == "yes" and trains != "no":
        yield _Advice(f"nncift export {shlex.quote(run)} --to trl --out {shlex.quote(f'{run}-train.jsonl')}")
    elif agrees == "no" and settings.pool:
        # Only where rows can be read again.
        yield _Advice(f"{_again(run)} --teacher delift-se --labels 100% --out {shlex.quote(f'{run}-embeddings')}")


def _to_measure_more(summary: RunSummary, settings: RunSettings, run: str) -> Iterator[_Advice]:
    rows, whole = summary.pool, summary.ledger.full_teacher_seconds
    if settings.pool and settings.limit is not None and rows < ENOUGH_ROWS:
        about = f"{rows:,} rows are few to measure this on: take {ENOUGH_ROWS}."
        yield _Advice(f"{_again(run)} --limit {ENOUGH_ROWS} --out {shlex.quote(f'{run}-{ENOUGH_ROWS}')}", about)
    elif settings.pool and (more := _more_labels(summary)) is not None:
        yield _Advice(f"{_again(run)} {more.command} --out {shlex.quote(run)}", more.about)
    if whole <= BEARABLE:
        about = f"The full teacher would settle it in about {seconds(whole)}."
        yield _Advice(f"nncift evaluate {shlex.quote(run)} --full-teacher", about)


def _again(run: str) -> str:
    return f"nncift run --config {shlex.quote(f'{run}/manifest.yaml')}"


def _more_labels(summary: RunSummary) -> _Advice | None:
    """Return flags that double the labels of each axis, with what they add to the run's time; None where all are labelled."""
    labels, rows, ledger = summary.labels, summary.pool, summary.ledger
    full = ledger.full_teacher_passes
    by_row = "rows" in labels or "q2" not in labels
    have = labels.get("rows", labels.get("train", 0))
    share = have / rows if by_row and rows else math.sqrt(labels.get("train", 0) / full) if full else 0.0
    if not 0 < share < ALMOST_ALL:
        return None
    wanted = min(1.0, 2 * share)
    growth = wanted / share if by_row else (wanted / share) ** 2
    took = ledger.stages["label"].seconds if "label" in ledger.stages else 0.0
    # Labels are capped by their cost, too: the cap has to rise with them.
    cost = max(0.1, ledger.share_of_training) * growth
    labels_wanted = f"{max(1, round(100 * wanted))}%"
    about = f"--labels {labels_wanted} takes about {seconds(took * (growth - 1))} more." if took > 0 else ""
    return _Advice(f"--labels {labels_wanted} --cost {math.ceil(100 * cost)}%", about)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
