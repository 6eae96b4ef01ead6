import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import nncift
from nncift.errors import DataError, ResourceError
from nncift.runs.student_card import card, write_card
from nncift.student.model import Student

pytestmark = pytest.mark.usefixtures("hastened")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("card")
    rows = [{"instruction": f"say {k}", "output": "word " * (1 + k % 9)} for k in range(40)]
    (folder / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NNCIFT_CACHE", str(folder / "cache"))
        nncift.run(folder / "pool.jsonl", teacher="length", labels=0.3, budget=5, encoder="hash", out=folder / "run")
    return folder / "run"


def test_a_run_leaves_the_card_of_its_student(done: Path) -> None:
    text = (done / "student" / "README.md").read_text()
    summary = json.loads((done / "summary.json").read_text())
    head = yaml.safe_load(text.split("---")[1])
    assert head["library_name"] == "nncift"
    assert "40 of pool.jsonl" in text
    assert f"{summary['fidelity']['q4']['spearman']:.3f}" in text
    for name in summary["baselines"]:
        assert nncift_name(name) in text
    for part in ("## Data and teacher", "## Fidelity", "## Use", "## Limits"):
        assert part in text
    # No path of the machine that trained it.
    assert str(done.parent) not in text


def nncift_name(name: str) -> str:
    from nncift.evaluation.verdicts import NAMES

    return NAMES.get(name, name)


def test_names_from_files_do_not_break_the_card() -> None:
    evil = "x`](http://a)<script>|\n# y.jsonl"
    text = card({"pool": 1, "teacher": evil}, {"verdicts": [evil]}, {}, {"pool": [evil]})
    assert "<script>" not in text
    assert "\n# y" not in text
    assert text.count("\n# ") == 1


def test_a_card_needs_a_finished_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no finished run with a student"):
        write_card(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("manifest.yaml", ""),
        ("manifest.yaml", "pool: 3"),
        ("manifest.yaml", "a: &a 1\nb: *a"),
        ("summary.json", "[]"),
        ("fidelity.json", '{"verdicts": 1}'),
        ("student/student.json", '{"encoder": 7}'),
    ],
)
def test_a_card_of_files_that_were_edited_is_refused(done: Path, tmp_path: Path, name: str, content: str) -> None:
    run = shutil.copytree(done, tmp_path / "run")
    (run / name).write_text(content)
    with pytest.raises(DataError):
        write_card(run)


def test_a_student_loads_from_its_folder_and_from_its_run(done: Path) -> None:
    wanted = json.loads((done / "student" / "student.json").read_text())["parameters"]
    for place in (done / "student", done, str(done)):
        assert Student.load(place).parameters == wanted


def test_a_student_loads_from_the_hub(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def download(name: str, file: str, *, revision: str | None) -> str:
        asked.append((name, file, revision))
        return str(done / "student" / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    found = Student.load("org/a-student", revision="v1")
    assert found.parameters == Student.load(done / "student").parameters
    assert asked == [("org/a-student", "student.json", "v1"), ("org/a-student", "student.safetensors", "v1")]


def test_what_the_hub_does_not_have_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ResourceError, match="'org/none' is no folder here, and the hub does not give"):
        Student.load("org/none")
    with pytest.raises(DataError, match="no readable student"):
        Student.load("no such place")
