"""Networks `towers` and `product` against their formula, and what refuses to be loaded as one."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nncift.errors import DataError, UsageError
from nncift.models.views import Views
from nncift.storage.atomic import digest, read_json
from nncift.student.model import Student
from nncift.student.networks import TrainingData, network

Make = Callable[..., TrainingData]
Draw = Callable[..., np.ndarray]

VIEWS = {"text": Views.of({"text": 6}), "probe": Views.of({"text": 6, "hidden": 5, "output": 4, "stats": 3})}
EXPONENTS = {"towers": (1,), "product": (1, 2, 4, 8, 16, 32)}


def made(name: str, views: Views, pointwise: bool = False) -> Student:
    """Return a student of random weights."""
    random = np.random.default_rng(3)
    shapes: dict[str, tuple[int, ...]] = {
        "target_weight": (0 if pointwise else views.dim, 7),
        "target_bias": (7,),
        "source_weight": (views.dim, 7),
        "source_bias": (7,),
    }
    for view in () if pointwise else views.similar:
        width = views.to_json()[view]
        shapes |= {f"{view}_powers": (len(EXPONENTS[name]),), f"{view}_centre": (width,)}
    weights = {key: random.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
    return Student(name, weights, 0.3, 0.05, views=views)


def by_hand(student: Student, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return predictions pair by pair, in double precision, from the formula of the module."""
    views, w = student.views, student.weights
    assert views is not None

    def parts(row: np.ndarray) -> np.ndarray:
        found = row.astype(np.float64).copy()
        for view in views.similar:
            place = views.place(view)
            moved = found[place] - w.get(f"{view}_centre", np.zeros(place.stop - place.start))
            found[place] = moved / np.linalg.norm(moved)
        return found

    table = np.empty((len(x), len(y)))
    for i, target in enumerate(x):
        for j, source in enumerate(y):
            t, s = parts(target), parts(source)
            total = (t @ w["target_weight"] + w["target_bias"]) @ (s @ w["source_weight"] + w["source_bias"])
            for view in views.similar:
                cosine = t[views.place(view)] @ s[views.place(view)]
                powers = [cosine if e == 1 else max(cosine, 0.0) ** e for e in EXPONENTS[student.network]]
                total += np.dot(w[f"{view}_powers"], powers)
            table[i, j] = total * student.scale + student.mean
    return table


@pytest.mark.parametrize("views", VIEWS)
@pytest.mark.parametrize("name", EXPONENTS)
def test_block_and_pairs_are_the_formula(name: str, views: str, vectors: Draw) -> None:
    student, x, y = made(name, VIEWS[views]), vectors(5, VIEWS[views]), vectors(8, VIEWS[views], 1)
    targets, sources = student.project_targets(x), student.project_sources(y)
    expected = by_hand(student, x, y)
    assert student.predict_block(targets, sources) == pytest.approx(expected, abs=1e-5)
    t, s = np.array([4, 0, 4, 2], np.int32), np.array([7, 7, 0, 3], np.int32)
    assert student.net.pairs(targets, sources, t, s) == pytest.approx(expected[t, s], abs=1e-5)


@pytest.mark.parametrize("views", VIEWS)
def test_a_prediction_of_towers_is_one_inner_product(views: str, vectors: Draw) -> None:
    student = made("towers", VIEWS[views])
    targets, sources = (
        student.project_targets(vectors(5, VIEWS[views])),
        student.project_sources(vectors(9, VIEWS[views], 1)),
    )
    inner = targets @ sources.T
    found = student.predict_block(targets, sources)
    assert found == pytest.approx(inner * student.scale + student.mean, abs=1e-6)
    # So the nearest neighbours by inner product are those by prediction.
    assert (np.argsort(-inner, axis=1) == np.argsort(-found, axis=1)).all()


@pytest.mark.parametrize("name", EXPONENTS)
def test_a_pointwise_prediction_is_linear_in_the_views(name: str, vectors: Draw) -> None:
    student, y = made(name, VIEWS["text"], pointwise=True), vectors(6)
    targets, sources = student.project_targets(np.zeros((1, 0), np.float32)), student.project_sources(y)
    unit = y / np.linalg.norm(y, axis=1, keepdims=True)
    w = student.weights
    expected = (unit @ w["source_weight"] + w["source_bias"]) @ w["target_bias"] * student.scale + student.mean
    assert student.predict_block(targets, sources)[0] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("views", VIEWS)
@pytest.mark.parametrize("name", EXPONENTS)
def test_a_saved_student_predicts_the_same_bytes(name: str, views: str, vectors: Draw, tmp_path: Path) -> None:
    student, x = made(name, VIEWS[views]), vectors(5, VIEWS[views])
    student.save(tmp_path)
    found = Student.load(tmp_path)
    assert found.views == VIEWS[views]
    one, two = (of.predict_block(of.project_targets(x), of.project_sources(x)) for of in (student, found))
    assert np.array_equal(one, two)


def test_pairs_are_gathered_in_parts_without_a_seam(vectors: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    student, x = made("product", VIEWS["probe"]), vectors(7, VIEWS["probe"])
    targets, sources = student.project_targets(x), student.project_sources(x)
    t, s = (part.ravel().astype(np.int32) for part in np.indices((7, 7)))
    whole = student.net.pairs(targets, sources, t, s)
    monkeypatch.setattr("nncift.student.networks.bilinear.GATHERED", 5)
    assert student.net.pairs(targets, sources, t, s) == pytest.approx(whole, abs=1e-6)


def rewrite(folder: Path, change: Callable[[dict[str, np.ndarray]], object], **record: object) -> None:
    """Change a saved student so that its digest fits again: as somebody would who wants it read."""
    arrays = load_file(folder / "student.safetensors")
    change(arrays)
    save_file(arrays, folder / "student.safetensors")
    description = read_json(folder / "student.json") | record
    description["sha256"] = digest(folder / "student.safetensors")
    (folder / "student.json").write_text(json.dumps(description))


POISON: dict[str, Callable[[dict[str, np.ndarray]], object]] = {
    "missing": lambda w: w.pop("source_bias"),
    "rank": lambda w: w.update(source_weight=w["source_weight"][:, :-1].copy()),
    "source dim": lambda w: w.update(source_weight=w["source_weight"][:-1].copy()),
    "target dim": lambda w: w.update(target_weight=w["target_weight"][:-1].copy()),
    "powers": lambda w: w.update(text_powers=w["text_powers"][:-1].copy()),
    "centre of a view with a cosine": lambda w: w.update(text_centre=np.zeros(1, np.float32)),
    "centre without its powers": lambda w: (w.pop("hidden_powers"), w.update(hidden_centre=np.zeros(1, np.float32))),
    "double": lambda w: w.update(target_bias=w["target_bias"].astype(np.float64)),
    "not a number": lambda w: w["target_weight"].__setitem__((0, 0), np.nan),
    "infinite": lambda w: w["text_powers"].__setitem__(0, np.inf),
}


@pytest.mark.parametrize("poison", POISON)
@pytest.mark.parametrize("name", EXPONENTS)
def test_weights_that_do_not_fit_are_refused_on_loading(name: str, poison: str, tmp_path: Path) -> None:
    made(name, VIEWS["probe"]).save(tmp_path)
    if poison == "powers" and name == "towers":
        rewrite(tmp_path, lambda w: w.update(text_powers=np.ones(2, np.float32)))
    else:
        rewrite(tmp_path, POISON[poison])
    with pytest.raises(DataError, match="cannot be used"):
        Student.load(tmp_path)


@pytest.mark.parametrize(
    "record",
    [{"views": None}, {"views": {"text": 7}}, {"network": "towers"}, {"network": "paper"}, {"network": "nobody"}],
)
def test_a_description_that_does_not_fit_is_refused(record: dict[str, object], tmp_path: Path) -> None:
    made("product", VIEWS["text"]).save(tmp_path)
    rewrite(tmp_path, lambda w: None, **record)
    with pytest.raises(DataError, match="cannot be used"):
        Student.load(tmp_path)


def test_an_unknown_network_is_named_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"there is no student 'tower'; did you mean 'towers'"):
        network("tower")


REST_POISON: dict[str, Callable[[dict[str, np.ndarray]], object]] = {
    "missing": lambda w: w.pop("target_keys"),
    "rows": lambda w: w.update(target_rest=w["target_rest"][:-1].copy()),
    "rank": lambda w: w.update(target_rest_bias=w["target_rest_bias"][:-1].copy()),
    "dim": lambda w: w.update(target_rest_weight=w["target_rest_weight"][:-1].copy()),
    "key": lambda w: w.update(target_keys=w["target_keys"][:, :-1].copy()),
    "not finite": lambda w: w.update(target_rest=np.full_like(w["target_rest"], np.nan)),
}


@pytest.mark.parametrize("poison", [None, *REST_POISON])
def test_what_is_kept_of_labelled_rows_has_to_fit(poison: str | None, tmp_path: Path) -> None:
    student, random = made("product", VIEWS["text"]), np.random.default_rng(1)
    shapes = {"keys": (4, 16), "rest": (4, 3), "rest_weight": (6, 3), "rest_bias": (3,)}
    kept = {f"target_{name}": random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    student = Student("product", {**student.weights, **kept}, 0.3, 0.05, views=VIEWS["text"])
    student.save(tmp_path)
    if poison is None:
        assert Student.load(tmp_path).net.width == 7 + 3 + 6
        return
    rewrite(tmp_path, REST_POISON[poison])
    with pytest.raises(DataError):
        Student.load(tmp_path)
