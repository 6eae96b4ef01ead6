"""What teachers declare of their passes, beside what they count when they measure."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from nncift import teachers
from nncift.data import Examples, read
from nncift.data.examples import Rejection
from nncift.teachers import RowLabels
from nncift.teachers.abilities import WarmUpCost, pass_weight, row_passes, warm_up_cost


class Plain:
    """A plug-in that declares nothing of its cost."""

    name = "plain"
    kind: Literal["pairwise", "pointwise"] = "pointwise"
    width = 1
    options: Mapping[str, Any] = {"teacher": "plain"}

    def prepare(self, examples: Examples) -> tuple[Rejection, ...]:
        return ()

    def measure(self, ids: Sequence[str]) -> RowLabels:
        return RowLabels(np.zeros((len(ids), 1), np.float32), 0, len(ids))

    def describe(self) -> Mapping[str, Any]:
        return {}


def test_a_plug_in_that_declares_nothing_makes_one_forward_pass_a_row() -> None:
    assert (pass_weight(Plain()), row_passes(Plain()), warm_up_cost(Plain())) == (1, 1, WarmUpCost(0, 0))


@pytest.mark.parametrize(
    ("made", "weight", "passes"),
    [
        ("Less", 3, 4),
        ("Rds", 1, 1),
        ("Loss", 1, 1),
        ("Ifd", 1, 2),
        ("SelectIt", 1, 5),
        ("Delift", 1, None),
        ("Ica", 1, None),
    ],
)
def test_gradient_teachers_cost_three_forward_passes(
    llama_folder: Path, made: str, weight: int, passes: int | None
) -> None:
    teacher = getattr(teachers, made)(str(llama_folder))
    assert pass_weight(teacher) == weight
    if passes is not None:
        assert row_passes(teacher) == passes


@pytest.mark.parametrize("made", [teachers.Length(), teachers.Random(), teachers.Column("quality")])
def test_teachers_without_a_model_cost_nothing(made: Any) -> None:
    assert (pass_weight(made), row_passes(made)) == (0, 0)


def test_an_encoder_is_no_language_model() -> None:
    assert pass_weight(teachers.Similarity("hash")) == 0


@pytest.mark.parametrize("made", ["Less", "Rds", "Loss", "Ifd"])
def test_declared_passes_are_those_counted(llama_folder: Path, write_pool: Callable[..., Path], made: str) -> None:
    examples = read(write_pool(20))
    given: dict[str, Any] = {"projection": 32, "rank": 2, "epochs": 2, "warmup_share": 0.2} if made == "Less" else {}
    teacher = getattr(teachers, made)(str(llama_folder), device="cpu", **given)
    teacher.prepare(examples)
    assert teacher.measure(examples.ids[:3]).passes == 3 * row_passes(teacher)
