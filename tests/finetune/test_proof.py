"""A whole tune on a small run: every arm, what is equal, resuming, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nncift
from nncift import pipeline
from nncift.errors import DataError, InfeasibleError, UsageError
from nncift.finetune.arms import Pool, rds_ids
from nncift.finetune.experiment import tune
from nncift.finetune.trainer import Trainer
from nncift.models.causal_lm import CausalLM
from nncift.runs.finished import FinishedRun
from nncift.selection.objectives import facility_location_value
from nncift.teachers.delift_se import Similarity
from nncift.teachers.rds import Rds

Write = Callable[..., Path]
pytestmark = pytest.mark.usefixtures("hastened")
ARMS = ("selected", "teacher", "random", "stratified", "longest", "embedding", "rds", "bm25", "full", "none")


@pytest.fixture
def given(test_rows: Path, llama_folder: Path) -> dict[str, Any]:
    return {
        "test": str(test_rows),
        "model": str(llama_folder),
        "steps": 3,
        "batch": 2,
        "seeds": 2,
        "max_new_tokens": 4,
        "device": "cpu",
    }


def cells(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "cells").iterdir())}


def test_arms_are_trained_at_two_rates_and_one_that_diverges_is_not_used(
    run: Path, given: dict[str, Any], write_pool: Write
) -> None:
    tests = str(write_pool(24, "more.jsonl", start=277))
    arms = {"arms": ("selected", "none"), "equal": "steps", "metrics": ("loss",), "seeds": 1}
    given |= {"drop_seen": True, "limit_test": 16}
    record = tune(run, {**given, **arms, "test": tests, "learning_rate": "1e-3,1e25"})
    assert (record["test_rows"], record["validation_rows"]) == (12, 4)
    found = record["results"][0]["arms"]
    assert [one["used"] for one in found["selected"]["learning_rates"]] == [True, False]
    assert found["selected"]["learning_rates"][1]["validation"] is None
    assert "learning_rates" not in found["none"]
    alone = tune(run, {**given, **arms, "test": tests, "learning_rate": 1e-3}, run / "alone")
    with (run / "tune" / "cells" / "steps-6-selected-0-0.001.json").open() as file:
        at_rate = json.load(file)
    with (run / "alone" / "cells" / "steps-6-selected-0.json").open() as file:
        assert json.load(file)["values"] == at_rate["values"]
    assert (alone["test_rows"], alone["validation_rows"]) == (16, 0)
    assert "| selected | 0.001 |" in (run / "tune" / "tune.md").read_text()
    with pytest.raises(UsageError, match="too few to set some aside"):
        tune(run, {**given, **arms, "learning_rate": "1e-3,1e-2"}, run / "few")


def test_every_arm_is_trained_alike_and_judged(run: Path, given: dict[str, Any]) -> None:
    record = tune(run, {**given, "arms": ARMS, "in_context": 2})
    assert [(result["how"], result["rows"]) for result in record["results"]] == [
        ("steps", 6),
        ("tokens", 6),
        ("context", 6),
    ]
    steps, tokens, context = record["results"]
    trained = [arm for arm in ARMS if arm != "none"]
    assert {steps["arms"][arm]["steps"] for arm in trained} == {3}
    wanted = 3 * 2 * np.mean([len(row) for row in lengths(run, given, FinishedRun(run).chosen)])
    longest = max(len(row) for row in lengths(run, given, FinishedRun(run).rows.ids))
    for arm in trained:
        assert wanted - longest < tokens["arms"][arm]["tokens"] <= wanted + 1
        assert steps["arms"][arm]["rows"] == (40 if arm == "full" else 6)
    assert "steps" not in context["arms"]["selected"]
    assert context["arms"]["selected"]["shown"] == 12
    # The untouched model is one cell, and the same everywhere.
    losses = [result["arms"]["none"]["metrics"]["loss"]["by_seed"] for result in record["results"]]
    assert losses[0] == losses[1] == losses[2]
    assert len(losses[0]) == 1
    assert len(steps["arms"]["selected"]["metrics"]["loss"]["by_seed"]) == 2
    assert len(context["arms"]["selected"]["metrics"]["loss"]["by_seed"]) == 1
    assert len(context["arms"]["random"]["metrics"]["loss"]["by_seed"]) == 2
    against = [(one["arm"], one["against"]) for one in steps["comparisons"] if one["metric"] == "loss"]
    # Three pairs among the arms that others are set beside, and three for each of the other seven.
    assert against[:3] == [("selected", "teacher"), ("selected", "random"), ("teacher", "random")]
    assert len(against) == len({frozenset(pair) for pair in against}) == 3 + 3 * 7
    assert json.loads((run / "tune" / "tune.json").read_text()) == record
    page = (run / "tune" / "tune.md").read_text()
    assert all(f"| {arm} |" in page for arm in ARMS)
    # Labels of all pairs of 40 rows, features of 40 rows.
    assert record["costs"]["rds"]["teacher_passes"] == 40
    assert record["costs"]["teacher"]["teacher_passes"] == FinishedRun(run).summary["ledger"]["full_teacher_passes"]


def lengths(run: Path, given: dict[str, Any], ids: tuple[str, ...]) -> list[Any]:
    from nncift.finetune.tune_settings import resolve

    finished = FinishedRun(run)
    trainer = Trainer(finished, resolve(given), finished.rows.examples, finished.rows.examples)
    return [trainer.training_sets.rows[item] for item in ids]


def test_arms_choose_what_they_say(run: Path, given: dict[str, Any]) -> None:
    record = tune(run, {**given, "arms": ARMS, "equal": "steps", "steps": 1, "seeds": 1, "metrics": "loss"})
    shares = {arm: found["share_of_selected"] for arm, found in record["choosing"]["6 rows"].items()}
    assert shares["selected"] == shares["full"] == 1
    assert shares["none"] == 0
    finished = FinishedRun(run)
    from nncift.finetune.arms import ARMS as EVERY
    from nncift.finetune.arms import SubsetSize, choose
    from nncift.runs.full_teacher import truth_of

    pool = Pool(finished, run / "tune", lambda: CausalLM.load(given["model"], device="cpu"), device="cpu")
    budget = SubsetSize(None, finished.chosen)
    true = truth_of(finished)
    teacher = choose(pool, EVERY["teacher"], budget, 0)
    best = facility_location_value(true, teacher)
    assert best >= facility_location_value(true, finished.chosen)
    assert best >= max(facility_location_value(true, choose(pool, EVERY["random"], budget, seed)) for seed in range(20))
    assert choose(pool, EVERY["random"], budget, 0) != choose(pool, EVERY["random"], budget, 1)
    assert choose(pool, EVERY["embedding"], budget, 0) == choose(pool, EVERY["embedding"], budget, 1)
    assert len(set(choose(pool, EVERY["longest"], budget, 0))) == 6


def test_a_tune_that_was_stopped_goes_on_and_gives_the_same_bytes(
    run: Path, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {**given, "budget": ("10%", "5"), "arms": ("selected", "random", "none"), "seeds": 1}
    whole = tune(run, given, tmp_path / "whole")
    trained = Trainer.trained
    left = [3]

    def stopping(self: Trainer, *arguments: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return trained(self, *arguments)

    monkeypatch.setattr(Trainer, "trained", stopping)
    with pytest.raises(KeyboardInterrupt):
        tune(run, given, tmp_path / "parts")
    assert 0 < len(cells(tmp_path / "parts")) < len(cells(tmp_path / "whole"))
    left[0] = 1000
    parts = tune(run, given, tmp_path / "parts")
    assert cells(tmp_path / "parts") == cells(tmp_path / "whole")
    assert [result["comparisons"] for result in parts["results"]] == [
        result["comparisons"] for result in whole["results"]
    ]
    done = 1000 - left[0]
    # Two budgets of 4 and 5 rows, two ways, two arms that train; three cells were there.
    assert done == 2 * 2 * 2 - 3
    tune(run, given, tmp_path / "parts")
    assert 1000 - left[0] == done


def test_other_settings_are_other_cells(run: Path, given: dict[str, Any]) -> None:
    arms = {"arms": ("selected", "none"), "equal": "steps", "seeds": 1}
    first = tune(run, {**given, **arms})
    again = tune(run, {**given, **arms, "learning_rate": 0.01})
    mean = [record["results"][0]["arms"]["selected"]["metrics"]["loss"]["mean"] for record in (first, again)]
    assert mean[0] != mean[1]
    back = tune(run, {**given, **arms})
    assert back["results"][0]["arms"]["selected"]["metrics"] == first["results"][0]["arms"]["selected"]["metrics"]


def test_a_damaged_cell_is_computed_again(run: Path, given: dict[str, Any]) -> None:
    arms = {"arms": ("selected", "none"), "equal": "steps", "seeds": 1}
    tune(run, {**given, **arms})
    before = cells(run / "tune")
    for name in before:
        (run / "tune" / "cells" / name).write_bytes(before[name][: len(before[name]) // 2])
    tune(run, {**given, **arms})
    assert cells(run / "tune") == before


def test_test_rows_of_the_pool_are_refused_or_left_out(run: Path, given: dict[str, Any], write_pool: Write) -> None:
    mixed = write_pool(8, "mixed.jsonl", start=35)
    with pytest.raises(DataError, match=r"5 of 8 test rows are in the run's pool .* --drop-seen"):
        tune(run, {**given, "test": str(mixed)})
    arms = {"arms": "none", "metrics": "loss"}
    record = tune(run, {**given, **arms, "test": str(mixed), "drop_seen": True})
    assert record["test_rows"] == 3
    assert record["notes"][0].startswith("5 of 8 test rows")
    seen = write_pool(4, "seen.jsonl")
    with pytest.raises(DataError, match="no test row is left"):
        tune(run, {**given, **arms, "test": str(seen), "drop_seen": True})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"test": ()}, "--test FILE is missing"),
        ({"arms": ("selected", "randon")}, "there is no arm 'randon'"),
        ({"arms": ("small-teacher",)}, "--small-model"),
        ({"small_model": "x"}, "small-teacher, which uses it, is not among"),
        ({"epochs": 2.0}, "--epochs and --steps"),
        ({"metrics": ("loss", "rogue1")}, "there is no metric 'rogue1'; did you mean 'rouge1'"),
        ({"metrics": ("judge",)}, "--judge model=FOLDER"),
        ({"metrics": ("choice",)}, "--questions FILE"),
        ({"judge": {"model": "x"}}, "judge is not among --metrics"),
        ({"context": 5000}, "this model reads 96 tokens"),
        ({"seeds": 0}, "setting 'seeds'"),
        ({"learning_rate": 0.1, "validation_rows": 2}, "one learning rate, among which nothing is chosen"),
        ({"lerning_rate": 1.0}, "did you mean 'learning_rate'"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_trained(
    run: Path, given: dict[str, Any], wrong: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "trained", lambda *given: pytest.fail("it trained"))
    with pytest.raises(UsageError, match=message):
        tune(run, {**given, **wrong})


def test_the_teacher_arm_knows_what_it_cannot_select(tmp_path: Path, write_pool: Write, given: dict[str, Any]) -> None:
    out = tmp_path / "continued"
    nncift.run(
        write_pool(40),
        teacher=Similarity("hash"),
        out=out,
        encoder="hash",
        labels=0.5,
        budget=6,
        gate=False,
        existing=nncift.read(write_pool(5, "existing.jsonl", start=60)),
    )
    with pytest.raises(UsageError, match="this run's objective, flcg, looks at rows that were trained on already"):
        tune(out, {**given, "arms": ("selected", "teacher")})


def test_a_run_without_a_model_asks_for_one(run: Path, given: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="name the one to train with --model"):
        tune(run, {**given, "model": None})
    with pytest.raises(UsageError, match="this run's delift-se has none"):
        tune(run, {**given, "arms": "small-teacher", "small_model": given["model"]})


def test_more_rows_than_the_pool_has_are_refused(run: Path, given: dict[str, Any]) -> None:
    from nncift.errors import InfeasibleError

    with pytest.raises(InfeasibleError, match="the pool has only 40 rows"):
        tune(run, {**given, "budget": "41"})


def test_a_smaller_model_labels_for_its_own_arm(
    tmp_path: Path, write_pool: Write, given: dict[str, Any], llama_folder: Path, gpt2_folder: Path
) -> None:
    out = tmp_path / "run"
    nncift.run(
        write_pool(40),
        teacher="delift",
        model=str(llama_folder),
        out=out,
        encoder="hash",
        labels="60",
        budget=6,
        gate=False,
        test_items=4,
        validation_items=4,
    )
    small = {**given, "model": None, "arms": ("selected", "small-teacher", "none"), "equal": "steps", "seeds": 1}
    with pytest.raises(UsageError, match="is the model that is trained"):
        tune(out, {**small, "small_model": str(llama_folder)})
    record = tune(out, {**small, "small_model": str(gpt2_folder), "budget": "5"})
    assert record["model"]["name"] == str(llama_folder)
    assert record["choosing"]["5"]["small-teacher"]["rows"] == 5
    inner = FinishedRun(out / "tune" / "small-teacher")
    assert inner.settings.model == str(gpt2_folder)
    assert record["costs"]["small-teacher"]["teacher_passes"] == inner.summary["ledger"]["teacher_passes"] > 0


def test_test_rows_that_the_model_cannot_read_are_refused_before_training_or_counted(
    run: Path, given: dict[str, Any], tmp_path: Path
) -> None:
    long = json.dumps({"prompt": "sort the list " * 60, "response": "done"})
    test = tmp_path / "long.jsonl"
    test.write_text(f"{long}\n")
    with pytest.raises(DataError, match=r"cannot read a single one of the 1 test rows"):
        tune(run, {**given, "test": [str(test)]})
    assert not list((run / "tune" / "cells").iterdir())
    test.write_text(f"{long}\n" + json.dumps({"prompt": "sort the list", "response": "done"}) + "\n")
    record = tune(
        run, {**given, "test": [str(test)], "seeds": 1, "arms": ["selected", "random"], "equal": "steps", "steps": 1}
    )
    assert any("1 of 2 test rows cannot be read" in note for note in record["notes"])


def test_arms_of_other_teachers_choose_by_the_trained_model_and_cost_their_passes(
    run: Path, given: dict[str, Any]
) -> None:
    record = tune(run, {**given, "arms": ("selected", "less", "ifd", "random", "full"), "equal": "steps", "seeds": 1})
    (steps,) = record["results"]
    assert steps["arms"]["less"]["rows"] == steps["arms"]["ifd"]["rows"] == 6
    assert record["costs"]["ifd"]["cost"] == record["costs"]["ifd"]["teacher_passes"] == 2 * 40
    less = record["costs"]["less"]
    assert less["cost"] == 3 * less["teacher_passes"]
    # Three steps of two rows read each of the six selected rows once: everything is 40 rows, once, at three passes a row.
    shares = {name: arm["share_of_training"] for name, arm in steps["arms"].items()}
    assert shares["random"] == pytest.approx(6 / 40)
    assert shares["ifd"] == pytest.approx(6 / 40 + 80 / 120)
    assert shares["less"] == pytest.approx(6 / 40 + less["cost"] / 120)
    # The run's teacher compares embeddings, and costs no pass of a model.
    assert shares["selected"] == pytest.approx(6 / 40)


def test_a_subset_of_another_tool_is_an_arm(run: Path, given: dict[str, Any], tmp_path: Path) -> None:
    found = FinishedRun(run)
    theirs, short, strange = tmp_path / "theirs.txt", tmp_path / "short.txt", tmp_path / "strange.txt"
    theirs.write_text("\n".join([*found.chosen, *found.rows.ids]) + "\n")
    short.write_text(found.rows.ids[0] + "\n")
    strange.write_text("nobody\n")
    arms = {**given, "arms": ("selected", "none"), "equal": "steps", "metrics": "loss", "seeds": 1}
    record = tune(run, {**arms, "subset": {"theirs": str(theirs)}})
    assert record["arms"]["theirs"] == "the first ids of theirs.txt"
    result = record["results"][0]["arms"]
    assert list(result) == ["selected", "none", "theirs"]
    # The same rows in the same order, which the file repeats behind them.
    assert result["theirs"]["metrics"]["loss"] == result["selected"]["metrics"]["loss"]
    assert ("theirs", "selected") in {(one["arm"], one["against"]) for one in record["results"][0]["comparisons"]}
    with pytest.raises(InfeasibleError, match="short has 1 ids, and every arm takes 6 rows"):
        tune(run, {**arms, "subset": {"short": str(short)}})
    with pytest.raises(DataError, match="1 of 1 ids are no rows of the run's pool, the first 'nobody'"):
        tune(run, {**arms, "subset": {"other": str(strange)}})
    with pytest.raises(UsageError, match="one that no arm has"):
        tune(run, {**arms, "subset": {"random": str(theirs)}})


def test_rds_reads_no_row_that_the_runs_probe_has_read(
    run: Path, tmp_path: Path, llama: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished, teacher = FinishedRun(run), Rds(llama)
    plain = Pool(finished, tmp_path / "plain", lambda: llama)
    wanted = rds_ids(plain, 6)
    assert plain.costs["rds"] == {"teacher_passes": 40, "cost": 40, "by_probe": False}
    teacher.prepare(finished.rows.examples)
    kept = {item: teacher.measure([item]).values[0] for item in finished.rows.ids}
    monkeypatch.setattr(FinishedRun, "pooled", lambda _, ids, reader: np.stack([kept[item] for item in ids]))
    monkeypatch.setattr(Rds, "measure", None)
    pool = Pool(finished, tmp_path / "probed", lambda: llama)
    assert rds_ids(pool, 6) == wanted
    assert pool.costs["rds"] == {"teacher_passes": 40, "cost": 40, "by_probe": True}


def test_rds_reads_no_row_that_the_runs_teacher_has_read(
    llama: CausalLM, llama_folder: Path, write_pool: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, wanted = write_pool(30), write_pool(4, "wanted.jsonl", 60)
    given: dict[str, Any] = {"target": wanted, "model": str(llama_folder), "encoder": "hash", "budget": 8}
    made = pipeline.run(pool, out=tmp_path / "run", device="cpu", **given)
    assert made.result.teacher == "rds"
    of_its_own = Pool(FinishedRun(made.path), tmp_path / "plain", lambda: llama)
    read = of_its_own.rds_of_run
    with monkeypatch.context() as patched:
        patched.setattr(FinishedRun, "pooled", lambda _, ids, reader: None)
        afresh = rds_ids(Pool(FinishedRun(made.path), tmp_path / "afresh", lambda: llama), 8)
    assert read is not None
    assert rds_ids(of_its_own, 8) == afresh
    assert set(afresh) == set(made.subset.ids)
    assert of_its_own.costs["rds"] == {"teacher_passes": 34, "cost": 34, "by_probe": True}
    of_its_own_reader = dict(of_its_own.rds.describe())
    # Another model has read nothing of it.
    assert Rds(llama).describe() == of_its_own.rds.describe()
    monkeypatch.setattr(Rds, "describe", lambda _: {"teacher": "rds", "model": "another"})
    assert Pool(FinishedRun(made.path), tmp_path / "other", lambda: llama).rds_of_run is None
    # Values that are lost are not made anew as zeros, however many a plan says that there are.
    (lost,) = (made.path / "labels").glob("values-000.json")
    lost.unlink()
    with pytest.raises(DataError, match="not complete"):
        FinishedRun(made.path).pooled(FinishedRun(made.path).rows.ids, of_its_own_reader)
    assert not lost.exists()
