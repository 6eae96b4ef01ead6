"""Pages from records alone, and a whole small study of tuning and of bad rows."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from nncift.finetune.comparison import ArmComparison, GroupSummary
from nncift.studies import run_study as run
from nncift.studies.grid import Analysis
from nncift.studies.study_report import against_selected, bad_data_page

FOUND = {
    "auc": {"delift": 0.9, "delift, student (5.0% of its passes)": 0.7, "random": 0.5},
    "intervals": {"delift": [0.8, 0.95], "delift, student (5.0% of its passes)": [0.6, 0.8], "random": None},
    "differences": [{"score": "delift", "other": "random", "difference": 0.4, "interval": [0.2, 0.6]}],
    "bad": 10,
    "good": 90,
    "left_out": 2,
    "without": {},
    "level": 0.95,
}


def test_areas_are_means_over_seeds_with_the_best_score_first() -> None:
    other = {**FOUND, "auc": {"delift": 0.8, "delift, student (6.0% of its passes)": 0.8, "random": 0.4}}
    records = [
        {"bad": "corrupted", "seed": 0, "unread": 3, "found": FOUND},
        {"bad": "corrupted", "seed": 1, "found": other},
    ]
    page = bad_data_page(Analysis(name="bad", kind="bad-data", pool="any"), records)
    lines = [line for line in page.text.splitlines() if line.startswith(("| delift", "| random"))]
    assert lines[0] == "| delift | 0.85 ± 0.07 | 0.80 to 0.95 |"
    # The share of passes differs from seed to seed and is no part of a score's name.
    assert lines[1] == "| delift, student | 0.75 ± 0.07 | 0.60 to 0.80 |"
    assert lines[3] == "| delift | random | 0.40 ± 0.00 | 0.20 to 0.60 |"
    assert "10 bad rows among 100, 2 seeds, 2 rows left out that lack a score, 3 left out that not every" in page.text


def test_differences_to_the_selection_are_turned_where_the_pair_is_compared_the_other_way() -> None:
    def one(arm: str, against: str, difference: float, interval: list[float] | None) -> ArmComparison:
        known: dict[str, Any] = {field.name: None for field in fields(ArmComparison)}
        known |= {"metric": "loss", "arm": arm, "against": against, "difference": difference, "interval": interval}
        return ArmComparison(**known)

    found = [
        one("selected", "random", -0.5, [-0.7, -0.2]),
        one("full", "selected", 0.1, None),
        one("full", "random", 9.0, None),
    ]
    group = GroupSummary("steps", "10%", 4, {}, found)
    dots = against_selected(group, "loss")
    assert [(dot.name, dot.value, dot.interval) for dot in dots] == [("random", 0.5, [0.2, 0.7]), ("full", 0.1, None)]
    assert not against_selected(group, "exact")


@pytest.mark.slow
def test_a_study_tunes_arms_and_finds_bad_rows(tmp_path: Path) -> None:
    study = {
        "name": "small",
        "seeds": 2,
        "pools": {"demo": {"world": {"rows": 80, "test_rows": 12}, "model": "demo"}},
        "analyses": [
            {
                "name": "tune",
                "kind": "tune",
                "pool": "demo",
                "budgets": [0.2],
                "run": {"teacher": "delift", "encoder": "hash", "labels": 300, "features": "probe", "plan": "active"},
                "options": {
                    "arms": ["selected", "teacher", "small-teacher", "random", "none"],
                    "in_context": 2,
                    "metrics": ["loss"],
                },
            },
            {
                "name": "bad",
                "kind": "bad-data",
                "pool": "demo",
                "run": {"encoder": "hash", "labels": "30%"},
                "over": {"teacher": ["delift"]},
            },
        ],
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    run.study(tmp_path / "study.yaml", tmp_path / "out")
    _, records, page = run.page_of(tmp_path / "out" / "tune.json")
    assert [(record["how"], record["seeds"]) for record in records] == [("steps", 2), ("tokens", 2), ("context", 2)]
    assert set(records[0]["arms"]) == {"selected", "teacher", "random", "none"}
    # 80 rows and 16 of them selected: trained rows are a fifth of everything, and the rest is what choosing them costs.
    spent = {arm: records[0]["arms"][arm]["share_of_training"] for arm in ("random", "selected", "teacher")}
    assert spent["random"] == pytest.approx(0.2)
    paid = sum(costs["selected"]["cost"] for costs in records[0]["costs"]) / 2
    assert spent["selected"] == pytest.approx(0.2 + paid / (3 * 80 * records[0]["arms"]["selected"]["epochs"]))
    assert spent["selected"] < spent["teacher"]
    assert "tune-loss-cost.svg" in page.figures
    assert "no smaller model was given: small-teacher" in page.text
    assert page.text in (tmp_path / "out" / "tune.md").read_text()
    _, records, _ = run.page_of(tmp_path / "out" / "bad.json")
    assert {(record["bad"], record["seed"]) for record in records} == {
        ("corrupted", 0),
        ("corrupted", 1),
        ("repeated", 0),
        ("repeated", 1),
    }
