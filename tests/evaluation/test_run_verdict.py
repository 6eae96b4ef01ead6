"""The verdict of a run, from what its summary says."""

import json
from pathlib import Path
from typing import Any

import pytest

from nncift.config import resolve
from nncift.errors import DataError
from nncift.evaluation.gate import GateRecord, SkillRecord
from nncift.evaluation.intervals import PairInterval
from nncift.evaluation.run_verdict import (
    NO_VERDICT,
    RunSummary,
    leave_word,
    selection_key,
    training_record,
    training_verdict,
    verdict_of,
)
from nncift.selection.solve import SelectionRecord
from nncift.storage.ledger import Ledger, ModelCost, StageCost

SETTINGS = resolve({"pool": ("pool.jsonl",), "teacher": "delift", "model": "m", "encoder": "hash"})


def summary(skill: float, low: float, high: float, free: float = -1.0, **more: Any) -> RunSummary:
    found: dict[str, Any] = {
        "run": "runs/a",
        "pool": 1000,
        "rejected": 0,
        "contaminated": 0,
        "holdout": 0,
        "selected": 100,
    }
    found |= {"verdict": NO_VERDICT, "teacher": "delift", "student": "towers", "features": "text", "plan": "active"}
    found |= {"growth": (), "fidelity": {}, "baselines": {}, "warnings": (), "all_labelled": False}
    found |= {"labels": {"train": 10_000, "q2": 10, "q3": 10, "validation": 10, "test": 10}}
    skills = {"student": SkillRecord(skill, 0.1, (low, high)), "cosine": SkillRecord(free, 0.1, (-1.2, -0.8))}
    found["gate"] = GateRecord("student", "fl", 0.1, 40, 900, skills)
    found["pair_interval"] = PairInterval(None, 0.9, None, 0)
    found["selection"] = SelectionRecord("fl", 100, 10.0, 12.0, 0.8, 0, {"random": 8.0, "embedding": 9.0}, 0)
    spent = ModelCost(labels=9_000, weight=1, others=0, full=1_000_000, rows=10_000)
    found["ledger"] = Ledger.of({"label": StageCost(seconds=100.0)}, spent, 90_000.0)
    return RunSummary(**{**found, **more})


def record(verdict: str, selection: str = "") -> dict[str, Any]:
    one = {
        "metric": "loss",
        "arm": "selected",
        "against": "random",
        "difference": -0.1,
        "interval": [-0.2, -0.05],
        "verdict": verdict,
    }
    other = {**one, "against": "none", "verdict": "worse"}
    return {
        "selection": selection,
        "metrics": {
            "loss": {"unit": "nats", "higher_is_better": False},
            "exact": {"unit": "%", "higher_is_better": True},
        },
        "model": {"name": "tiny"},
        "test_rows": 50,
        "seeds": 3,
        "results": [
            {"how": "steps", "budget": "10%", "rows": 5, "arms": {}, "comparisons": [other, one]},
            {"how": "context", "budget": "10%", "rows": 5, "arms": {}, "comparisons": [{**one, "verdict": "worse"}]},
        ],
    }


@pytest.mark.parametrize(
    ("skill", "low", "high", "answer"),
    [
        (0.8, 0.6, 1.0, "yes"),
        (0.5, 0.01, 0.99, "yes"),
        (0.1, -0.2, 0.4, "no"),
        (-0.5, -0.9, -0.1, "no"),
        (0.3, 0.1, 0.49, "no"),
        (0.2, -0.5, 0.9, "unclear"),
        (0.8, -0.1, 1.0, "unclear"),
        (0.4, 0.2, 0.6, "unclear"),
    ],
)
def test_the_interval_decides(skill: float, low: float, high: float, answer: str) -> None:
    found = verdict_of(summary(skill, low, high), SETTINGS)
    assert found.agrees_with_teacher == answer
    assert found.trains_better == "not measured"
    assert f"{skill:.2f}" in found.why
    assert f"{low:.2f} to {high:.2f}" in found.why


def test_what_was_not_measured_is_unclear_and_says_so() -> None:
    bare = GateRecord("student", "fl", 0.1, 10, 90, {})
    found = verdict_of(summary(0.0, 0.0, 0.0, gate=bare), SETTINGS)
    assert found.agrees_with_teacher == "unclear"
    assert "10 labelled rows with 90 pairs are too few" in found.why


def test_nothing_predicted_agrees_by_itself() -> None:
    assert verdict_of(summary(0.0, -1.0, 0.1, all_labelled=True), SETTINGS).agrees_with_teacher == "yes"


def test_a_selection_below_random_rows_by_its_own_values_is_no_yes() -> None:
    worse = SelectionRecord("fl", 100, 7.0, 12.0, 0.8, 0, {"random": 8.0}, 0)
    found = verdict_of(summary(0.8, 0.6, 1.0, selection=worse), SETTINGS)
    assert found.agrees_with_teacher == "unclear"
    assert "no better than random rows" in found.why


def test_what_is_free_and_as_good_is_named() -> None:
    assert "costs no label" in verdict_of(summary(0.8, 0.6, 1.0, free=0.85), SETTINGS).why
    assert "costs no label" not in verdict_of(summary(0.8, 0.6, 1.0, free=0.75), SETTINGS).why


def test_twice_the_labels_of_each_axis_are_four_times_the_pairs() -> None:
    # 10,000 of 1,000,000 pairs are 10 % of each axis in 100 s; 20 % are 40,000, in 300 s more, and under four times the cap.
    found = verdict_of(summary(0.2, -0.5, 0.9), SETTINGS)
    assert found.next[0] == "nncift run --config runs/a/manifest.yaml --labels 20% --cost 40% --out runs/a"
    assert "--labels 20% takes about 5.0 min more." in found.why


def test_a_small_sample_is_told_to_take_more_rows() -> None:
    limited = SETTINGS.model_copy(update={"limit": 60})
    found = verdict_of(summary(0.2, -0.5, 0.9, pool=60), limited)
    assert found.next[0] == "nncift run --config runs/a/manifest.yaml --limit 300 --out runs/a-300"


def test_a_good_selection_is_trained_on_next() -> None:
    found = verdict_of(summary(0.8, 0.6, 1.0), SETTINGS)
    assert [command.split()[1] for command in found.next] == ["tune", "export"]
    assert " --test TEST.jsonl " in found.next[0]
    aside = resolve({"pool": ("pool.jsonl",), "teacher": "delift", "model": "m", "encoder": "hash", "holdout": "10%"})
    assert verdict_of(summary(0.8, 0.6, 1.0), aside).next[0] == "nncift tune runs/a --arms selected,random,none"


@pytest.mark.parametrize(
    ("verdict", "answer"), [("better", "yes"), ("worse", "no"), ("no significant difference", "unclear")]
)
def test_training_answers_its_own_question(verdict: str, answer: str) -> None:
    found = verdict_of(summary(0.8, 0.6, 1.0), SETTINGS, record(verdict))
    assert (found.agrees_with_teacher, found.trains_better) == ("yes", answer)
    assert (
        "-0.1 in loss (nats; lower is better, 95 % interval -0.2 to -0.05, 50 test rows, 3 training runs)" in found.why
    )
    assert not [command for command in found.next if command.startswith("nncift tune")]


def test_a_tune_of_another_selection_says_nothing(tmp_path: Path) -> None:
    key = selection_key(["a", "b"])
    (tmp_path / "tune").mkdir()
    (tmp_path / "tune" / "tune.json").write_text(json.dumps(record("better", key)))
    assert training_record(tmp_path, key) is not None
    assert training_record(tmp_path, selection_key(["a", "c"])) is None
    assert training_record(tmp_path / "none", key) is None
    elsewhere = tmp_path / "other" / "place"
    elsewhere.mkdir(parents=True)
    run = tmp_path / "other" / "run"
    run.mkdir()
    (elsewhere / "tune.json").write_text(json.dumps(record("worse", key)))
    leave_word(run, elsewhere)
    found = training_record(run, key)
    assert found is not None
    assert found["folder"] == "../place"
    assert training_verdict(found)[0] == training_verdict(record("worse", key))[0]
    (tmp_path / "tune" / "tune.json").write_text("no object")
    assert training_record(tmp_path, key) is None


@pytest.mark.parametrize(
    "changed",
    [
        {"metrics": {}},
        {"metrics": []},
        {"model": "tiny"},
        {"seeds": None},
        {"results": [{"how": "steps"}]},
        {"results": {"how": "steps"}},
    ],
)
def test_a_tune_that_somebody_has_edited_is_damaged(tmp_path: Path, changed: dict[str, Any]) -> None:
    (tmp_path / "tune").mkdir()
    (tmp_path / "tune" / "tune.json").write_text(json.dumps({**record("better", "key"), **changed}))
    with pytest.raises(DataError, match=r"tune\.json is damaged"):
        training_record(tmp_path, "key")


def test_the_first_metric_that_tells_rows_apart_gives_the_verdict() -> None:
    found = record("better")
    exact = {"metric": "exact", "arm": "selected", "against": "random", "difference": 0.0, "interval": [0.0, 0.0]}
    exact |= {"verdict": "no significant difference", "wins": 0, "losses": 0}
    found["metrics"] = {name: found["metrics"][name] for name in ("exact", "loss")}
    found["results"][0]["comparisons"].append(exact)
    answer, why = training_verdict(found)
    assert answer == "yes"
    assert "-0.1 in loss" in why
    assert why.endswith("By exact both models did the same on every test row.")
    # Where a single row differs, exact answers decide.
    exact |= {"difference": 2.0, "interval": [-2.0, 6.0], "wins": 1}
    answer, why = training_verdict(found)
    assert answer == "unclear"
    assert "+2 in exact" in why
