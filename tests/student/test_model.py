import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nncift.core.pairs import LabelledPairs, Pairs
from nncift.data.examples import Example, Examples, Message
from nncift.errors import DataError, UsageError
from nncift.models.encoders import HashEncoder
from nncift.storage.atomic import digest, read_json
from nncift.student import model
from nncift.student.model import Student, with_known
from nncift.student.score import all_pairs

DIM, HIDDEN, N = 16, 5, 9


def made(**changes: Any) -> Student:
    random = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "target_weight": (DIM, HIDDEN),
        "source_weight": (DIM, HIDDEN),
        "hidden_bias": (HIDDEN,),
        "output_weight": (HIDDEN,),
    }
    weights = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    given: dict[str, Any] = {
        "network": "paper",
        "weights": {**weights, "output_bias": np.float32(0.3).reshape(())},
        "mean": 0.2,
        "scale": 0.05,
        "encoder": HashEncoder(DIM).describe(),
        "targets": random.normal(size=(N, HIDDEN)).astype(np.float32),
        "half_width": 0.01,
        "about": {"interval": "wide"},
    }
    return Student(**{**given, **changes})


def vectors(n: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, DIM)).astype(np.float32)


def every_pair(n: int, m: int) -> Pairs:
    t, s = (part.ravel().astype(np.int32) for part in np.meshgrid(np.arange(n), np.arange(m), indexing="ij"))
    return Pairs(tuple(map(str, range(n))), tuple(map(str, range(m))), t, s)


def example(name: str, text: str) -> Example:
    return Example(name, text, "answer", (Message("user", text),), "new", 1, "{}")


def test_a_prediction_is_the_network_of_the_method_in_label_units() -> None:
    student, x, y = made(), vectors(4), vectors(6, 2)
    w = student.weights
    hidden = np.maximum((x @ w["target_weight"])[:, None] + (y @ w["source_weight"])[None] + w["hidden_bias"], 0)
    expected = (hidden @ w["output_weight"] + w["output_bias"]) * 0.05 + 0.2
    block = student.predict_block(student.project_targets(x), student.project_sources(y))
    assert block == pytest.approx(expected, abs=1e-5)
    pairs = student.predict_pairs(every_pair(4, 6), student.project_targets(x), student.project_sources(y))
    assert pairs == pytest.approx(expected.ravel(), abs=1e-5)


@pytest.mark.parametrize("block", [1, 2 * N, 10**6])
def test_means_in_blocks_are_plain_means(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    student = made()
    sources = student.project_sources(vectors(23))
    plain = student.predict_block(np.asarray(student.targets), sources).mean(axis=0, dtype=np.float64)
    monkeypatch.setattr(model, "SCORE_BYTES", 4 * block)
    assert student.mean_per_source(sources) == pytest.approx(plain, abs=1e-6)
    assert student.mean_per_source(sources[:0]).shape == (0,)


def test_a_saved_student_predicts_the_same(tmp_path: Path) -> None:
    student = made()
    student.save(tmp_path / "student")
    found = Student.load(tmp_path / "student")
    assert (found.network, found.mean, found.scale, found.half_width) == ("paper", 0.2, 0.05, 0.01)
    assert (found.encoder, found.about) == (student.encoder, student.about)
    assert np.array_equal(np.asarray(found.targets), np.asarray(student.targets))
    sources = student.project_sources(vectors(7))
    assert (found.mean_per_source(found.project_sources(vectors(7))) == student.mean_per_source(sources)).all()


@pytest.mark.parametrize("name", ["student.json", "student.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "flipped"])
def test_damaged_files_are_refused(tmp_path: Path, name: str, damage: str) -> None:
    made().save(tmp_path)
    path = tmp_path / name
    content = path.read_bytes()
    path.unlink()
    if damage == "flipped":
        path.write_bytes(content[:-6] + bytes([content[-6] ^ 4]) + content[-5:] if name.endswith("s") else b"[]")
    elif damage != "missing":
        path.write_bytes(content[:-9] if damage == "cut" else b"")
    with pytest.raises(DataError, match="student"):
        Student.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("projected_targets", np.zeros((N, HIDDEN - 1), np.float32)),
        ("hidden_bias", np.zeros(HIDDEN + 1, np.float32)),
        ("output_weight", np.zeros(HIDDEN, np.float64)),
        ("source_weight", None),
    ],
)
def test_arrays_that_do_not_agree_are_refused_before_compiled_code_reads_them(
    tmp_path: Path, name: str, array: np.ndarray | None
) -> None:
    made().save(tmp_path)
    arrays = load_file(tmp_path / "student.safetensors")
    arrays.pop(name)
    save_file(arrays if array is None else {**arrays, name: array}, tmp_path / "student.safetensors")
    record = read_json(tmp_path / "student.json")
    record["sha256"] = digest(tmp_path / "student.safetensors")
    (tmp_path / "student.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match=name):
        Student.load(tmp_path)


def test_scores_are_mean_predictions_with_their_interval() -> None:
    student = made()
    new = Examples((example("a", "sort the list"), example("b", "name a tree")))
    found = student.score(new, encoder=HashEncoder(DIM))
    x, _ = HashEncoder(DIM).encode([item.text for item in new])
    expected = student.predict_block(np.asarray(student.targets), student.project_sources(x)).mean(axis=0)
    assert found.ids == ("a", "b")
    assert found.score == pytest.approx(expected, abs=1e-6)
    assert found.low is not None
    assert found.high is not None
    assert found.high - found.low == pytest.approx([0.02, 0.02])


def test_without_an_interval_there_are_no_bounds() -> None:
    found = made(half_width=None).score(Examples((example("a", "x"),)), encoder=HashEncoder(DIM))
    assert found.low is None
    assert found.high is None


def test_vectors_of_another_encoder_are_refused() -> None:
    with pytest.raises(UsageError, match=r"'dim': 16.*'dim': 32"):
        made().score(Examples((example("a", "x"),)), encoder=HashEncoder(32))


def test_a_student_without_targets_cannot_score() -> None:
    with pytest.raises(DataError, match="without its run's targets"):
        made(targets=None).score(Examples((example("a", "x"),)), encoder=HashEncoder(DIM))


def test_the_hybrid_matrix_keeps_labels_and_predicts_the_rest() -> None:
    student, x = made(), vectors(4)
    a, b = student.project_targets(x), student.project_sources(x)
    ids = ("p", "q", "r", "s")
    t, s = np.array([0, 2, 3], np.int32), np.array([1, 0, 2], np.int32)
    known = LabelledPairs(ids, ids, t, s, np.array([7, np.nan, -3], np.float32))
    found = with_known(all_pairs(student, a, b), known, shared=True)
    expected = student.predict_block(a, b).copy()
    expected[0, 1], expected[2, 0], expected[3, 2] = 7, np.nan, -3
    np.fill_diagonal(expected, np.nan)
    assert np.array_equal(found.values, expected, equal_nan=True)
    assert (found.target_ids, found.source_ids) == (ids, ids)
    assert np.isfinite(np.diag(with_known(all_pairs(student, a, b), known, shared=False).values)).all()
    assert found.values.flags.f_contiguous


def test_the_papers_student_has_its_published_number_of_parameters() -> None:
    shapes = {"target_weight": (1024, 100), "source_weight": (1024, 100), "hidden_bias": 100, "output_weight": 100}
    weights = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    assert made(weights={**weights, "output_bias": np.zeros((), np.float32)}).parameters == 205_001
