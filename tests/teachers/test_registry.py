from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from nncift.config import TeacherSettings, resolve
from nncift.data.examples import Examples, Rejection
from nncift.errors import UsageError
from nncift.teachers import RowLabels, RowTeacher, Teacher
from nncift.teachers.registry import TEACHERS, as_settings, create, teacher_class

OWN: dict[str, dict[str, Any]] = {
    "delift": {"variant": "logprob"},
    "delift-se": {"encoder": "hash"},
    "less": {
        "lora": False,
        "projection": 64,
        "warmup_share": 0.25,
        "epochs": 2,
        "adam": "none",
        "aggregate": "mean-of-cosines",
    },
    "selectit": {"grades": 4, "alpha": 0.5},
    "ifd": {"above_one": "keep"},
    "ica": {"in_front": 3},
    "retrain": {"trainings": 3, "lora": False, "share": 0.4},
    "ekfac": {"projection": 64, "sample": 9, "damping": 0.2, "layers": ["q_proj"]},
    "logra": {"projection": 4, "lora": True, "rank": 2},
    "trackstar": {"projection": 4, "mix": 0.25, "subtask": "task"},
    "random": {"seed": 9},
    "column": {"column": "quality"},
}
MODELS = {"delift", "less", "selectit", "ifd", "loss", "rds", "ica", "ekfac", "logra", "trackstar", "retrain"}


class Plugged:
    """A teacher of another package."""

    name = "plugged"
    kind: Literal["pairwise", "pointwise"] = "pointwise"
    width = 1

    def __init__(self, depth: int = 1, workspace: Path | None = None) -> None:
        self.depth, self.workspace = depth, workspace
        self.options: Mapping[str, Any] = {"teacher": "plugged", "depth": depth}

    def prepare(self, examples: Examples) -> tuple[Rejection, ...]:
        return ()

    def measure(self, ids: Sequence[str]) -> RowLabels:
        return RowLabels(np.zeros((len(ids), 1), np.float32), 0, 0)

    def describe(self) -> Mapping[str, Any]:
        return dict(self.options)


@pytest.fixture
def plugged(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [
        metadata.EntryPoint("plugged", f"{__name__}:Plugged", "nncift.teachers"),
        metadata.EntryPoint("length", f"{__name__}:Plugged", "nncift.teachers"),
        metadata.EntryPoint("gone", "a_module_that_is_not_there:Gone", "nncift.teachers"),
    ]
    real = metadata.entry_points

    def entry_points(**given: Any) -> Any:
        return metadata.EntryPoints(entries) if given == {"group": "nncift.teachers"} else real(**given)

    monkeypatch.setattr(metadata, "entry_points", entry_points)


@pytest.mark.parametrize("name", sorted(TEACHERS))
def test_options_stand_for_the_same_teacher(name: str, llama_folder: Path) -> None:
    own = {**({"model": str(llama_folder)} if name in MODELS else {}), **OWN.get(name, {})}
    made = teacher_class(name)(**own)
    assert isinstance(made, Teacher | RowTeacher)
    given = as_settings(made.options)
    settings = resolve({**given, "device": "cpu"})
    assert settings.teacher == made.name
    again = create(settings, "cpu", encoder="hash")
    assert type(again) is type(made)
    assert again.options == made.options
    assert again.describe() == made.describe()


@pytest.mark.usefixtures("plugged")
def test_other_packages_add_teachers_and_replace_none(tmp_path: Path) -> None:
    settings = TeacherSettings(teacher="plugged", option={"depth": 3})
    made = create(settings, workspace=tmp_path)
    assert isinstance(made, Plugged)
    assert (made.depth, made.workspace) == (3, tmp_path)
    assert as_settings(made.options) == {"teacher": "plugged", "option": {"depth": 3}}
    assert type(create(TeacherSettings(teacher="length"))).__module__ == "nncift.teachers.given_scores"
    with pytest.raises(UsageError, match="there is no teacher 'plugd'; did you mean 'plugged'"):
        create(TeacherSettings(teacher="plugd"))


@pytest.mark.usefixtures("plugged")
def test_a_plug_in_that_cannot_be_loaded_is_named() -> None:
    with pytest.raises(UsageError, match=r"the teacher gone cannot be loaded from a_module_that_is_not_there:Gone"):
        create(TeacherSettings(teacher="gone"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"teacher": "selectt"}, "there is no teacher 'selectt'; did you mean 'selectit'"),
        ({"teacher": "less"}, "the teacher less needs a language model: give --model"),
        ({"teacher": "length", "variant": "logprob"}, "the teacher length takes no variant; it was given 'logprob'"),
        ({"teacher": "column:"}, "needs the name of a column"),
        ({"teacher": "column"}, "needs the name of a column"),
        ({"teacher": "length:words"}, "the teacher length has nothing behind a colon"),
        ({"teacher": "random", "option": {"sed": 1}}, "the teacher random has no option 'sed'; did you mean 'seed'"),
    ],
)
def test_what_makes_no_teacher_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        create(TeacherSettings(**given))
