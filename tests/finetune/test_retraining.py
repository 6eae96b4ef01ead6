"""Truth by training on a small run: which rows train, which are judged, resuming to the byte, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nncift
from nncift.core.progress import silent
from nncift.errors import DataError, UsageError
from nncift.finetune.estimates import STUDENT, TEACHER
from nncift.finetune.lexical import bm25
from nncift.finetune.retrain_settings import resolve
from nncift.finetune.retraining import Experiment, cost_of, retrain
from nncift.runs.finished import FinishedRun
from nncift.teachers.delift_se import Similarity

pytestmark = pytest.mark.usefixtures("hastened")
Write = Callable[..., Path]


@pytest.fixture
def given(llama_folder: Path) -> dict[str, Any]:
    return {
        "model": str(llama_folder),
        "halves": 10,
        "targets": 6,
        "draws": 2,
        "batch": 16,
        "method": "whole",
        "device": "cpu",
    }


def files(folder: Path) -> dict[str, bytes]:
    kept = [*(folder / "cells").iterdir(), *folder.glob("retraining.*")]
    return {path.name: path.read_bytes() for path in sorted(kept)}


def test_halves_hold_half_of_the_rows_and_no_target(run: Path, given: dict[str, Any]) -> None:
    experiment = Experiment(FinishedRun(run), resolve(given), False, silent)
    assert len(experiment.targets) == 6
    assert len(experiment.rows) == 34
    assert not set(experiment.targets) & set(experiment.rows)
    assert experiment.members.shape == (10, 34)
    assert set(experiment.members.sum(1)) == {17.0}
    assert len(set(experiment.halves)) == 10


def test_a_retraining_judges_student_teacher_and_rivals_and_resumes_to_the_byte(
    run: Path, given: dict[str, Any]
) -> None:
    found = retrain(run, given, full_teacher=True)
    assert {STUDENT, TEACHER, "embedding", "bm25", "rds", "loss", "length", "random"} <= set(found.lds)
    # The run's teacher is the cosine of its own embeddings, so both stand for one estimate.
    assert found.lds[TEACHER].lds.mean == pytest.approx(found.lds["embedding"].lds.mean, abs=1e-6)
    # Ten halves, two random removals, and one for every other estimate but chance.
    assert found.trainings == 10 + 2 + len(found.lds) - 1
    assert {one.rows for one in found.removals} == {3}
    assert cost_of(run, given, full_teacher=True).trainings == found.trainings
    folder = run / "retrain"
    assert json.loads((folder / "retraining.json").read_text()) == found.to_json()
    page = (folder / "retraining.md").read_text()
    assert all(f"| {name} |" in page for name in found.lds)
    before = files(folder)
    removed = sorted((folder / "cells").iterdir())[::3]
    for path in removed:
        path.unlink()
    again = retrain(run, given, full_teacher=True)
    assert again.lds == found.lds
    assert again.removals == found.removals
    after = files(folder)
    assert {name: after[name] for name in after if name != "retraining.json" and not name.endswith(".md")} == {
        name: before[name] for name in before if name != "retraining.json" and not name.endswith(".md")
    }


def test_a_dry_run_counts_what_a_retraining_trains(run: Path, given: dict[str, Any]) -> None:
    whole = cost_of(run, given, full_teacher=True)
    assert (whole.trainings, whole.removals) == (10 + 2 + 7, 2 + 7)
    assert not (run / "retrain").exists()
    cost = cost_of(run, {**given, "remove": "none"})
    assert (cost.trainings, cost.trained, cost.removals) == (10, 0, 0)
    assert not (run / "retrain" / "cells").exists() or not list((run / "retrain" / "cells").iterdir())
    found = retrain(run, {**given, "remove": "none"})
    assert found.trainings == 10
    assert not found.removals
    assert cost_of(run, {**given, "remove": "none"}).trained == 10


def test_targets_of_a_target_set_are_watched_and_every_row_trains(
    tmp_path: Path, write_pool: Write, given: dict[str, Any]
) -> None:
    target = write_pool(8, "target.jsonl", start=300)
    out = tmp_path / "aimed"
    teacher = Similarity("hash")
    nncift.run(
        write_pool(40), target=target, teacher=teacher, out=out, encoder="hash", labels=0.5, budget=6, gate=False
    )
    experiment = Experiment(FinishedRun(out), resolve(given), False, silent)
    assert set(experiment.targets) <= set(FinishedRun(out).rows.target_ids or ())
    assert len(experiment.rows) == 40


def test_a_pool_too_small_is_refused(run: Path, given: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="40 rows; 30 targets"):
        retrain(run, {**given, "targets": 30})


@pytest.mark.parametrize("remove", ["60%", "0", "much"])
def test_shares_that_are_none_are_refused(remove: str) -> None:
    with pytest.raises(UsageError, match="--remove"):
        resolve({"remove": remove})


def test_bm25_prefers_rare_words_in_common() -> None:
    found = bm25(["the quick zebra"], ["the cat", "the zebra", "", "a dog and the cat"])
    assert found.shape == (1, 4)
    assert int(np.argmax(found)) == 1
    assert found[0, 2] == 0
