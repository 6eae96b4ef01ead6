"""What commands make of folders that are there: runs, selections beside them, and files whose suffix says what they are."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

import nncift

Call = Callable[..., Any]
pytestmark = pytest.mark.usefixtures("hastened")
LENGTH = ("--teacher", "length", "--encoder", "hash", "--labels", "50%", "--test-items", 5, "--validation-items", 4)


@pytest.fixture
def made(call: Call, write_pool: Callable[..., Path], tmp_path: Path) -> Path:
    """Return a run of 40 rows, 20 of them selected, with 8 of them in a folder `few` beside it."""
    assert call("run", write_pool(40), *LENGTH, "--budget", "50%", "--out", tmp_path / "run").code == 0
    assert call("select", tmp_path / "run", "--budget", 8, "--out", tmp_path / "few").code == 0
    return tmp_path


def test_a_row_is_explained_by_its_rank(call: Call, made: Path) -> None:
    first = json.loads((made / "run" / "subset.jsonl").read_text().split("\n")[0])["id"]
    found = json.loads(call("explain", made / "run", "--rank", 1, "--json").out)
    assert (found["id"], found["rank"], found["of"]) == (first, 1, 20)
    assert call("explain", made / "run", "--rank", 21).code == 2
    assert call("explain", made / "run").code == 2
    assert call("explain", made / "run", "--rank", 1, "--id", first).code == 2


def test_a_row_is_found_by_a_text_in_it(call: Call, made: Path) -> None:
    rows = [json.loads(line) for line in (made / "pool.jsonl").read_text().splitlines()]
    one = json.loads(call("explain", made / "run", "--search", rows[7]["instruction"].upper(), "--json").out)
    assert one["id"] == rows[7]["id"]
    several = json.loads(call("explain", made / "run", "--search", "row-000", "--json").out)
    assert several["found"] == 10
    ranks = [row["rank"] for row in several["rows"]]
    chosen = [rank for rank in ranks if rank is not None]
    assert chosen == sorted(chosen)
    assert ranks == chosen + [None] * (10 - len(chosen))
    assert "explain one of them" in call("explain", made / "run", "--search", "row-000").out.lower()
    assert call("explain", made / "run", "--search", "not there").code == 2


def test_a_selection_beside_a_run_is_a_run_to_what_reads_runs(call: Call, made: Path) -> None:
    few = made / "few"
    ids = [json.loads(line)["id"] for line in (few / "subset.jsonl").read_text().splitlines()]
    assert [json.loads(call("explain", few, "--rank", k, "--json").out)["id"] for k in (1, 8)] == [ids[0], ids[7]]
    call("export", few, "--to", "trl", "--out", made / "few.jsonl")
    assert len((made / "few.jsonl").read_text().splitlines()) == 8
    assert (
        json.loads(call("score", made / "pool.jsonl", "--run", few, "--out", made / "s.csv", "--json").out)["rows"]
        == 40
    )
    run = nncift.load(few)
    assert run.selected_ids == tuple(ids)
    assert run.summary["selected"] == 8
    assert run.report() == few / "report.html"
    assert json.loads((few / "report.json").read_text())["run"] == "few"
    # Its settings are those that it was selected by.
    settings = yaml.safe_load((few / "manifest.yaml").read_text())
    assert (settings["budget"], settings["teacher"]) == ("8", "length")
    assert call("select", few, "--budget", 3, "--out", made / "fewer").code == 0
    assert [json.loads(line)["id"] for line in (made / "fewer" / "subset.jsonl").read_text().splitlines()] == ids[:3]


def test_a_selection_is_no_place_for_a_run(call: Call, made: Path) -> None:
    found = call("run", made / "pool.jsonl", *LENGTH, "--out", made / "few")
    assert (found.code, "nncift select --out" in found.err) == (2, True)
    found = call("select", made / "few", "--budget", 3)
    assert (found.code, "give --out" in found.err) == (2, True)


def test_a_selection_finds_its_run_after_both_were_moved(call: Call, made: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for name in ("run", "few"):
        shutil.move(tmp_path / name, tmp_path / "elsewhere" / name)
    assert call("explain", tmp_path / "elsewhere" / "few", "--rank", 1).code == 0
    shutil.rmtree(tmp_path / "elsewhere" / "run")
    found = call("explain", tmp_path / "elsewhere" / "few", "--rank", 1)
    assert (found.code, "which is not there" in found.err) == (3, True)


def test_the_suffix_says_what_scores_are_written_as(call: Call, made: Path) -> None:
    for name in ("s.parquet", "s.csv", "s.jsonl"):
        assert call("score", made / "pool.jsonl", "--run", made / "run", "--out", made / name).code == 0
    rows = pq.read_table(made / "s.parquet").to_pylist()
    assert [json.loads(line) for line in (made / "s.jsonl").read_text().splitlines()] == rows
    with (made / "s.csv").open(newline="") as stream:
        read = list(csv.DictReader(stream))
    assert [{**row, **{key: float(row[key]) for key in row if key != "id"}} for row in read] == rows
    found = call("score", made / "pool.jsonl", "--run", made / "run", "--out", made / "s.xlsx")
    assert found.code == 2
    assert ".parquet, .csv, .jsonl" in found.err
    assert not (made / "s.xlsx").exists()


def test_an_existing_run_supplies_every_setting_that_is_not_given(call: Call, made: Path) -> None:
    before = (made / "run" / "subset.jsonl").read_bytes()
    assert call("run", "--out", made / "run").code == 0
    assert (made / "run" / "subset.jsonl").read_bytes() == before
    assert call("run", "--budget", 5, "--out", made / "run").code == 0
    assert (made / "run" / "subset.jsonl").read_bytes() == b"".join(before.splitlines(keepends=True)[:5])
    settings = yaml.safe_load(call("run", "--out", made / "run", "--print-config").out)
    assert (settings["budget"], settings["labels"], settings["encoder"]) == ("5", "50%", "hash")
    # What is given counts, and what a run depends on must stay.
    assert call("run", "--encoder", "minilm", "--out", made / "run").code == 2


def test_an_existing_run_supplies_settings_in_python_too(made: Path) -> None:
    rows = [json.loads(line) for line in (made / "pool.jsonl").read_text().splitlines()]
    run = nncift.run(rows, out=made / "run", budget=6)
    assert (run.summary["teacher"], len(run.selected_ids)) == ("length", 6)
