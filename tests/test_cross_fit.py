"""Predictions on labels that a student has not seen, and students that are fitted on all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nncift.core.pairs import LabelledPairs
from nncift.evaluation.cross_fit import FOLDS, MOST_ROWS, hold_out
from nncift.evaluation.held_out_labels import HeldOut, Recipe, fit_on_all
from nncift.evaluation.repeated_runs import MOST_REPETITIONS
from nncift.labels import SCORE
from nncift.labels.vectors import Vectors
from nncift.models.views import Views
from nncift.stages.fit import judged
from nncift.student.candidates import OTHER, STUDENT

TEXT = Views.of({"text": 8})


def units(n: int, seed: int = 0) -> np.ndarray:
    found = np.random.default_rng(seed).normal(size=(n, 8)).astype(np.float32)
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True))


def measured(values: np.ndarray, rows: np.ndarray, columns: np.ndarray, *, shared: bool) -> dict[str, LabelledPairs]:
    """Return labels of every pair of measured rows, as a plan of rows gives them."""
    t, s = (part.ravel().astype(np.int32) for part in np.meshgrid(rows, columns, indexing="ij"))
    keep = t != s if shared else np.ones(len(t), bool)
    sources = tuple(f"row-{i:03d}" for i in range(values.shape[1]))
    targets = sources if shared else tuple(f"target-{i:03d}" for i in range(values.shape[0]))
    every = LabelledPairs(targets, sources, t[keep], s[keep], values[t[keep], s[keep]].astype(np.float32))
    nothing = every.take(np.arange(0))
    return {"train": every, **dict.fromkeys(("validation", "q2", "q3", "test", "rest"), nothing)}


def crossed(values: np.ndarray, x: np.ndarray, rows: int, student: str = "product") -> HeldOut:
    order = np.random.default_rng(3).permutation(len(x))[:rows]
    labels = measured(values, np.sort(order), np.sort(order), shared=True)
    return hold_out(labels, Vectors(x, x, TEXT), Recipe(student, "default", 0), coverage=True)


def r2(found: HeldOut, quadrant: str) -> float:
    truth = found.quadrants[quadrant].value
    return float(1 - np.mean((truth - found.predictions[STUDENT][quadrant]) ** 2) / truth.var())


def test_labels_that_are_noise_are_known_where_they_were_seen_and_nowhere_else() -> None:
    x = units(60)
    found = crossed(np.random.default_rng(1).normal(size=(60, 60)), x, 40)
    assert max(r2(found, quadrant) for quadrant in ("q2", "q3", "q4")) < 0.1
    pairs, residual = found.source_unseen
    assert np.corrcoef(pairs.value, residual[STUDENT])[0, 1] < 0.2


def test_the_run_is_repeated_with_rows_that_its_student_has_not_seen() -> None:
    x = units(60)
    values = np.random.default_rng(1).normal(size=(60, 60))
    blocks = crossed(values, x, 40).blocks
    assert len(blocks) == MOST_REPETITIONS
    for block in blocks:
        # Two of five labelled rows at most are taken to be unlabelled; of the pool's rows one of three is, and so is it here.
        assert block.truth.shape == (39, 39)
        assert np.array_equal(block.sources[np.arange(39)], block.targets)
        assert np.array_equal(block.same, np.arange(39))
        known = block.known.diagonal()
        assert (known.sum(), block.known.sum()) == (26, 26 * 26)
        # Noise cannot be predicted of rows that were not learned from.
        held = np.ix_(~known, ~known)
        off = np.isfinite(block.truth[held])
        assert off.sum() == 13 * 12
        assert abs(np.corrcoef(block.truth[held][off], block.predictions[STUDENT][held][off])[0, 1]) < 0.35
    assert len({tuple(block.sources[~block.known.diagonal()]) for block in blocks}) == MOST_REPETITIONS


def test_rows_that_were_taken_to_be_unlabelled_decide_nothing_about_their_predictions() -> None:
    x = units(50)
    values = x @ np.random.default_rng(2).normal(size=(8, 8)) @ x.T
    block = crossed(values, x, 40).blocks[0]
    held = block.sources[~block.known.diagonal()]
    other = values.copy()
    other[held] = np.random.default_rng(3).normal(size=(len(held), 50))
    other[:, held] = np.random.default_rng(4).normal(size=(50, len(held)))
    again = crossed(other, x, 40).blocks[0]
    assert np.array_equal(again.sources, block.sources)
    assert again.predictions[STUDENT] == pytest.approx(block.predictions[STUDENT], abs=1e-6)
    assert again.truth != pytest.approx(block.truth, nan_ok=True)


def test_what_can_be_learned_is_predicted_of_rows_that_were_not_seen() -> None:
    x = units(80)
    values = 0.2 + 0.3 * (x @ x.T)
    found = crossed(values, x, 50)
    assert r2(found, "q4") > 0.95
    assert found.folds == FOLDS
    assert len(found.quadrants["q4"]) < len(found.quadrants["q1"]) == 50 * 49
    assert set(found.predictions) >= {STUDENT, "mean", "additive", "cosine", "ridge"}


def test_the_student_that_ships_has_seen_all_labels() -> None:
    x = units(60)
    random = np.random.default_rng(4)
    values = (x @ random.normal(size=(8, 8))) @ x.T + 0.05 * random.normal(size=(60, 60))
    found = crossed(values, x, 30)
    fresh = np.setdiff1d(np.arange(60), np.unique(found.quadrants["q1"].source))
    t, s = (part.ravel().astype(np.int32) for part in np.meshgrid(fresh, fresh, indexing="ij"))
    ids = found.quadrants["q1"].source_ids
    pairs = LabelledPairs(ids, ids, t, s, values[t, s].astype(np.float32))
    missed = np.mean((pairs.value - found.shipped[STUDENT].predict(pairs)) ** 2)
    # Students of folds have seen fewer rows, and know less.
    assert 1 - missed / pairs.value.var() > r2(found, "q4") - 0.02


def rings(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows on a circle, and utilities that no product of few components and no polynomial of a cosine says."""
    angle = np.random.default_rng(0).uniform(0, 2 * np.pi, rows)
    x = np.zeros((rows, 8), np.float32)
    x[:, 0], x[:, 1] = np.cos(angle), np.sin(angle)
    return x, np.outer(np.sin(2 * angle), np.sin(2 * angle))


def test_another_student_learns_beside_the_default_and_is_judged_on_rows_that_it_has_not_seen() -> None:
    x, values = rings(90)
    found = crossed(values, x, 60)
    assert list(found.shipped)[:2] == [STUDENT, OTHER]
    assert found.shipped[OTHER].student.network == "landmark"
    assert judged(found, "fl", 0.2, 0).used == OTHER
    pairs, values_of = found.source_unseen
    assert np.corrcoef(pairs.value, values_of[OTHER])[0, 1] > np.corrcoef(pairs.value, values_of[STUDENT])[0, 1]
    for block, of in found.pair_blocks:
        assert of[OTHER].shape == (len(block),)
    # Labels that are noise are known where they were seen and nowhere else, by it too.
    found = crossed(np.random.default_rng(1).normal(size=(60, 60)), units(60), 40)
    pairs, values_of = found.source_unseen
    assert np.corrcoef(pairs.value, values_of[OTHER])[0, 1] < 0.2
    seen = found.shipped[OTHER].predict(pairs)
    assert np.corrcoef(pairs.value, seen)[0, 1] > 0.5


@pytest.mark.parametrize("student", ["towers", "landmark"])
def test_nothing_learns_beside_a_student_that_was_asked_for(student: str) -> None:
    x, values = rings(50)
    found = crossed(values, x, 30, student)
    assert OTHER not in found.shipped
    assert all(OTHER not in block.predictions for block in found.blocks)


def test_a_network_that_is_trained_by_descent_has_fewer_folds() -> None:
    x = units(40)
    found = crossed(0.2 + 0.3 * (x @ x.T), x, 30, "paper")
    assert found.folds == 5
    assert np.isfinite(found.predictions[STUDENT]["q4"]).all()
    assert all(np.isfinite(block.predictions[STUDENT]).all() for block in found.blocks)


def test_where_everything_is_labelled_nothing_is_left_to_predict() -> None:
    x = units(40)
    found = crossed(np.random.default_rng(1).normal(size=(40, 40)), x, 40)
    assert all(block.known.all() for block in found.blocks)


@pytest.mark.parametrize("targets", [3, 24])
def test_a_target_set_that_is_measured_whole_is_known_on_its_axis(targets: int) -> None:
    x, wanted = units(60), units(targets, 5)
    values = 0.2 + 0.3 * (wanted @ x.T)
    columns = np.arange(0, 60, 2)
    labels = measured(values, np.arange(targets), columns, shared=False)
    found = hold_out(labels, Vectors(wanted, x, TEXT), Recipe("product", "default", 0), coverage=True)
    # All targets are known, and half of the sources.
    block = found.blocks[0]
    assert block.truth.shape == (targets, 24)
    assert np.array_equal(block.known, np.repeat(block.known[:1], targets, axis=0))
    assert block.known[0].sum() == 12
    assert r2(found, "q4") > 0.5
    # A run predicts for its targets alone, so none is held out.
    assert "q2" not in found.quadrants


def test_given_targets_are_predicted_for_though_their_texts_say_nothing() -> None:
    x, wanted = units(60), units(24, 5)
    labels = measured(0.2 + 0.3 * (wanted @ x.T), np.arange(24), np.arange(0, 60, 2), shared=False)
    blind = Vectors(units(24, 99), x, TEXT)
    found = hold_out(labels, blind, Recipe("product", "default", 0), coverage=True)
    assert r2(found, "q4") > 0.5


def test_scores_of_a_pointwise_teacher_are_held_out_by_row() -> None:
    x = units(60)
    score = x @ np.random.default_rng(7).normal(size=8)
    ids = tuple(f"row-{i:03d}" for i in range(60))
    columns = np.arange(40, dtype=np.int32)
    train = LabelledPairs(("score",), ids, np.zeros(40, np.int32), columns, score[:40].astype(np.float32))
    labels = {"train": train, "validation": train.take(np.arange(0)), "test": train.take(np.arange(0))}
    none = np.zeros((1, 0), np.float32)
    found = hold_out(labels, Vectors(none, x, TEXT), Recipe("product", "default", 0), coverage=False)
    assert set(found.quadrants) == {"q1", "q4"}
    assert r2(found, "q4") > 0.9
    # 13 of 40 labelled rows are taken to be unlabelled, beside 26: two of three are labelled, as in the pool.
    assert found.blocks[0].truth.shape == (1, 39)


def test_many_rows_are_thinned_by_rows_so_that_students_of_folds_still_see_a_block() -> None:
    n = MOST_ROWS + 60
    x = units(n)
    found = crossed(0.2 + 0.3 * (x @ x.T), x, n)
    assert r2(found, "q4") > 0.95
    assert found.course["penalty"] > 0


def test_the_order_of_rows_decides_nothing() -> None:
    x = units(50)
    values = x @ np.random.default_rng(4).normal(size=(8, 8)) @ x.T
    rows = np.arange(30)
    labels = measured(values, rows, rows, shared=True)
    turned = {name: pairs.take(np.arange(len(pairs))[::-1]) for name, pairs in labels.items()}
    vectors = Vectors(x, x, TEXT)
    one, other = (hold_out(of, vectors, Recipe("product", "default", 0), coverage=True) for of in (labels, turned))
    assert one.shipped[STUDENT].student.weights["target_weight"] == pytest.approx(
        other.shipped[STUDENT].student.weights["target_weight"], abs=1e-5
    )


def test_some_rows_are_used_where_many_are_labelled(monkeypatch: pytest.MonkeyPatch) -> None:
    x = units(60)
    values = x @ np.random.default_rng(2).normal(size=(8, 8)) @ x.T
    seen: list[LabelledPairs] = []

    def noted(every: LabelledPairs, *given: Any) -> Any:
        seen.append(every)
        return fit_on_all(every, *given)

    monkeypatch.setattr("nncift.evaluation.cross_fit.fit_on_all", noted)
    monkeypatch.setattr("nncift.evaluation.cross_fit.MOST_USED", 24)
    found = crossed(values, x, 50)
    # The same rows on both axes, all pairs among them; the run is repeated with all that are labelled.
    assert len(seen[0]) == 24 * 23
    assert set(seen[0].target) == set(seen[0].source)
    assert set(found.quadrants["q4"].source) <= set(seen[0].source)
    assert r2(found, "q4") > 0.9
    assert found.course["used"] == {"targets": 24, "sources": 24}
    assert len({code for block in found.blocks for code in block.sources.tolist()}) > 24


def test_pairs_with_a_target_set_are_bounded_and_no_target_is_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    x, wanted = units(90), units(20, seed=5)
    values = wanted @ np.random.default_rng(2).normal(size=(8, 8)) @ x.T
    labels = measured(values, np.arange(20), np.arange(90), shared=False)
    monkeypatch.setattr("nncift.evaluation.cross_fit.LEAST_USED", 40)
    monkeypatch.setattr("nncift.evaluation.cross_fit.USED_PAIRS", 600)
    found = hold_out(labels, Vectors(wanted, x, TEXT), Recipe("product", "default", 0), coverage=True)
    assert set(found.quadrants) == {"q1", "q4"}
    # 40 sources at least, and as many targets as make 600 pairs of them.
    pairs = found.quadrants["q4"]
    assert (len(set(pairs.source)), len(set(pairs.target)), len(pairs)) == (40, 15, 600)
    assert r2(found, "q4") > 0.9


def test_all_scores_of_a_pointwise_teacher_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    x = units(80)
    ids = tuple(f"row-{i:03d}" for i in range(80))
    codes = np.arange(80, dtype=np.int32)
    every = LabelledPairs(SCORE, ids, np.zeros(80, np.int32), codes, (x @ np.ones(8)).astype(np.float32))
    labels = {"train": every, "validation": every.take(np.arange(0)), "test": every.take(np.arange(0))}
    monkeypatch.setattr("nncift.evaluation.cross_fit.MOST_USED", 20)
    found = hold_out(
        labels, Vectors(np.zeros((1, 0), np.float32), x, TEXT), Recipe("product", "default", 0), coverage=False
    )
    assert set(found.quadrants["q4"].source) == set(range(80))
