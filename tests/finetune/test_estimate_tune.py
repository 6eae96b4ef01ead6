"""What `nncift tune --dry-run` tells, beside what the tune then does."""

import json
from pathlib import Path
from typing import Any

import pytest

from nncift.errors import DataError, UsageError
from nncift.finetune.experiment import tune
from nncift.finetune.tune_estimate import estimate_tune

pytestmark = pytest.mark.usefixtures("hastened")
ARMS = ("selected", "random", "longest", "none")


@pytest.fixture
def given(test_rows: Path, llama_folder: Path) -> dict[str, Any]:
    return {
        "test": str(test_rows),
        "model": str(llama_folder),
        "arms": ARMS,
        "metrics": "loss,exact".split(","),
        "seeds": 2,
        "epochs": 2,
        "batch": 2,
        "max_new_tokens": 5,
        "device": "cpu",
    }


def files(folder: Path) -> dict[str, float]:
    return {str(path): path.stat().st_mtime for path in folder.rglob("*")}


def test_tokens_are_those_of_the_tune_and_what_is_done_costs_nothing(run: Path, given: dict[str, Any]) -> None:
    before = files(run)
    planned = estimate_tune(run, given).to_json()
    assert files(run) == before
    tune(run, given)
    facts = [json.loads(path.read_text())["facts"] for path in (run / "tune" / "cells").iterdir()]
    assert planned["train"]["tokens"] == sum(fact.get("tokens", 0) for fact in facts)
    assert planned["steps"] == sum(fact.get("steps", 0) for fact in facts)
    # Two measures, three arms that train, two seeds; the untrained model is judged once.
    assert (planned["trainings"], planned["judgings"], planned["done"]) == (12, 13, 0)
    assert planned["train"]["seconds"] > 0
    after = estimate_tune(run, given).to_json()
    assert (after["trainings"], after["judgings"], after["done"]) == (0, 0, 13)
    assert after["total"]["passes"] == 0


def test_dear_arms_are_priced_by_the_length_of_the_selection(run: Path, given: dict[str, Any]) -> None:
    planned = estimate_tune(run, {**given, "arms": ("selected", "rds"), "metrics": ("loss",)}).to_json()
    assert any("Choosing the rows of rds" in note for note in planned["notes"])
    assert planned["answers"]["passes"] == 0
    assert planned["judge"]["passes"] == planned["judgings"] * planned["test_rows"]


def test_what_a_tune_refuses_is_refused(run: Path, given: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="there is no arm"):
        estimate_tune(run, {**given, "arms": ("best",)})
    with pytest.raises(DataError, match="no such file"):
        estimate_tune(run, {**given, "test": "nowhere.jsonl"})
