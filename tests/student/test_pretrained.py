"""The student in the package: its map, what it is refused for, and where it stands among the free similarities."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nncift import run as run_pool
from nncift.core.arrays import Floats
from nncift.errors import UsageError
from nncift.labels.vectors import Vectors
from nncift.models.encoders import MINILM, HashEncoder
from nncift.models.views import Views
from nncift.selection.probe_controls import FreeSimilarities
from nncift.student.candidates import free_candidates
from nncift.student.model import Student
from nncift.student.networks import TrainingData
from nncift.student.networks.pretrained import Pretrained
from nncift.student.pretrained_map import mapping

pytestmark = pytest.mark.usefixtures("hastened")
MINILM_VIEWS = Views.of({"text": 384}, MINILM)
Make = Callable[..., TrainingData]
Draw = Callable[..., np.ndarray]


def inner(x: Floats) -> np.ndarray:
    """Return the inner products of all mapped rows, one pair after the other."""
    rows = [[*map(float, row), 1.0] for row in x]
    maps = [np.asarray(row) @ mapping().astype(np.float64) for row in rows]
    return np.array([[float(a @ b) for b in maps] for a in maps])


def test_labels_give_slope_and_intercept_to_the_inner_products(training_data: Make, vectors: Draw) -> None:
    x = vectors(30, MINILM_VIEWS)
    values = 0.3 + 2.0 * inner(x)
    data = training_data(values, x, MINILM_VIEWS)
    learned = Pretrained.learn(data, recipe="default", seed=0, advance=lambda step: None)
    student = Student("pretrained", learned.weights, learned.mean, learned.scale, views=MINILM_VIEWS)
    found = student.predict_block(student.project_targets(x), student.project_sources(x))
    np.testing.assert_allclose(found, values, atol=1e-4)
    again = Pretrained.refit(data, courses=[], advance=lambda step: None)
    assert again is not None
    assert all(np.array_equal(again.weights[name], of) for name, of in learned.weights.items())


def test_it_stands_among_the_free_similarities_of_minilms_embeddings_alone(training_data: Make, vectors: Draw) -> None:
    x = vectors(30, MINILM_VIEWS)
    values = (0.5 * inner(x)).astype(np.float32)
    for views, there in ((MINILM_VIEWS, True), (Views.of({"text": 384}), False), (Views.of({"text": 384}, "x"), False)):
        data = training_data(values, x, views)
        assert ("pretrained" in free_candidates(data, Vectors(x, x, views))) is there
        assert ("pretrained" in FreeSimilarities(views, x, x, True).names) is there
    against = training_data(-values, x, MINILM_VIEWS)
    assert "pretrained" not in free_candidates(against, Vectors(x, x, MINILM_VIEWS))
    assert "pretrained" in free_candidates(against, Vectors(x, x, MINILM_VIEWS), rising=False)


def test_the_control_selects_by_the_same_inner_products(vectors: Draw) -> None:
    x = vectors(12, MINILM_VIEWS)
    names = tuple(f"row-{i:02d}" for i in range(12))
    found = FreeSimilarities(MINILM_VIEWS, x, x, True).matrix("pretrained", names, names).values
    expected = inner(x)
    np.fill_diagonal(expected, np.nan)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_embeddings_of_another_encoder_are_refused(training_data: Make, vectors: Draw) -> None:
    data = training_data(None, vectors(30, Views.of({"text": 384}, "bge")), Views.of({"text": 384}, "bge"))
    with pytest.raises(
        UsageError, match=r"pretrained does not apply: it reads embeddings of .*MiniLM.*the encoder is bge"
    ):
        Pretrained.learn(data, recipe="default", seed=0, advance=lambda step: None)


def rows(folder: Path) -> Path:
    words = "sort list name add red blue green cat dog bird sky sea tree house".split()
    lines = (f'{{"prompt": "{words[i % 14]} {words[i % 5]} {i}", "response": "{words[i % 11]}"}}' for i in range(40))
    path = folder / "pool.jsonl"
    path.write_text("\n".join(lines))
    return path


class LikeMiniLM(HashEncoder):
    """Vectors of words that say that MiniLM made them."""

    def __init__(self) -> None:
        super().__init__(384)

    def describe(self) -> Mapping[str, Any]:
        return {**super().describe(), "encoder": "minilm"}


def test_a_run_selects_by_it_and_shows_it_as_a_control(tmp_path: Path) -> None:
    given: dict[str, Any] = {"teacher": "delift-se", "labels": 0.5, "budget": 8, "gate": False}
    run = run_pool(rows(tmp_path), out=tmp_path / "run", student="pretrained", encoder=LikeMiniLM(), **given)
    assert run.summary["student"] == "pretrained"
    assert run.summary["selection"]["controls"]["pretrained"] is not None
    assert Student.load(tmp_path / "run" / "student").network == "pretrained"


def test_a_run_that_it_does_not_apply_to_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    for given, said in (
        ({"teacher": "delift-se", "encoder": "hash"}, "does not apply.*the encoder is hash.*--encoder minilm"),
        ({"teacher": "length", "encoder": LikeMiniLM()}, "the teacher length gives each row one score"),
    ):
        with pytest.raises(UsageError, match=said):
            run_pool(rows(tmp_path), out=tmp_path / "run", student="pretrained", **given)
        assert not (tmp_path / "run").exists()
