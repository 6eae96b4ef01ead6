"""What teachers declare of their passes, beside what they count when they measure."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from nncift import teachers
from nncift.config import resolve
from nncift.data import Examples, read
from nncift.data.examples import Rejection
from nncift.pipeline import execute
from nncift.stages.estimate import estimate
from nncift.stages.request import Request
from nncift.teachers import RowLabels
from nncift.teachers.abilities import WarmUpCost, pass_weight, row_passes, warm_up_cost

pytestmark = pytest.mark.usefixtures("hastened")


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


@pytest.mark.parametrize(
    ("teacher", "option"),
    [
        ("ekfac", {"sample": 6, "projection": 32}),
        ("logra", {"sample": 6, "projection": 2}),
        ("trackstar", {"sample": 6, "projection": 2}),
        ("less", {"projection_kind": "target", "rank": 2, "epochs": 1, "warmup_share": 0.2}),
        ("retrain", {"trainings": 3, "rank": 2}),
        ("rds", {}),
    ],
)
def test_a_dry_run_counts_the_passes_that_are_made(
    llama_folder: Path, write_pool: Callable[..., Path], tmp_path: Path, teacher: str, option: dict[str, Any]
) -> None:
    settings = resolve(
        {
            "pool": (str(write_pool(24)),),
            "target": (str(write_pool(6, "target.jsonl", start=50)),),
            "teacher": teacher,
            "option": option,
            "model": str(llama_folder),
            "encoder": "hash",
            "features": "text",
            "labels": "40%",
            "budget": 3,
            "device": "cpu",
        }
    )
    planned = estimate(Request.resolve(settings)).to_json()
    done = execute(Request.resolve(settings, out=tmp_path / "run"), tmp_path / "run")
    assert planned["label"]["passes"] == done.ledger["teacher_passes"]
    assert planned["full_teacher"]["passes"] == done.ledger["full_teacher_passes"]
    labelled = done.ledger["stages"]["label"]["model_tokens"]
    # A training's tokens are those of halves, whose rows are not all of one length.
    assert planned["label"]["tokens"] == pytest.approx(labelled, rel=0.1 if teacher == "retrain" else 1e-9)
