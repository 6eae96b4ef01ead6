"""Pages from records alone, and a whole small study of tuning and of bad rows."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from nncift.finetune.comparison import ArmComparison, GroupSummary
from nncift.studies import run_study as run
from nncift.studies.grid import Analysis
from nncift.studies.lds_analysis import retrain_page
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


def test_estimates_of_several_runs_share_a_table_and_name_teacher_and_rivals_once() -> None:
    def agreement(mean: float, **gaps: float) -> dict[str, Any]:
        gap = {
            name: {"mean": value, "interval": [value - 0.1, value + 0.1], "targets": 9} for name, value in gaps.items()
        }
        return {"lds": {"mean": mean, "interval": [mean - 0.1, mean + 0.2], "targets": 9}, "differences": gap}

    def record(name: str, student: float, passes: int, **options: Any) -> dict[str, Any]:
        lds = {"student": agreement(student, teacher=-0.1, random=0.3), "teacher": agreement(0.5, random=0.4)}
        halves = {"halves": 8, "half": 10, "rows": 20, "targets": 9, "repeats": 1, "ceiling": None}
        found = {**halves, "lds": lds | {"random": agreement(0.1)}, "loss": {"untrained": 2.0, "trained": 1.0}}
        shared = {"seed": 0, "run": {"teacher": "less", **options}, "full_passes": 200}
        return {**shared, "name": name, "passes": passes, "retraining": found}

    page = retrain_page(
        Analysis(name="lds", kind="retrain", pool="any"), [record("5%", 0.3, 10), record("9%", 0.4, 18)]
    )
    assert [line for line in page.text.splitlines() if line.startswith("|")] == [
        "| estimate | passes, of the full teacher's | LDS | over targets | over targets and halves | less random |",
        "|---|---:|---:|---:|---:|---:|",
        "| teacher: less | 100% | 0.50 | 0.40 to 0.70 | 0.40 to 0.70 | +0.40 (+0.30 to +0.50) |",
        "| student: 9% | 9% | 0.40 | 0.30 to 0.60 | 0.30 to 0.60 | +0.30 (+0.20 to +0.40) |",
        "| student: 5% | 5% | 0.30 | 0.20 to 0.50 | 0.20 to 0.50 | +0.30 (+0.20 to +0.40) |",
        "| random | - | 0.10 | 0.00 to 0.30 | 0.00 to 0.30 | - |",
    ]
    assert "student: 9%" in page.figures["lds-0.svg"]
    # The directions of a target set's gradients make LESS another teacher.
    gist = record("gist", 0.2, 10, option={"projection_kind": "target"})
    both = retrain_page(Analysis(name="lds", kind="retrain", pool="any"), [gist, record("5%", 0.3, 10)])
    assert {"| teacher: gist | 100%", "| teacher: less | 100%"} <= {line[:22] for line in both.text.splitlines()}


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
    def one(arm: str, against: str, difference: float, interval: tuple[float, float] | None) -> ArmComparison:
        known: dict[str, Any] = {field.name: None for field in fields(ArmComparison)}
        known |= {"metric": "loss", "arm": arm, "against": against, "difference": difference, "interval": interval}
        return ArmComparison(**known)

    found = [
        one("selected", "random", -0.5, (-0.7, -0.2)),
        one("full", "selected", 0.1, None),
        one("full", "random", 9.0, None),
    ]
    group = GroupSummary("steps", "10%", 4, {}, found)
    dots = against_selected(group, "loss")
    assert [(dot.name, dot.value, dot.interval) for dot in dots] == [("random", 0.5, (0.2, 0.7)), ("full", 0.1, None)]
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
