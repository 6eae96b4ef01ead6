from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import nncift
from nncift.core.pairs import UtilityMatrix
from nncift.errors import DataError, UsageError
from nncift.models.causal_lm import CausalLM
from nncift.runs import bad_rows as detection
from nncift.runs.bad_rows import auc, bad_data, find_bad, judge, nearest_other
from nncift.runs.finished import FinishedRun

pytestmark = pytest.mark.usefixtures("hastened")


def drawn(seed: int, bad: int = 20, good: int = 60, gap: float = 1.0) -> tuple[dict[str, float], set[str]]:
    random = np.random.default_rng(seed)
    values = np.concatenate([random.normal(size=bad) - gap, random.normal(size=good)])
    names = [f"r{place:03d}" for place in range(bad + good)]
    return dict(zip(names, values.tolist(), strict=True)), set(names[:bad])


def test_area_by_hand_with_a_tie_counted_half() -> None:
    # Pairs (bad, good): 1 < 2 and 1 < 3 are right, 2 = 2 is half, 2 < 3 is right.
    assert auc({"a": 1, "b": 2, "c": 2, "d": 3}, {"a", "b"}) == 3.5 / 4


@pytest.mark.parametrize("decimals", [8, 0])
def test_area_is_that_of_scikit_learn(decimals: int) -> None:
    scores, bad = drawn(0)
    scores = {name: round(value, decimals) for name, value in scores.items()}
    wanted = roc_auc_score([name in bad for name in scores], [-value for value in scores.values()])
    assert auc(scores, bad) == pytest.approx(wanted)
    found = find_bad({"one": scores}, bad, resamples=2)
    assert found.auc["one"] == pytest.approx(wanted)


def test_resampled_areas_are_those_of_repeated_rows() -> None:
    scores, bad = drawn(1, 6, 9)
    ids = sorted(scores)
    mask = np.array([name in bad for name in ids])
    values = np.round([scores[name] for name in ids], 1)
    weights = np.random.default_rng(0).integers(0, 3, size=(15, 4)).astype(float)
    found = detection._areas(values[None], mask, weights)[0]
    for draw, area in zip(weights.T.astype(int), found, strict=True):
        assert area == pytest.approx(roc_auc_score(np.repeat(mask, draw), np.repeat(-values, draw)))


def test_intervals_hold_the_true_area() -> None:
    from scipy.stats import norm

    true, held = float(norm.cdf(1 / 2**0.5)), 0
    for trial in range(200):
        scores, bad = drawn(100 + trial, 30, 80)
        interval = find_bad({"one": scores}, bad, resamples=200, seed=trial).intervals["one"]
        assert interval is not None
        held += interval[0] <= true <= interval[1]
    assert 0.90 <= held / 200 <= 0.98


def test_differences_are_drawn_with_the_same_rows() -> None:
    scores, bad = drawn(2)
    near = {name: value + 0.01 * np.sin(place) for place, (name, value) in enumerate(scores.items())}
    found = find_bad({"one": near, "other": scores, "chance": drawn(3, gap=0.0)[0]}, bad, against=["other"])
    first, second = found.differences
    assert (first.score, first.other) == ("one", "other")
    assert first.difference == pytest.approx(found.auc["one"] - found.auc["other"])
    assert first.interval is not None
    alone = found.intervals["one"]
    assert alone is not None
    assert first.interval[1] - first.interval[0] < 0.2 * (alone[1] - alone[0])
    assert second.score == "chance"
    assert second.interval is not None
    assert second.interval[1] < 0


def test_rows_without_some_score_are_left_out_of_all_and_counted() -> None:
    scores, bad = drawn(4)
    holed = {**scores, "r000": float("nan"), "r050": float("inf")}
    del holed["r051"]
    found = find_bad({"one": scores, "holed": holed}, bad, resamples=10)
    assert (found.bad, found.good, found.left_out) == (19, 58, 3)
    assert found.without == {"one": 0, "holed": 3}
    kept = {name: value for name, value in scores.items() if name not in ("r000", "r050", "r051")}
    assert found.auc["one"] == found.auc["holed"] == auc(kept, bad - {"r000"})


def test_too_few_bad_rows_have_an_area_and_no_interval() -> None:
    scores, bad = drawn(5, bad=4)
    found = find_bad({"one": scores}, bad)
    assert found.auc["one"] > 0.5
    assert found.intervals["one"] is None


def test_nothing_to_find_and_unknown_names_are_refused() -> None:
    scores, bad = drawn(6)
    for none in (set[str](), set(scores)):
        with pytest.raises(DataError, match="at least one bad and one good"):
            auc(scores, none)
    with pytest.raises(DataError, match="no finite number"):
        auc({**scores, "r001": float("nan")}, bad)
    with pytest.raises(UsageError, match="against"):
        find_bad({"one": scores}, bad, against=["other"])


@pytest.fixture
def pool(write_pool: Callable[..., Path]) -> nncift.Examples:
    return nncift.read(write_pool(24))


def test_bad_data_sets_every_score_to_one_sign(pool: nncift.Examples, llama_folder: Path) -> None:
    lm = CausalLM.load(llama_folder, device="cpu")
    scores = detection.free_scores(pool, lm, seed=3)
    by_length = {one.id: float(len(one.response)) for one in pool}
    assert scores["length"] == by_length
    from nncift.generation.likelihood import response_losses
    from nncift.models.prompt_format import PromptFormat

    losses = response_losses(lm, pool, PromptFormat(lm.tokenizer))
    assert list(scores["loss"].values()) == pytest.approx((-losses.loss).tolist(), rel=1e-5)
    for item, value in scores["ifd ratio"].items():
        assert scores["ifd"][item] == (0.0 if value < -1 else pytest.approx(-value))
    found = bad_data(pool, pool.ids[:6], lm=lm, seed=3, resamples=20)
    assert list(found.auc) == ["random", "length", "loss", "ifd", "ifd ratio"]
    assert found.auc["length"] == auc(by_length, pool.ids[:6])
    json.dumps(found.to_json())


def test_bad_data_reads_matrices_and_runs(pool: nncift.Examples, tmp_path: Path) -> None:
    bad = pool.ids[::3]
    values = np.array([[-1.0 if name in bad else 1.0 for name in pool.ids]] * 3, np.float32)
    values[0, 4] = np.nan
    matrix = UtilityMatrix(("t", "u", "v"), pool.ids, np.asfortranarray(values))
    nncift.run(
        pool, teacher="length", encoder="hash", labels="100%", budget="30%", objective="topk", out=tmp_path / "run"
    )
    found = bad_data(pool, bad, matrices={"oracle": matrix}, runs={"run": tmp_path / "run"}, resamples=20)
    assert found.auc["oracle"] == 1.0
    assert found.auc["run"] == pytest.approx(found.auc["length"], abs=0.05)
    assert {one.other for one in found.differences} == {"random", "length"}


def test_a_run_on_losses_finds_high_ones_suspicious(pool: nncift.Examples, llama_folder: Path, tmp_path: Path) -> None:
    made = nncift.run(
        pool, teacher="loss", model=str(llama_folder), encoder="hash", labels="100%", budget="30%", out=tmp_path / "run"
    )
    scores, free = (
        detection.run_scores(FinishedRun(made.path)),
        detection.free_scores(pool, CausalLM.load(llama_folder, device="cpu")),
    )
    assert max(scores.values()) < 0
    assert [scores[name] for name in pool.ids] == pytest.approx([free["loss"][name] for name in pool.ids], abs=1.0)


def test_a_name_for_two_scores_is_refused(pool: nncift.Examples) -> None:
    matrix = UtilityMatrix(("t",), pool.ids, np.ones((1, len(pool)), np.float32))
    with pytest.raises(UsageError, match="'length' names two scores"):
        bad_data(pool, pool.ids[:6], matrices={"length": matrix})


def test_a_row_of_the_pool_without_a_score_is_counted(pool: nncift.Examples) -> None:
    values = np.ones((2, len(pool) - 1), np.float32)
    matrix = UtilityMatrix(("t", "u"), pool.ids[1:], np.asfortranarray(values))
    found = bad_data(pool, pool.ids[2:9], matrices={"part": matrix}, resamples=5)
    assert found.left_out == 1
    assert found.without["part"] == 1


def test_bad_rows_outside_the_pool_are_refused(pool: nncift.Examples) -> None:
    with pytest.raises(UsageError, match="not in the pool"):
        bad_data(pool, {"elsewhere", *pool.ids[:3]})


def test_a_teacher_that_refuses_a_row_gives_it_no_score(
    tmp_path: Path, make_row: Callable[[int], dict[str, Any]]
) -> None:
    from nncift.teachers.given_scores import Column

    path = tmp_path / "rows.jsonl"
    rows = [{**make_row(k), "quality": k if k != 2 else "none"} for k in range(5)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    scores = detection.teacher_scores(Column("quality"), nncift.read(path))
    assert np.isnan(scores["row-0002"])
    assert scores["row-0004"] == 4.0


def test_the_nearest_other_row_is_never_the_row_itself() -> None:
    vectors = np.array([[1, 0], [1, 0], [0.6, 0.8], [0, -1]], np.float32)
    assert nearest_other(vectors) == pytest.approx([1, 1, 0.6, 0])
    assert nearest_other(vectors[:1]) == [-np.inf]


def test_a_run_says_which_rows_are_near_copies_and_which_are_off_topic(pool: nncift.Examples, tmp_path: Path) -> None:
    made = nncift.run(pool, teacher="length", encoder="hash", labels="100%", budget="30%", out=tmp_path / "run")
    run = FinishedRun(made.path)
    found = detection.embedding_scores(run)
    first, others = run.rows.ids[0], list(run.rows.ids[1:])
    nearest = float((run.vectors([first]) @ run.vectors(others).T).max())
    assert found["off-topic"][first] == pytest.approx(nearest, abs=1e-6)
    assert found["near copy"] == {item: -value for item, value in found["off-topic"].items()}


def test_rows_that_are_bad_in_another_way_can_be_left_out_of_the_good_ones() -> None:
    scores = {"one": {"bad": 1.0, "worse": 0.0, "good": 2.0}}
    assert judge(scores, ["bad"], resamples=2).auc["one"] == 0.5
    assert judge(scores, ["bad"], among=["bad", "good"], resamples=2).auc["one"] == 1.0
    with pytest.raises(UsageError, match="not in the pool"):
        judge(scores, ["bad"], among=["worse", "good"])
