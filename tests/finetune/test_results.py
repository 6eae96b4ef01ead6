"""What is said of arms, by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from nncift.core.arrays import Doubles
from nncift.errors import UsageError
from nncift.finetune.comparison import Group, summarise, within
from nncift.finetune.learning_rates import RatedGroup, best, joined, validation_ids
from nncift.finetune.results_store import Outcome
from nncift.finetune.test_set import Scores
from nncift.finetune.tune_report import html, page
from nncift.generation.paired_comparison import compare

UNITS = {"loss": ("nats per token", False), "exact": ("%", True)}
FACTS = {"rows": 4, "steps": 2, "epochs": 1.0, "tokens": 80, "training_loss": [2.0, 1.0]}


def outcome(loss: Doubles, exact: Doubles) -> Outcome:
    scores = Scores({"loss": loss, "exact": exact}, np.full(len(loss), 3), failures={"exact": "too long"})
    return Outcome(scores, FACTS, {"training": 1.0, "judging": 0.5})


@pytest.fixture
def group() -> Group:
    random = np.random.default_rng(0)
    base = random.normal(2, 0.5, 40)
    lost = np.where(np.arange(40) == 7, np.nan, 100.0 * (np.arange(40) % 2))
    return Group(
        "steps",
        "10%",
        4,
        {
            "selected": [outcome(base - 1 + 0.01 * seed, lost) for seed in range(3)],
            "random": [outcome(base + 0.01 * seed, 100 - lost) for seed in range(3)],
            "none": [outcome(base + 1, lost)],
        },
    )


def test_arms_and_comparisons_by_hand(group: Group) -> None:
    record = summarise(group, UNITS, 0).to_json()
    selected, none = record["arms"]["selected"]["metrics"], record["arms"]["none"]["metrics"]
    base = group.table("none", "loss")[0] - 1
    assert selected["loss"]["mean"] == pytest.approx(base.mean() - 1 + 0.01)
    assert selected["loss"]["deviation"] == pytest.approx(0.01)
    # Three seeds that are 0.01 apart: two pairs by 0.01 and one by 0.02.
    assert selected["loss"]["between_seeds"] == pytest.approx(0.04 / 3)
    assert none["loss"]["between_seeds"] is None
    # All rows have three tokens, so perplexity is exp of the plain mean.
    assert none["loss"]["perplexity"] == pytest.approx(np.exp(base.mean() + 1))
    assert none["loss"]["deviation"] is None
    assert (selected["exact"]["failed"], none["exact"]["failed"]) == (3, 1)
    assert selected["exact"]["first_failure"] == "too long"
    by = {(one["metric"], one["arm"], one["against"]): one for one in record["comparisons"]}
    assert by["loss", "selected", "random"]["difference"] == pytest.approx(-1)
    assert by["loss", "selected", "random"]["verdict"] == "better"
    assert by["loss", "none", "selected"]["verdict"] == "worse"
    assert ("loss", "random", "selected") not in by
    assert by["loss", "selected", "random"]["wins"] == 40
    exact = by["exact", "none", "selected"]
    assert (exact["difference"], exact["items"], exact["left_out"]) == (0, 39, 1)
    assert (exact["verdict"], exact["within"]) == ("no significant difference", None)
    assert by["exact", "selected", "random"]["verdict"] == "no significant difference"
    assert by["exact", "selected", "random"]["within"] is False


def test_nothing_is_called_equal_and_nothing_is_said_without_an_interval() -> None:
    base = np.tile(np.arange(1.0, 21), (2, 1))
    assert compare(base, base).verdict == "no significant difference"
    assert within(compare(base, base)) is None
    apart = base + np.where(np.arange(20) % 2, 0.01, -0.01)
    assert compare(base, apart).verdict == "no significant difference"
    assert within(compare(base, apart)) is True
    few = compare(base[:, :4], base[:, :4] + 1)
    assert few.verdict == "no significant difference"
    assert within(few) is None


def test_the_page_tells_values_failures_and_verdicts(group: Group) -> None:
    record: dict[str, Any] = {
        "run": "runs/a",
        "test_rows": 40,
        "seeds": 3,
        "notes": ["One <note>."],
        "seconds": 9.0,
        "model": {"name": "tiny", "parameters": 10, "trained_parameters": 10},
        "validation_rows": 0,
        "recipe": {"method": "whole", "learning_rates": [1e-3], "batch": 4, "epochs": 5.0, "steps": None},
        "costs": {"teacher": {"teacher_passes": 1600}},
        "machine": {"device": "cpu", "platform": "here"},
        "metrics": {name: {"unit": unit, "higher_is_better": higher} for name, (unit, higher) in UNITS.items()},
        "results": [summarise(group, UNITS, 0).to_json()],
    }
    text = page(record)
    drawn = html(record)
    assert "The rows of teacher cost 1,600 passes of a model." in text
    assert "(3 failed)" in text
    line = next(line for line in text.splitlines() if line.startswith("| loss | selected | random |"))
    gap = 100 * (0.04 / 3) / record["results"][0]["arms"]["random"]["metrics"]["loss"]["mean"]
    assert f"| {gap:.1f} % | 40/0/0 | better |" in line
    assert "One &lt;note&gt;." in drawn
    assert drawn.count("<svg") == 2
    # Two arms beside random, in each of the metrics.
    assert drawn.count("<circle") == 4
    assert 'class="better"' in drawn


def test_groups_of_several_runs_join_their_seeds(group: Group) -> None:
    every = {**group.outcomes, "teacher": group.outcomes["none"]}
    drawn: dict[str, dict[float | None, Sequence[Outcome]]] = {arm: {None: found} for arm, found in every.items()}
    one = RatedGroup("context", "10%", 4, drawn)
    ids = [str(number) for number in range(40)]
    first, both = (best(each, ids, frozenset(), UNITS) for each in (one, joined([one, one])))
    assert {arm: len(found) for arm, found in both.outcomes.items()} == {
        "selected": 6,
        "random": 6,
        "teacher": 6,
        "none": 1,
    }
    assert (
        summarise(both, UNITS, 0).to_json()["arms"]["selected"]["metrics"]["loss"]["by_seed"][:3]
        == (summarise(first, UNITS, 0).to_json()["arms"]["selected"]["metrics"]["loss"]["by_seed"])
    )
    with pytest.raises(UsageError, match="cannot be joined"):
        joined([one, RatedGroup("steps", "10%", 4, drawn)])
    with pytest.raises(UsageError, match="cannot be joined"):
        joined([one, RatedGroup("context", "10%", 4, {arm: {0.1: found[None]} for arm, found in drawn.items()})])


def test_an_arm_counts_at_the_rate_that_is_better_on_validation_rows_alone() -> None:
    ids = ["a", "b", "c", "d"]
    hits = np.zeros(4)
    lower = outcome(np.array([1.0, 1.0, 9.0, 9.0]), hits)
    higher = outcome(np.array([2.0, 2.0, 3.0, 5.0]), hits)
    lost = outcome(np.full(4, np.nan), hits)
    found = best(
        RatedGroup(
            "steps", "10%", 4, {"selected": {0.1: [lower], 0.5: [higher]}, "random": {0.1: [higher], 0.5: [lost]}}
        ),
        ids,
        frozenset("ab"),
        UNITS,
    )
    arms = summarise(found, UNITS, 0).to_json()["arms"]
    # The lower rate is better on a and b, and what it does on c and d is what is reported.
    assert arms["selected"]["metrics"]["loss"]["mean"] == 9.0
    assert [
        (one["learning_rate"], one["validation"], one["metrics"]["loss"], one["used"])
        for one in arms["selected"]["learning_rates"]
    ] == [(0.1, 1.0, 9.0, True), (0.5, 2.0, 4.0, False)]
    # A rate at which training diverged is not used.
    assert [(one["validation"], one["used"]) for one in arms["random"]["learning_rates"]] == [
        (2.0, True),
        (None, False),
    ]
    assert arms["random"]["metrics"]["loss"]["mean"] == 4.0


def test_validation_rows_are_a_quarter_where_enough_are_left() -> None:
    ids = [f"row {number}" for number in range(40)]
    chosen = validation_ids(ids, None)
    assert len(chosen) == 10
    assert validation_ids(ids[::-1], None) == chosen
    assert len(validation_ids(ids, 3)) == 3
    assert validation_ids(ids[:15], None) == frozenset()
    with pytest.raises(UsageError, match="some must be left to judge"):
        validation_ids(ids, 40)
