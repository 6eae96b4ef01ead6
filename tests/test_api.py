"""The Python interface: every command a function, a run an object (api/)."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nncift
from nncift.api.functions import RunOptions
from nncift.config import RunSettings

pytestmark = pytest.mark.usefixtures("hastened")
Write = Callable[..., Path]
CHEAP: dict[str, Any] = {"teacher": "length", "encoder": "hash", "labels": "50%", "budget": "20%"}


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    words = ["list", "sort", "name", "river", "lamp", "garden", "clock", "bridge"]
    rng = np.random.default_rng(0)
    return [
        {"id": f"r{k}", "prompt": " ".join(rng.choice(words, 6)), "response": " ".join(rng.choice(words, 3 + k % 9))}
        for k in range(60)
    ]


@pytest.fixture(scope="module")
def run(rows: list[dict[str, Any]]) -> nncift.Run:
    return nncift.run(rows, **CHEAP)


def test_the_signature_names_every_setting_with_its_default() -> None:
    named = inspect.signature(nncift.run).parameters
    apart = {"pool", "target", "existing", "teacher", "encoder"}
    assert set(RunOptions.__annotations__) == set(RunSettings.model_fields) - apart
    assert set(RunSettings.model_fields) - {"pool"} <= set(named)
    assert named["labels"].default == RunSettings.model_fields["labels"].default
    assert "rows" in named


def test_a_run_without_out_lies_in_a_folder_that_goes_with_it(rows: list[dict[str, Any]]) -> None:
    made = nncift.run(rows, **CHEAP)
    folder = made.path
    assert (folder / "summary.json").exists()
    del made
    assert not folder.exists()


def test_rows_of_python_give_a_run_that_knows_them(run: nncift.Run, rows: list[dict[str, Any]]) -> None:
    assert len(run.selected_ids) == 12 == run.summary["selected"]
    assert [rows[index]["id"] for index in run.selected_indices] == list(run.selected_ids)
    assert run.subset.ids == run.selected_ids
    assert run.ledger == run.summary["ledger"]
    assert run.warnings == tuple(run.summary["warnings"])
    assert run.spearman == run.summary["fidelity"]["q4"]["spearman"]


def test_skill_is_that_of_what_selects(run: nncift.Run) -> None:
    gate = run.summary["gate"]
    if gate["skill"]:
        assert run.skill == gate["skill"][gate["used"]]["skill"]
        assert run.skill_interval == tuple(gate["skill"][gate["used"]]["interval"])
    else:
        assert run.skill is None is run.skill_interval


def test_a_run_is_shown_in_one_line_and_escaped_in_a_notebook(run: nncift.Run) -> None:
    assert "\n" not in repr(run)
    assert "12 of 60 rows by length" in repr(run)
    run.summary["warnings"].append("<b>bold</b>")
    try:
        assert "&lt;b&gt;bold&lt;/b&gt;" in run._repr_html_()
    finally:
        run.summary["warnings"].pop()


def test_a_frame_holds_every_row_and_the_selection_in_order(run: nncift.Run) -> None:
    pytest.importorskip("pandas")
    frame = run.to_pandas()
    assert len(frame) == 60
    chosen = frame[frame["selected"]]
    assert tuple(chosen["id"]) == run.selected_ids
    assert list(chosen["rank"]) == list(range(1, 13))
    assert set(frame["id"]) == {f"r{k}" for k in range(60)}


def test_a_dataset_holds_the_selected_rows_as_they_were_given(run: nncift.Run, rows: list[dict[str, Any]]) -> None:
    pytest.importorskip("datasets")
    by_id = {row["id"]: row for row in rows}
    assert run.to_dataset().to_list() == [by_id[item] for item in run.selected_ids]


def test_commands_are_functions(run: nncift.Run, tmp_path: Path) -> None:
    loaded = nncift.load(run.path)
    assert loaded.selected_ids == run.selected_ids
    assert nncift.explain(run.path, run.selected_ids[0])["selected"]
    assert loaded.explain(run.selected_ids[0]) == nncift.explain(run.path, run.selected_ids[0])
    again = loaded.select(budget=5, out=tmp_path / "five")
    assert again["selected"] == 5
    assert nncift.compare(run.path, tmp_path / "five")["overlap"] is not None
    loaded.export(to="trl", out=tmp_path / "train.jsonl")
    assert len((tmp_path / "train.jsonl").read_text().splitlines()) == 12
    scores = nncift.score([{"prompt": "list", "response": "river lamp"}], run=run.path, out=tmp_path / "s.parquet")
    assert scores["rows"] == 1
    assert nncift.inspect(str(run.path / "subset.jsonl"))["usable"] == 12
    assert loaded.report().name == "report.html"


def test_selecting_again_in_place_is_seen(rows: list[dict[str, Any]]) -> None:
    made = nncift.run(rows, **CHEAP)
    assert len(made.subset) == 12
    made.select(budget=7)
    assert len(made.subset) == len(made.selected_ids) == 7
    assert json.loads((made.path / "summary.json").read_text())["selected"] == 7


def test_a_study_needs_one_of_file_and_preset(tmp_path: Path) -> None:
    with pytest.raises(nncift.NnciftError, match="one of the two"):
        nncift.study(out=tmp_path)
