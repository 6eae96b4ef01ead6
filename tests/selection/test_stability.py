"""Stability: labelled rows are drawn again, the student is fitted again, and the same objective selects again."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from nncift.config import RunSettings, resolve
from nncift.core.pairs import LabelledPairs
from nncift.data.pool import PoolTable
from nncift.errors import DataError
from nncift.labels.vectors import Vectors
from nncift.models.views import TEXT, Views
from nncift.selection import pose
from nncift.selection import stability as module
from nncift.selection.constraints import ResolvedConstraints
from nncift.selection.labelled_draws import Draws
from nncift.selection.problem import DenseProblem, build
from nncift.selection.rules import NO_RULES, Rules
from nncift.selection.stability import Refits
from nncift.selection.utilities import Utilities
from nncift.storage import checksums
from nncift.student.candidates import STUDENT
from nncift.student.model import Student
from nncift.student.networks import TrainingData
from nncift.student.networks.bilinear import Product

N = 40
COURSE: dict[str, Any] = {"penalties": [], "validation_mse": []}
"""Of a fit on a block, which settles nothing that another fit needs."""

IDS = tuple(f"r{(7 * k + 3) % N:02d}" for k in range(N))
"""Not in their own order, as those of a pool of several files."""


def world(noise: float, labelled: int = 16, seed: int = 0) -> Utilities:
    """Return utilities of rows in two dimensions: a row helps where it points to, and some of it is noise."""
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(N, 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    truth = vectors @ vectors.T + noise * random.normal(size=(N, N))
    rows = np.sort(random.permutation(N)[:labelled])
    t, s = (part.ravel().astype(np.int32) for part in np.meshgrid(rows, rows, indexing="ij"))
    keep = t != s
    labels = LabelledPairs(IDS, IDS, t[keep], s[keep], truth[t[keep], s[keep]].astype(np.float32))
    views = Views.of({TEXT: 6})
    data = TrainingData(labels, labels.take(np.arange(0)), vectors, vectors, views)
    learned = Product.refit(data, courses=[COURSE], advance=lambda _: None)
    assert learned is not None
    student = Student("product", learned.weights, learned.mean, learned.scale, views=views)
    return Utilities(student, Vectors(vectors, vectors, views), {"train": labels})


def settings(**given: Any) -> RunSettings:
    return resolve(
        {"pool": ("p.jsonl",), "teacher": "delift", "model": "m", "encoder": "hash", "objective": "fl"} | given
    )


def rows() -> PoolTable:
    return cast("PoolTable", SimpleNamespace(ids=IDS))


def selected(utilities: Utilities, k: int, rules: Rules = NO_RULES) -> tuple[str, ...]:
    found = build(utilities, settings())
    assert isinstance(found, DenseProblem)
    score = found.matrix.mean_per_source()
    return pose(found.matrix, "fl", replace(found, score=score).given).choose(k, 0, rules).ids


def measured(utilities: Utilities, k: int, rules: Rules = NO_RULES, refits: int = 20) -> module.Stability | None:
    settled = ResolvedConstraints(k, rules, {})
    refit = Refits(utilities, settings(), {"courses": [COURSE]}, STUDENT)
    return refit.stability(rows(), settled, selected(utilities, k, rules), refits=refits)


def test_shares_are_of_refits_and_add_up_to_the_selection() -> None:
    found = measured(world(0.3), 8)
    assert found is not None
    counts = found.share * 20
    assert np.allclose(counts, np.round(counts))
    assert found.share.sum() == pytest.approx(8)
    chosen = [IDS.index(item) for item in selected(world(0.3), 8)]
    assert found.record.rows == 8
    assert found.record.stable == int((found.share[chosen] > 0.8).sum())


def test_the_same_rows_are_stable_each_time() -> None:
    first, second = measured(world(0.3), 8), measured(world(0.3), 8)
    assert first is not None
    assert second is not None
    assert np.array_equal(first.share, second.share)


def test_noise_is_less_stable_than_signal() -> None:
    mean = []
    for noise in (0.0, 3.0):
        found = [measured(world(noise, seed=seed), 8) for seed in range(4)]
        mean.append(np.mean([one.record.stable for one in found if one is not None]))
    assert mean[0] > mean[1]


def test_one_refit_is_the_selection_from_the_labels_that_are_drawn() -> None:
    utilities = world(0.3)
    found = measured(utilities, 8, refits=1)
    assert found is not None
    draws = Draws.of(utilities, 0)
    known = draws.draw()
    assert 0 < len(known) < len(utilities.known)
    data = TrainingData(
        known, known.take(np.arange(0)), utilities.vectors.targets, utilities.vectors.sources, utilities.views
    )
    learned = Product.refit(data, courses=[COURSE], advance=lambda _: None)
    assert learned is not None
    student = replace(utilities.student, weights=learned.weights, mean=learned.mean, scale=learned.scale)
    again = selected(replace(utilities, student=student, labels={"train": known}), 8)
    assert {IDS[k] for k in np.flatnonzero(found.share)} == set(again)


def test_of_fewer_sources_than_are_drawn_nothing_is_drawn() -> None:
    known = LabelledPairs(
        tuple(IDS), ("a", "b"), np.arange(6, dtype=np.int32), np.zeros(6, np.int32), np.ones(6, np.float32)
    )
    draws = Draws(known, np.arange(6), np.arange(2), (False, True), False, np.random.default_rng(0))
    assert not draws.is_enough
    assert replace(draws, sources=np.arange(4)).is_enough


def test_rules_hold_in_every_refit() -> None:
    rules = Rules(include=frozenset({"r03"}), exclude=frozenset({"r05", "r06"}))
    found = measured(world(1.0), 8, rules)
    assert found is not None
    assert found.share[IDS.index("r03")] == 1.0
    assert found.share[[IDS.index("r05"), IDS.index("r06")]].max() == 0.0


def test_a_selection_whose_pairs_are_all_labelled_is_what_it_is() -> None:
    found = measured(world(0.3, labelled=N), 8)
    assert found is not None
    assert set(np.unique(found.share)) == {0.0, 1.0}
    assert (found.record.stable, found.record.rows) == (8, 8)


def test_too_few_labelled_rows_cannot_be_drawn_again() -> None:
    utilities = world(0.3)
    three = np.unique(utilities.known.target)[:3]
    known = utilities.known.take(np.isin(utilities.known.target, three) & np.isin(utilities.known.source, three))
    assert len(known) == 6
    assert measured(replace(utilities, labels={"train": known}), 8) is None


def test_a_student_that_is_trained_by_descent_is_not_refitted() -> None:
    refit = Refits(world(0.3), settings(student="paper"), {}, STUDENT)
    assert refit.stability(rows(), ResolvedConstraints(8, NO_RULES, {}), IDS[:8]) is None


def test_a_free_similarity_is_refitted_too() -> None:
    refit = Refits(world(0.3), settings(), COURSE, "cosine")
    found = refit.stability(rows(), ResolvedConstraints(8, NO_RULES, {}), IDS[:8])
    assert found is not None
    assert found.share.sum() == pytest.approx(8)


def test_a_large_pool_is_selected_from_in_parts_and_what_is_left_has_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART_ROWS", 10)
    monkeypatch.setattr(module, "MOST_PARTS", 3)
    found = measured(world(0.3), 8)
    assert found is not None
    assert (found.record.rows, found.record.parts) == (6, 3)
    assert 0 < np.isfinite(found.share).sum() <= 30


def test_refits_that_learn_the_same_select_the_same_from_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART_ROWS", 10)
    monkeypatch.setattr(Refits, "_with_weights", lambda refits, learned: refits.utilities.student)
    monkeypatch.setattr(Draws, "draw", lambda draws: draws.known)
    utilities = world(0.3)
    found = measured(utilities, 8)
    assert found is not None
    assert (found.record.stable, found.record.rows, found.record.parts) == (8, 8, 4)
    chosen = np.isin(IDS, selected(utilities, 8))
    looked_at = np.isfinite(found.share)
    assert 0 < looked_at.sum() < N
    assert np.array_equal(found.share[looked_at], chosen[looked_at].astype(float))


def test_what_refits_learned_is_kept_in_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settled, utilities = ResolvedConstraints(8, NO_RULES, {}), world(0.3)
    refit = Refits(utilities, settings(), {"courses": [COURSE]}, STUDENT, (tmp_path, "fit"))
    first = refit.stability(rows(), settled, IDS[:8])
    monkeypatch.setattr(Product, "refit", unexpected)
    again = refit.stability(rows(), settled, IDS[:8])
    assert first is not None
    assert again is not None
    assert np.array_equal(first.share, again.share)


@pytest.mark.parametrize("change", ["fit", "labels", "damage"])
def test_kept_refits_of_other_labels_or_damaged_ones_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    settled, utilities = ResolvedConstraints(8, NO_RULES, {}), world(0.3)
    refit = Refits(utilities, settings(), {"courses": [COURSE]}, STUDENT, (tmp_path, "fit"))
    refit.stability(rows(), settled, IDS[:8])
    if change == "fit":
        refit = replace(refit, kept=(tmp_path, "another"))
    elif change == "labels":
        refit = replace(refit, utilities=world(0.3, seed=1))
    else:
        path = tmp_path / module.FITTED
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    monkeypatch.setattr(Product, "refit", unexpected)
    with pytest.raises(AssertionError, match="fitted again"):
        refit.stability(rows(), settled, IDS[:8])


@pytest.mark.parametrize(
    "change",
    [
        lambda array: array.T[:-1],
        lambda array: array[:-1],
        lambda array: array[..., :-1],
        lambda array: array[None],
        lambda array: array.ravel()[1:],
        lambda array: array[:0],
        lambda array: np.repeat(array, 2, axis=0),
    ],
)
@pytest.mark.parametrize("which", range(3))
def test_kept_refits_of_other_sizes_are_refused_by_name(
    tmp_path: Path, which: int, change: Callable[[Any], Any]
) -> None:
    settled, utilities = ResolvedConstraints(8, NO_RULES, {}), world(0.3)
    refit = Refits(utilities, settings(), {"courses": [COURSE]}, STUDENT, (tmp_path, "fit"))
    refit.stability(rows(), settled, IDS[:8])
    mark = checksums.read_mark(tmp_path, module.MARK)
    kept = refit._kept(str(mark["fingerprint"]), module.REFITS)
    name = sorted(kept[0].weights)[which % len(kept[0].weights)]
    changed = replace(kept[0], weights={**kept[0].weights, name: np.ascontiguousarray(change(kept[0].weights[name]))})
    module._keep(tmp_path, str(mark["fingerprint"]), [changed, *kept[1:]])
    with pytest.raises(DataError, match=r"refits\.safetensors' does not fit the student"):
        refit.stability(rows(), settled, IDS[:8])


def test_damage_to_what_is_kept_is_noticed(tmp_path: Path) -> None:
    settled, kept = ResolvedConstraints(8, NO_RULES, {}), (tmp_path, "fit")
    refit = Refits(world(0.3), settings(), {"courses": [COURSE]}, STUDENT, kept)
    assert refit.are_whole
    refit.stability(rows(), settled, IDS[:8])
    assert refit.are_whole
    path, mark = tmp_path / module.FITTED, checksums.mark_of(tmp_path, module.MARK)
    content, marked = path.read_bytes(), mark.read_bytes()
    for damage in (
        lambda: path.write_bytes(content[:-1] + b"!"),
        path.unlink,
        mark.unlink,
        lambda: mark.write_text("{"),
    ):
        damage()
        assert not refit.are_whole
        path.write_bytes(content)
        mark.write_bytes(marked)
        assert refit.are_whole


def unexpected(*_: Any, **__: Any) -> None:
    raise AssertionError("fitted again")


def test_scores_are_asked_for_where_the_objective_is_exhausted(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(world(0.3), N - 2)
    # No objective is taken for one that hardly needs them.
    monkeypatch.setattr(module, "COVERING", ())
    scored = measured(world(0.3), N - 2)
    assert found is not None
    assert scored is not None
    assert np.array_equal(found.share, scored.share)
