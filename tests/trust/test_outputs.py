"""Outputs never take the place of inputs, nor of what a run is made of."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import nncift
from nncift import config
from nncift.errors import UsageError
from nncift.storage.outputs import check_replaces_nothing, check_run_folder
from nncift.studies import run_study

Call = Callable[..., Any]
pytestmark = pytest.mark.usefixtures("hastened")


@pytest.fixture
def pool(write_pool: Callable[..., Path]) -> Path:
    """Return a pool of 24 rows."""
    return write_pool(24)


@pytest.fixture
def finished(pool: Path, tmp_path: Path) -> Path:
    """Return a small finished run without a model."""
    nncift.run(pool, out=tmp_path / "run", teacher="length", encoder="hash", labels="60%", budget=5, test_items=3)
    return tmp_path / "run"


@pytest.mark.parametrize("name", ["pool.jsonl", "./sub/../pool.jsonl", "link.jsonl", "hard.jsonl"])
def test_export_does_not_replace_the_pool(call: Call, finished: Path, pool: Path, name: str) -> None:
    (pool.parent / "sub").mkdir()
    (pool.parent / "link.jsonl").symlink_to(pool)
    os.link(pool, pool.parent / "hard.jsonl")
    before = pool.read_bytes()
    found = call("export", finished, "--to", "trl", "--out", f"{pool.parent}/{name}")
    assert found.code == 2
    assert "is the input" in found.err
    assert pool.read_bytes() == before


@pytest.mark.parametrize("name", ["subset.jsonl", "pool.json"])
def test_export_does_not_replace_files_of_the_run(call: Call, finished: Path, name: str) -> None:
    before = (finished / name).read_bytes()
    found = call("export", finished, "--out", finished / name)
    assert found.code == 2
    assert "made of" in found.err
    assert (finished / name).read_bytes() == before


@pytest.mark.parametrize("name", ["train.card.md", "train.trl.py"])
@pytest.mark.parametrize("edited", [False, True])
def test_export_keeps_what_somebody_wrote_beside_it(
    call: Call, finished: Path, tmp_path: Path, name: str, edited: bool
) -> None:
    line = ("export", finished, "--to", "trl", "--out", tmp_path / "out" / "train.jsonl", "--quiet")
    beside = tmp_path / "out" / name
    if edited:
        assert call(*line).code == 0
        beside.write_text(beside.read_text().replace("train", "mine", 1))
    else:
        beside.parent.mkdir()
        beside.write_text("mine\n")
    before = {path: path.read_bytes() for path in beside.parent.iterdir()}
    found = call(*line)
    assert found.code == 2
    assert name in found.err
    assert {path: path.read_bytes() for path in beside.parent.iterdir()} == before


def test_export_may_be_given_twice(call: Call, finished: Path) -> None:
    line = ("export", finished, "--to", "trl", "--out", finished / "train.jsonl", "--quiet")
    assert [call(*line).code, call(*line).code] == [0, 0]


@pytest.mark.parametrize("name", ["new.jsonl", "pool.jsonl", "run/rows.parquet", "run/student/student.json"])
def test_score_does_not_replace_what_it_reads(
    call: Call, finished: Path, write_pool: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    write_pool(24)
    new, out = write_pool(4, "new.jsonl", 900), tmp_path / name
    before = out.read_bytes()
    found = call("score", new, "--run", finished, "--out", out)
    assert found.code == 2
    assert out.read_bytes() == before


def test_a_run_does_not_replace_a_pool_in_its_directory(call: Call, pool: Path, tmp_path: Path) -> None:
    # `pool.json` is a name that runs write.
    own = tmp_path / "own"
    own.mkdir()
    named = own / "pool.json"
    named.write_bytes(pool.read_bytes())
    found = call("run", named, "--out", own, "--teacher", "length", "--encoder", "hash")
    assert found.code == 2
    assert named.read_bytes() == pool.read_bytes()
    assert [path.name for path in own.iterdir()] == ["pool.json"]


def test_a_run_does_not_replace_its_own_subset_that_it_reads(finished: Path, pool: Path) -> None:
    target = finished / "subset.jsonl"
    with pytest.raises(UsageError, match="holds no input"):
        check_run_folder(finished, config.resolve({"pool": [str(pool)], "existing": [str(target)]}))
    (finished / "mine.txt").write_text("row-0001")
    check_run_folder(finished, config.resolve({"pool": [str(pool)], "include": str(finished / "mine.txt")}))


def test_tune_does_not_replace_its_test_rows(call: Call, finished: Path, llama_folder: Path, tmp_path: Path) -> None:
    test = tmp_path / "tune.json"
    test.write_text('{"instruction": "add one", "output": "two"}')
    before = test.read_bytes()
    found = call("tune", finished, "--model", llama_folder, "--test", test, "--out", tmp_path)
    assert found.code == 2
    assert test.read_bytes() == before


def test_a_study_does_not_replace_its_pool(tmp_path: Path) -> None:
    rows, file = tmp_path / "alpaca.json", tmp_path / "grid.yaml"
    rows.write_text("[]")
    analysis = {"name": "alpaca", "kind": "sweep", "pool": "p"}
    file.write_text(yaml.safe_dump({"name": "s", "pools": {"p": {"files": [str(rows)]}}, "analyses": [analysis]}))
    with pytest.raises(UsageError, match="is the input"):
        run_study.study(file, tmp_path)
    assert rows.read_text() == "[]"


def test_a_file_inside_a_folder_that_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "part.arrow").write_text("rows")
    with pytest.raises(UsageError, match="is the input"):
        check_replaces_nothing(folder / "part.arrow", [folder])
    check_replaces_nothing(folder / "new.jsonl", [folder])
    check_replaces_nothing(tmp_path / "elsewhere.jsonl", [folder, "hub:org/name", tmp_path / "absent"])


def test_ids_are_never_paths(call: Call, tmp_path: Path) -> None:
    ids = ["../../evil", f"{tmp_path}/evil", "a/../../../evil", ".", "..", "~/evil", "C:\\evil", "con", "a" * 200]
    rows = [{"id": name, "instruction": f"say {name}", "output": f"{at} is said"} for at, name in enumerate(ids)]
    rows += [{"id": str(at), "instruction": f"count to {at}", "output": "done"} for at in range(20)]
    pool = tmp_path / "in" / "pool.jsonl"
    pool.parent.mkdir()
    pool.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "deep" / "er" / "run"
    given = (
        "--teacher",
        "length",
        "--encoder",
        "hash",
        "--labels",
        "60%",
        "--budget",
        25,
        "--test-items",
        3,
        "--quiet",
    )
    assert call("run", pool, "--out", out, *given).code == 0
    assert {ids[0], ids[1]} <= set(nncift.load(out).selected_ids)
    assert call("explain", out, "--id", ids[0], "--quiet").code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "in"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["er"]
    assert [path.name for path in (tmp_path / "deep" / "er").iterdir()] == ["run"]
    assert not list(out.rglob("*evil*"))
