"""The tail that coverage objectives see on top of predictions."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nncift.errors import DataError
from nncift.labels.vectors import Vectors
from nncift.selection.utilities import Utilities
from nncift.storage.atomic import digest, read_json
from nncift.student import model
from nncift.student.candidates import Candidate, with_similarity
from nncift.student.free_similarity import tail_of
from nncift.student.model import Student
from nncift.student.networks import TrainingData, network
from nncift.student.networks.bilinear import Product
from nncift.student.networks.tailed import Tailed

Make = Callable[..., TrainingData]


def planted(training_data: Make, vectors: Callable[..., np.ndarray]) -> TrainingData:
    x = vectors(36)
    noise = np.random.default_rng(1).normal(size=(36, 36))
    return training_data(0.5 + 0.2 * (x @ x.T) + 0.1 * noise, x)


def trained(name: str, whole: TrainingData, spread: float = 0.25) -> Student:
    learned = network(name).learn(whole, recipe="default", seed=0, advance=lambda step: None)
    tail = tail_of(whole, spread)
    assert tail is not None
    student = Student(name, learned.weights, learned.mean, learned.scale, views=whole.views)
    student = replace(student, tail=tail[0], tail_mean=tail[1], encoder={"encoder": "hash"})
    return replace(student, targets=student.project_targets(whole.targets))


def block(student: Student, whole: TrainingData) -> np.ndarray:
    return student.predict_block(student.project_targets(whole.targets), student.project_sources(whole.sources))


@pytest.mark.parametrize("name", ["paper", "towers", "product"])
def test_coverage_sees_similarity_of_the_residuals_spread_on_top(
    name: str, training_data: Make, vectors: Callable[..., np.ndarray]
) -> None:
    whole = planted(training_data, vectors)
    student = trained(name, whole)
    plain, seen = block(student, whole), block(student.for_coverage(), whole)
    cosine = whole.sources @ whole.targets.T
    trained_on = cosine[whole.train.target, whole.train.source]
    added = 0.25 * (cosine - trained_on.mean()) / trained_on.std()
    assert seen == pytest.approx(plain + added, abs=1e-4)
    covering = student.for_coverage()
    sides = covering.project_targets(whole.targets), covering.project_sources(whole.sources)
    pairs = covering.predict_pairs(whole.train, *sides)
    assert pairs == pytest.approx(seen[whole.train.target, whole.train.source], abs=1e-4)
    assert seen.flags.f_contiguous


def test_scores_are_mean_utilities_without_a_tail(training_data: Make, vectors: Callable[..., np.ndarray]) -> None:
    whole = planted(training_data, vectors)
    student = trained("product", whole)
    sources = student.project_sources(whole.sources)
    bare = replace(student, tail=None)
    assert np.array_equal(student.mean_per_source(sources), bare.mean_per_source(sources))


@pytest.mark.parametrize("name", ["paper", "towers", "product"])
@pytest.mark.parametrize("shared", [True, False])
def test_scores_beside_a_covering_matrix_are_means_of_labels_and_plain_predictions(
    name: str, shared: bool, training_data: Make, vectors: Callable[..., np.ndarray]
) -> None:
    whole = planted(training_data, vectors)
    student = trained(name, whole)
    some = whole.train.take(np.arange(0, len(whole.train), 3))
    # One that the teacher could not give.
    some.value[5] = np.nan
    if not shared:
        some = replace(some, target_ids=tuple(f"target {item}" for item in some.target_ids))
    plain = Utilities(student, Vectors(whole.targets, whole.sources, whole.views), {"train": some}).matrix()
    found = (
        Utilities(student, Vectors(whole.targets, whole.sources, whole.views), {"train": some}).for_coverage().matrix()
    )
    assert found.score is not None
    assert plain.score is None
    assert found.score == pytest.approx(plain.matrix.mean_per_source(), abs=1e-5)
    known = found.matrix.values[some.target, some.source]
    assert np.array_equal(known, some.value, equal_nan=True)


def test_a_product_takes_its_tail_in_and_a_network_without_cosines_stands_beside_it(
    training_data: Make, vectors: Callable[..., np.ndarray]
) -> None:
    whole = planted(training_data, vectors)
    assert isinstance(trained("product", whole).for_coverage().net, Product)
    assert isinstance(trained("paper", whole).for_coverage().net, Tailed)
    other = trained("product", whole)
    tail = {**(other.tail or {}), "text_centre": other.weights["text_centre"] + np.float32(0.1)}
    assert isinstance(replace(other, tail=tail).for_coverage().net, Tailed)


def test_similarity_that_predicts_nothing_is_no_tail(training_data: Make, vectors: Callable[..., np.ndarray]) -> None:
    x = vectors(36)
    assert tail_of(training_data(-(x @ x.T), x), 0.1) is None


def test_all_views_are_in_a_tail_of_the_asked_spread_and_mean_nothing(training_data: Make) -> None:
    whole = training_data(views="probe")
    of_text = whole.views.take(whole.sources, "text") @ whole.views.take(whole.sources, "text").T
    whole = training_data(of_text, whole.sources, "probe")
    tail = tail_of(whole, 0.3)
    assert tail is not None
    towers = Student("towers", tail[0], -tail[1], 1.0, views=whole.views)
    values = block(towers, whole)[whole.train.target, whole.train.source]
    assert values.std() == pytest.approx(0.3, rel=1e-4)
    assert values.mean() == pytest.approx(0, abs=1e-4)


def test_a_saved_tail_is_the_same_and_a_poisoned_one_is_refused(
    training_data: Make, vectors: Callable[..., np.ndarray], tmp_path: Path
) -> None:
    whole = planted(training_data, vectors)
    student = trained("product", whole)
    student.save(tmp_path)
    assert np.array_equal(block(Student.load(tmp_path).for_coverage(), whole), block(student.for_coverage(), whole))
    arrays = load_file(tmp_path / "student.safetensors")
    name = f"{model.TAIL}text_centre"
    save_file({**arrays, name: arrays[name][:-1].copy()}, tmp_path / "student.safetensors")
    record = read_json(tmp_path / "student.json")
    record["sha256"] = digest(tmp_path / "student.safetensors")
    (tmp_path / "student.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match="cannot be used"):
        Student.load(tmp_path)


def test_candidates_add_similarity_in_units_of_the_residuals(
    training_data: Make, vectors: Callable[..., np.ndarray]
) -> None:
    whole = planted(training_data, vectors)
    few = replace(whole, train=whole.train.take(np.arange(72)))
    learned = network("product").learn(few, recipe="default", seed=0, advance=lambda step: None)
    made = Candidate.of("product", learned, Vectors(few.targets, few.sources, few.views))
    residual = whole.validation.value - made.predict(whole.validation)
    found = with_similarity(made, few, [whole.validation], widths=(0.5, 1.0))
    assert list(found) == ["student + 0.5 similarity", "student + 1 similarity"]
    for width, candidate in zip((0.5, 1.0), found.values(), strict=True):
        added = candidate.covered(few.train) - made.predict(few.train)
        assert added.std() == pytest.approx(width * residual.std(), rel=1e-3)
        assert added.mean() == pytest.approx(0, abs=1e-5)
        assert np.array_equal(candidate.predict(few.train), made.predict(few.train))
