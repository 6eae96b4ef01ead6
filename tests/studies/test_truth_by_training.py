"""Studies of truth by training: pools that are drawn evenly and aimed, and which estimates foresee training."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from nncift.data import read
from nncift.demo import model_path
from nncift.errors import UsageError
from nncift.runs.finished import FinishedRun
from nncift.runs.select_again import reselect
from nncift.studies import run_study as run
from nncift.studies.grid import Pool, TargetRows, load, rehearsed
from nncift.studies.workspace import prepare

pytestmark = pytest.mark.usefixtures("hastened")


def rows(path: Path, count: int, long: int = 0) -> str:
    """Write numbered rows, of which the first few are long."""
    lines = [
        {"prompt": f"{path.stem} asks {n}", "response": "word " * (200 if n < long else 2) + str(n)}
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_a_pool_takes_as_many_short_rows_of_each_file(tmp_path: Path) -> None:
    files = (rows(tmp_path / "one.jsonl", 30, long=10), rows(tmp_path / "two.jsonl", 80))
    made = prepare("own", Pool(files=files, each=12, longest=100), tmp_path / "out")
    found = [read(path) for path in made.files]
    assert [len(part) for part in found] == [12, 12]
    assert max(len(row.response) for part in found for row in part) < 100


def test_a_file_with_too_few_short_rows_is_named(tmp_path: Path) -> None:
    files = (rows(tmp_path / "one.jsonl", 30, long=25),)
    with pytest.raises(UsageError, match="one has 5 that fit"):
        prepare("own", Pool(files=files, each=12, longest=100), tmp_path / "out")


def test_target_rows_and_their_test_rows_are_not_in_the_pool(tmp_path: Path) -> None:
    files = (rows(tmp_path / "one.jsonl", 40), rows(tmp_path / "two.jsonl", 40))
    wanted = TargetRows(files=files[:1], rows=8, test=10)
    made = prepare("own", Pool(files=files, each=20, target=wanted), tmp_path / "out")
    assert made.target is not None
    assert made.test is not None
    target, test, pool = read(made.target), read(made.test), read(*made.files)
    assert (len(target), len(test), len(pool)) == (8, 10, 40)
    hashes = [{row.content_hash for row in part} for part in (target, test, pool)]
    assert not hashes[0] & hashes[1]
    assert not (hashes[0] | hashes[1]) & hashes[2]


def test_target_rows_are_drawn_evenly_from_files_of_other_sizes(tmp_path: Path) -> None:
    files = (rows(tmp_path / "few.jsonl", 40), rows(tmp_path / "many.jsonl", 400), rows(tmp_path / "some.jsonl", 90))
    wanted = TargetRows(files=files, rows=9, test=15, evenly=True)
    made = prepare("own", Pool(files=files, each=15, target=wanted), tmp_path / "out")
    assert made.target is not None
    assert made.test is not None
    for path, each in ((made.target, 3), (made.test, 5)):
        kinds = Counter(row.prompt.split()[0] for row in read(path))
        assert kinds == {"few": each, "many": each, "some": each}
    with pytest.raises(UsageError, match="as many of every file, and its target has 120"):
        prepare("own", Pool(files=files, each=15, target=wanted.model_copy(update={"test": 115})), tmp_path / "c")
    by_share = prepare(
        "own", Pool(files=files, each=15, target=wanted.model_copy(update={"evenly": False})), tmp_path / "b"
    )
    assert by_share.target is not None
    assert Counter(row.prompt.split()[0] for row in read(by_share.target)) != {"few": 3, "many": 3, "some": 3}


def test_other_selections_of_a_run_are_arms(tmp_path: Path, llama_folder: Path) -> None:
    data = [rows(tmp_path / f"{name}.jsonl", 40) for name in ("one", "two")]
    study: dict[str, Any] = {
        "name": "objectives",
        "seeds": 2,
        "pools": {
            "own": {
                "files": data,
                "each": 30,
                "target": {"files": data[:1], "rows": 4, "test": 6},
                "model": str(llama_folder),
            }
        },
        "analyses": [
            {
                "name": "others",
                "kind": "tune",
                "pool": "own",
                "run": {"teacher": "delift-se", "encoder": "hash", "labels": "100%"},
                "over": {"objective": [{"as": "topk", "objective": "topk"}, "max"]},
                "budgets": [0.2],
                "options": {
                    "model": str(llama_folder),
                    "arms": ["selected", "none"],
                    "metrics": ["loss"],
                    "steps": 1,
                    "equal": "steps",
                    "learning_rate": 0.01,
                },
            }
        ],
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    assert run.plan(load(path, {}))["analyses"]["others"]["runs"] == 2
    result = run.study(path, tmp_path / "out", device="cpu")
    assert not result.get("failed")
    (record,) = json.loads((tmp_path / "out" / "others.json").read_text())["records"]
    assert list(record["arms"]) == ["selected", "none", "topk", "objective_max"]
    assert "cost no pass of a language model" in (tmp_path / "out" / "others.md").read_text()
    for folder in (tmp_path / "out" / "runs").iterdir():
        made = FinishedRun(folder)
        written = tmp_path / "out" / "others" / f"seed-{made.settings.seed}" / "selections"
        for name, file in (("topk", "topk.txt"), ("max", "objective_max.txt")):
            again = tmp_path / f"{name}-{made.settings.seed}"
            reselect(folder, {"budget": "20%", "objective": name}, again)
            assert tuple((written / file).read_text().split()) == FinishedRun(again).chosen


@pytest.mark.parametrize(
    ("kind", "over", "said"),
    [
        ("tune", {"labels": ["10%", "20%"]}, "varies 'labels'; where arms are trained"),
        (
            "tune",
            {"quota": [{"as": "a b", "quota": ["source:max=60%"]}, {"as": "a-b", "quota": []}]},
            "two arms named 'a_b'",
        ),
        ("layers", {"labels": ["10%"]}, "varies the networks of one run"),
    ],
)
def test_what_a_kind_cannot_vary_is_refused(kind: str, over: dict[str, Any], said: str, tmp_path: Path) -> None:
    study = {
        "name": "s",
        "pools": {"own": {"world": {"rows": 60}}},
        "analyses": [{"name": "one", "kind": kind, "pool": "own", "over": over}],
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    with pytest.raises(UsageError, match=said):
        load(path, {})


def test_a_study_of_retraining_trains_once_for_all_students(tmp_path: Path, llama_folder: Path) -> None:
    data = [rows(tmp_path / f"{name}.jsonl", 30) for name in ("one", "two")]
    study: dict[str, Any] = {
        "name": "lds",
        "seeds": 1,
        "pools": {"own": {"files": data, "model": str(llama_folder)}},
        "analyses": [
            {
                "name": "foreseen",
                "kind": "retrain",
                "pool": "own",
                "truth": True,
                "run": {"teacher": "delift-se", "encoder": "hash", "test_items": 6, "validation_items": 6},
                "over": {"labels": ["40%", "60%"]},
                "options": {"halves": 10, "targets": 6, "rows": 0, "remove": "none", "batch": 16, "method": "whole"},
            }
        ],
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    result = run.study(path, tmp_path / "out", device="cpu")
    assert result["analyses"]["foreseen"]["records"] == 2
    tables = [(tmp_path / "out" / f"foreseen.{kind}").read_text() for kind in ("json", "csv", "md")]
    assert not any(str(tmp_path) in text for text in tables)
    (folder,) = (tmp_path / "out" / "trainings").glob("*/cells")
    # Ten halves, and the model as it is; both students are judged by the same.
    assert len(list(folder.iterdir())) == 11
    _, records, page = run.page_of(tmp_path / "out" / "foreseen.json")
    first, second = (record["retraining"]["lds"] for record in records)
    assert first["bm25"] == second["bm25"]
    assert "| student: labels 40% |" in page.text
    assert page.text.count("| teacher: delift-se |") == 1
    assert list(page.figures) == ["foreseen-0.svg"]


@pytest.mark.slow
def test_the_preset_of_truth_by_training_goes_through_whole(tmp_path: Path) -> None:
    """All its analyses with the demo's model in the place of SmolLM2."""
    text = run.preset("smollm2").read_text().replace("model: smollm2", "model: demo")
    # The demo's model knows words, and no digits, as grades.
    own_grades = "{as: selectit, teacher: selectit, option: {rating_prompts: demo}}"
    text = text.replace("loss, selectit]", f"loss, {own_grades}]")
    (tmp_path / "smollm2.yaml").write_text(text)
    from nncift.demo import make_world

    world = make_world(900, 0, test_rows=10)
    files = world.write(tmp_path / "world")
    lines = Path(files.pool).read_text().splitlines(keepends=True)
    given: dict[str, list[str]] = {"data": []}
    for part in range(5):
        path = tmp_path / f"part{part}.jsonl"
        path.write_text("".join(lines[part::5]))
        given["data"].append(str(path))
    given |= {name: [given["data"][place]] for place, name in enumerate(("tasks", "code", "maths"))}
    result = run.study(tmp_path / "smollm2.yaml", tmp_path / "out", given=given, rehearse=60)
    names = [one.name for one in load(run.preset("smollm2"), given).grid.analyses]
    assert list(result["analyses"]) == names
    assert model_path().exists()


def test_a_rehearsal_of_truth_by_training_trains_little(tmp_path: Path) -> None:
    given = {name: [f"{name}.jsonl"] for name in ("data", "tasks", "code", "maths")}
    small = rehearsed(load(run.preset("smollm2"), given), 60)
    assert small.grid.pools["lds"].each == 34
    assert small.grid.pools["general"].each == 76
    target = small.grid.pools["tasks"].target
    assert target is not None
    assert (target.rows, target.test) == (12, 16)
    assert small.grid.analyses[0].options["halves"] == 10
    # A tenth of a training on 60 rows is not enough for any plan of labels.
    assert {one.name: one.run["cost"] for one in small.grid.analyses if "cost" in one.run} == {"large": "100%"}
