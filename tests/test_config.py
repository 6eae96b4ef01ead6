from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nncift.config import RunSettings, StudentSettings, recorded, resolve
from nncift.errors import DataError, UsageError


def settings_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_flags_override_the_file_and_the_file_the_defaults(tmp_path: Path) -> None:
    found = resolve({"labels": "7%"}, settings_file(tmp_path, "labels: 9%\nbudget: 10\n"))
    assert (found.labels.share, found.budget.count, found.seed) == (0.07, 10, 0)


@pytest.mark.parametrize("in_file", [True, False])
def test_an_unknown_name_is_answered_with_the_nearest(tmp_path: Path, in_file: bool) -> None:
    file = settings_file(tmp_path, "lables: 5%\n") if in_file else None
    with pytest.raises(UsageError, match=r"'lables'; did you mean 'labels'\?"):
        resolve({} if in_file else {"lables": "5%"}, file)


def test_a_name_like_no_other_is_answered_with_all() -> None:
    with pytest.raises(UsageError, match="there are against, budget"):
        resolve({"zzzzzz": 1})


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("seed", "abc", "'seed' was given as 'abc'.*integer"),
        ("limit", 0, "'limit' was given as 0.*greater than or equal to 1"),
        ("plan", "chess", "'plan' was given as 'chess'.*'block', 'scatter', 'active' or 'rows'"),
        ("labels", ["5%"], r"\['5%'\] was given; expected a share such as 5%"),
        ("budget", True, "--budget True was given; expected a share of the rows"),
        ("map", "prompt", "'map' was given as 'prompt'.*dict"),
    ],
)
def test_a_wrong_kind_of_value_is_named_with_what_was_expected(name: str, value: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        resolve({name: value})


@pytest.mark.parametrize("name", ["labels", "budget"])
@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.05, "5%"),
        (0.125, "12.5%"),
        (1.0, "100%"),
        (4000, "4000"),
        ("5%", "5%"),
        (np.float64(0.3), "30%"),
        (np.int64(7), "7"),
        (np.float32(0.5), "50%"),
    ],
)
def test_amounts_come_as_floats_integers_and_text(name: str, value: Any, text: str) -> None:
    assert str(getattr(resolve({name: value}), name)) == text
    assert resolve({name: value}).model_dump(mode="json")[name] == text


def test_one_file_may_stand_alone(tmp_path: Path) -> None:
    assert resolve({}, settings_file(tmp_path, "pool: a.jsonl\n")).pool == ("a.jsonl",)


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "\x00", "5: x", ""])
def test_a_file_that_is_no_settings_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"settings\.yaml"):
        resolve({}, settings_file(tmp_path, text))


def test_a_missing_settings_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.yaml.*No such file"):
        resolve({}, tmp_path / "absent.yaml")


def test_the_record_of_a_manifest_is_no_setting(tmp_path: Path) -> None:
    assert resolve({}, settings_file(tmp_path, "seed: 3\nrecord: {versions: {torch: '2'}}\n")).seed == 3


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        RunSettings().seed = 2  # type: ignore[misc]


def test_a_stage_takes_only_its_own_settings() -> None:
    assert RunSettings(recipe="paper").part(StudentSettings) == {
        "student": "product",
        "recipe": "paper",
        "features": None,
        "probe_share": None,
        "gate": True,
    }


def test_a_preset_stands_for_what_is_not_given(tmp_path: Path) -> None:
    assert resolve({}).teacher == "less"
    paper = resolve({"preset": "paper", "encoder": "minilm"})
    assert (paper.teacher, paper.student, paper.recipe, paper.plan) == ("delift", "paper", "paper", "block")
    assert (paper.encoder, paper.features, paper.gate) == ("minilm", "text", False)
    file = tmp_path / "settings.yaml"
    file.write_text("teacher: length\n")
    assert resolve({"preset": "cheap"}, file).teacher == "length"
    assert resolve({"preset": "cheap"}).labels.share == 1
    with pytest.raises(UsageError, match="preset"):
        resolve({"preset": "best"})


@pytest.mark.parametrize(
    ("given", "teacher", "labels"),
    [
        ({}, "less", "5%"),
        ({"target": ["t.jsonl"]}, "rds", "100%"),
        ({"target": []}, "less", "5%"),
        ({"target": ["t.jsonl"], "labels": "10%"}, "less", "10%"),
        ({"target": ["t.jsonl"], "teacher": "rds", "labels": "10%"}, "rds", "10%"),
        ({"target": ["t.jsonl"], "teacher": "rds"}, "rds", "100%"),
        ({"target": ["t.jsonl"], "teacher": "less"}, "less", "5%"),
        ({"teacher": "rds"}, "rds", "5%"),
        ({"target": ["t.jsonl"], "preset": "paper"}, "delift", "5%"),
        ({"target": ["t.jsonl"], "preset": "cheap"}, "delift-se", "100%"),
    ],
)
def test_a_target_set_is_served_by_every_row_read_once_unless_labels_are_to_be_few(
    given: dict[str, object], teacher: str, labels: str
) -> None:
    found = resolve(given)
    assert (found.teacher, str(found.labels)) == (teacher, labels)


def test_a_target_set_that_is_no_file_counts_as_one() -> None:
    assert (resolve({"target": ()}, aimed=True).teacher, resolve({}, aimed=True).labels.share) == ("rds", 1)


def test_a_manifest_with_what_no_run_was_made_with_is_named(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.yaml"
    manifest.write_text("pool: [a.jsonl]\nprove: fanse\n")
    with pytest.raises(DataError, match=r"manifest\.yaml' is damaged: setting 'prove' was given as 'fanse'"):
        recorded(manifest)
    with manifest.open("a") as file:
        file.write("record: {versions: {nncift: '0.1.0'}}\n")
    with pytest.raises(
        DataError, match=r"was written by nncift 0\.1\.0, and nncift \S+ cannot read it: setting 'prove'"
    ):
        recorded(manifest)
    manifest.write_text("pool: [a.jsonl]\nteacher: loss\nmodel: m\n")
    assert recorded(manifest, {"seed": 3}).seed == 3
    with pytest.raises(UsageError, match="setting 'seed'"):
        recorded(manifest, {"seed": "three"})


@pytest.mark.parametrize("name", ["test_items", "validation_items"])
def test_more_items_than_any_run_measures_with_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="less than or equal to 100000"):
        resolve({name: 10**12})
