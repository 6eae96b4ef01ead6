"""Studies: what is written is checked before it runs, what is finished is not computed again."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nncift.cli.study import PRESETS
from nncift.core.pairs import LabelledPairs
from nncift.data import read
from nncift.errors import DataError, UsageError
from nncift.runs.report.report_tables import Spread, as_csv, markdown
from nncift.studies import grid
from nncift.studies import run_study as run
from nncift.studies.analyses import CONFIGURATIONS, learned
from nncift.studies.grid import Pool, load
from nncift.studies.workspace import Workspace, prepare
from tests.hastened import hasten

SMALL: dict[str, Any] = {
    "name": "small",
    "seeds": 2,
    "pools": {"world": {"world": {"rows": 60, "test_rows": 12}}},
    "analyses": [
        {
            "name": "labels",
            "kind": "sweep",
            "pool": "world",
            "run": {"teacher": "delift-se", "encoder": "hash", "test_items": 6, "validation_items": 6},
            "over": {
                "labels": ["40%", "60%"],
                "learns": [{"as": "lines", "student": "towers"}],
            },
            "budgets": [0.1, 0.3],
            "truth": True,
        },
        {
            "name": "sizes",
            "kind": "layers",
            "pool": "world",
            "run": {
                "teacher": "delift-se",
                "encoder": "hash",
                "labels": "50%",
                "test_items": 6,
                "validation_items": 6,
            },
            "options": {"widest": 5},
            "seeds": 1,
        },
    ],
}


def written(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "study.yaml"
    # As JSON, which is YAML: a dump of YAML would write what is shared as an alias.
    path.write_text(json.dumps({**SMALL, **changes}))
    return path


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        hasten(patch)
        return folder / "out", run.study(written(folder), folder / "out")


def test_every_combination_and_seed_is_a_record(done: tuple[Path, dict[str, Any]]) -> None:
    out, result = done
    records = json.loads((out / "labels.json").read_text())["records"]
    assert [(record["name"], record["seed"]) for record in records[:3]] == [
        ("labels 40%, lines", 0),
        ("labels 40%, lines", 1),
        ("labels 60%, lines", 0),
    ]
    assert len(records) == 4
    assert result["analyses"]["labels"]["records"] == 4
    # The cosine of the embeddings is what this teacher says, so that its student must find all of it.
    last = [record for record in records if record["name"] == "labels 60%, lines"]
    assert all(record["fidelity"]["r2"] > 0.99 for record in last)
    assert all(step["skill"] > 0.95 for record in last for step in record["skill"])
    # Embeddings alone see a row serve itself, which the truth does not.
    assert all(0.5 < step["embeddings_skill"] <= 1 for record in last for step in record["skill"])


def test_tables_and_figures_come_from_the_records(done: tuple[Path, dict[str, Any]]) -> None:
    out, result = done
    for analysis in result["analyses"].values():
        assert all((out / name).stat().st_size for name in analysis["files"])
    page = (out / "labels.md").read_text()
    assert "| labels 60%, lines |" in page
    assert "![labels](labels.svg)" in page
    with (out / "labels.csv").open() as stream:
        lines = list(csv.DictReader(stream))
    assert len(lines) == 4
    assert (
        float(lines[0]["skill.0.1.skill"])
        == json.loads((out / "labels.json").read_text())["records"][0]["skill"][0]["skill"]
    )


def test_what_is_finished_is_not_computed_again(
    done: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out, _ = done
    before = (out / "labels.json").read_bytes()

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(Workspace, "run", fail)
    run.study(written(tmp_path), out, only=["labels"])
    assert (out / "labels.json").read_bytes() == before
    # A cell that is gone is made again, and only that.
    next((out / "labels" / "cells").iterdir()).unlink()
    with pytest.raises(AssertionError, match="computed again"):
        run.study(written(tmp_path), out, only=["labels"])


def test_runs_with_the_same_settings_are_shared(done: tuple[Path, dict[str, Any]]) -> None:
    out, _ = done
    # Four of the sweep and one of the networks; one truth for all, since cosines follow no seed.
    assert len(list((out / "runs").iterdir())) == 5
    assert len(list((out / "truth").iterdir())) == 1


def test_networks_that_are_too_wide_here_are_named(done: tuple[Path, dict[str, Any]]) -> None:
    out, _ = done
    records = json.loads((out / "sizes.json").read_text())["records"]
    assert len(records) == len(CONFIGURATIONS) == 46
    assert [record["shape"] for record in records if not record.get("left_out")] == [
        [5] * depth for depth in range(1, 6)
    ]
    assert "Not trained here, wider than this study's limit (41 of 46): 1 x 10," in (out / "sizes.md").read_text()


def test_a_network_of_layers_learns_and_has_the_parameters_of_its_shape() -> None:
    random = np.random.default_rng(0)
    vectors = random.normal(size=(60, 4)).astype(np.float32)
    ids = tuple(f"r{i}" for i in range(60))
    t, s = (random.integers(60, size=6000).astype(np.int32) for _ in range(2))
    value = (vectors[t, 0] - vectors[s, 1]).astype(np.float32)
    pairs = LabelledPairs(ids, ids, t, s, value)
    train, test = pairs.take(np.arange(5000)), pairs.take(np.arange(5000, 6000))
    guess, parameters = learned((50, 50), train, test, vectors, vectors, seed=1)
    assert parameters == 8 * 50 + 50 + 50 * 50 + 50 + 50 + 1
    assert np.corrcoef(guess, test.value)[0, 1] > 0.95
    again, _ = learned((50, 50), train, test, vectors, vectors, seed=1)
    assert np.array_equal(guess, again)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"analyses": [{**SMALL["analyses"][0], "pool": "other"}]}, "a pool 'other'"),
        ({"analyses": [{**SMALL["analyses"][0], "over": {"lables": [1]}}]}, "did you mean 'labels'"),
        ({"analyses": [{**SMALL["analyses"][0], "over": {"labels": ["many"]}}]}, "labels"),
        ({"analyses": [{**SMALL["analyses"][0], "run": {"seed": 3}}]}, "sets 'seed'"),
        ({"analyses": [SMALL["analyses"][0], SMALL["analyses"][0]]}, "two analyses"),
        ({"analyses": [{"kind": "sweep", "pool": "world"}]}, "Field required"),
        ({"analyses": [{**SMALL["analyses"][0], "kind": "magic"}]}, "kind"),
        ({"pools": {"world": {}}}, "a world or files"),
        ({"seeds": 0}, "seeds"),
    ],
)
def test_a_study_is_checked_before_anything_runs(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        load(written(tmp_path, **change), {})


@pytest.mark.parametrize("text", ["a: [", "- list", "name: x\n"])
def test_what_is_no_study_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=r"study\.yaml"):
        load(path, {})


def test_names_stand_for_what_is_given_and_what_is_not_given_is_left_out(tmp_path: Path) -> None:
    pools = {**SMALL["pools"], "own": {"files": ["$data..."], "model": "$model", "small_model": "$small"}}
    analyses = [*SMALL["analyses"], {"name": "own", "kind": "sweep", "pool": "own"}]
    path = written(tmp_path, pools=pools, analyses=analyses)
    alone = load(path, {})
    assert alone.left_out == {"own": "not run: give --set data=..."}
    assert [analysis.name for analysis in alone.grid.analyses] == ["labels", "sizes"]
    whole = load(path, {"data": ["a.jsonl", "b.jsonl"], "model": ["m"]})
    assert whole.grid.pools["own"] == Pool(files=("a.jsonl", "b.jsonl"), model="m")
    with pytest.raises(UsageError, match=r"has no \$dta"):
        load(path, {"dta": ["a"]})
    with pytest.raises(UsageError, match="--only own: not run: give --set data"):
        run.study(path, tmp_path / "out", only=["own"])


def test_held_out_rows_are_in_no_pool(tmp_path: Path) -> None:
    for name in ("one", "two"):
        rows = [{"prompt": f"question {name} {i}", "completion": f"answer {i}"} for i in range(15)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pool = Pool(files=(str(tmp_path / "one.jsonl"), str(tmp_path / "two.jsonl")), hold_out=6)
    ready = prepare("own", pool, tmp_path / "own")
    assert [Path(file).name for file in ready.files] == ["one.jsonl", "two.jsonl"]
    assert ready.test is not None
    kept, held = read(*ready.files), read(ready.test)
    assert (len(kept), len(held)) == (24, 6)
    assert not {row.content_hash for row in kept} & {row.content_hash for row in held}
    before = Path(ready.test).read_bytes()
    assert Path(str(prepare("own", pool, tmp_path / "again").test)).read_bytes() == before
    with pytest.raises(UsageError, match="holds out 30 rows, and there are 30"):
        prepare("own", pool.model_copy(update={"hold_out": 30}), tmp_path / "none")


def test_spreads_and_tables() -> None:
    assert Spread.of([1.0, None, 3.0]) == Spread(2.0, 2**0.5, 2)
    assert Spread.of([None]) is None
    assert Spread(0.5, None, 1).text() == "0.50"
    text = markdown([["name", "value"], ["a|b", Spread(1.0, 0.25, 3)], ["c", None]])
    assert text.splitlines()[2:] == ["| a\\|b | 1.00 ± 0.25 |", "| c | - |"]
    lines = as_csv([{"a": {"b": 1}, "c": [{"budget": 0.1, "x": 2}]}, {"d": [1, 2]}]).splitlines()
    assert lines == ["a.b,c.0.1.x,d", "1,2,", ",,1 2"]


def test_the_command_names_every_preset() -> None:
    assert set(PRESETS) == {path.stem for path in grid.PRESETS.glob("*.yaml")}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_studies(name: str) -> None:
    path = run.preset(name)
    result = run.plan(load(path, {}))
    assert result["analyses"] or result["left_out"]
    with pytest.raises(UsageError, match="there are laptop, paper"):
        run.preset("other")
