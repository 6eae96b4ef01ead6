"""Tuning by the rows that a run has set aside, and which test rows are drawn of those that it has not seen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import nncift
from nncift.data import Example, Examples, Message
from nncift.errors import UsageError
from nncift.finetune.experiment import tune
from nncift.finetune.test_set import by_turns, held_out
from nncift.finetune.tune_settings import resolve
from nncift.runs.finished import FinishedRun

pytestmark = pytest.mark.usefixtures("hastened")
Write = Callable[..., Path]
LENGTH: dict[str, Any] = {"teacher": "length", "encoder": "hash", "labels": 0.5, "test_items": 5, "validation_items": 4}


@pytest.fixture
def with_holdout(tmp_path: Path, write_pool: Write) -> Path:
    nncift.run(write_pool(40), holdout=8, budget=6, out=tmp_path / "aside", **LENGTH)
    return tmp_path / "aside"


def test_the_rows_that_were_set_aside_judge_where_no_test_is_given(
    with_holdout: Path, llama_folder: Path, tmp_path: Path
) -> None:
    given = {"model": str(llama_folder), "steps": 1, "batch": 2, "seeds": 1, "metrics": "loss", "equal": "steps"}
    record = tune(with_holdout, {**given, "arms": "selected,none".split(",")})
    assert record["test_rows"] == 8
    assert record["notes"][0] == "The test rows are those of the run's --holdout 8."
    # The same rows as a file of the user's own come to the same losses.
    record_of_file = tune(
        with_holdout, {**given, "arms": ("none",), "test": str(with_holdout / "holdout.jsonl")}, tmp_path / "other"
    )
    losses = [one["results"][0]["arms"]["none"]["metrics"]["loss"]["by_seed"] for one in (record, record_of_file)]
    assert losses[0] == pytest.approx(losses[1])


def test_a_sample_is_drawn_of_rows_that_the_run_has_not_seen(with_holdout: Path, write_pool: Write) -> None:
    run = FinishedRun(with_holdout)
    # Of the pool's own file all rows but the eight are seen.
    tests = write_pool(40)
    aside = {json.loads(line)["id"] for line in (with_holdout / "holdout.jsonl").read_text().splitlines()}
    for limit in (3, 8, 20):
        found = held_out(run, resolve({"test": str(tests), "drop_seen": True, "limit_test": limit}))
        assert len(found.rows) == min(limit, 8)
        assert set(found.rows.ids) <= aside
    assert "--limit-test 20 was given, and there are 8 test rows." in found.notes


@pytest.mark.slow
def test_a_run_proves_itself(tmp_path: Path, write_pool: Write, llama_folder: Path, call: Callable[..., Any]) -> None:
    found = call(
        *("run", write_pool(40), "--teacher", "loss", "--encoder", "hash", "--labels", "50%", "--budget", 4),
        *("--test-items", 5, "--validation-items", 4, "--model", llama_folder, "--device", "cpu"),
        *("--holdout", 6, "--prove", "--out", tmp_path / "run", "--json"),
    )
    assert found.code == 0
    pairs = {(one["arm"], one["against"]) for one in json.loads(found.out)["proof"]}
    assert pairs == {("selected", "random"), ("embedding", "selected"), ("none", "selected")}
    record = json.loads((tmp_path / "run" / "tune" / "tune.json").read_text())
    assert (record["test_rows"], set(record["arms"])) == (6, {"selected", "random", "embedding", "none"})


def test_a_run_of_all_turns_is_trained_on_the_last_ones_where_that_is_asked_for() -> None:
    turns = [Message("user", "a"), Message("assistant", "b", learned=True), Message("user", "c")]
    rows = Examples((Example("x", "a b c", "d", tuple(turns), "s", 1, "{}"),))

    def scored(how: str) -> Any:
        return SimpleNamespace(settings=SimpleNamespace(turns=how))

    assert by_turns(scored("all"), None, rows) is rows
    assert by_turns(scored("all"), "all", rows) is rows
    last = by_turns(scored("all"), "last", rows)
    assert last.ids == rows.ids
    assert last.by_id("x").learned_text == "d"
    assert rows.by_id("x").learned_text == "b\n\nd"
    with pytest.raises(UsageError, match="make a run with --turns all"):
        by_turns(scored("last"), "all", rows)
