"""Real worlds in little: made in pieces by several processes, resumed, and judged (`benchmarks/real.py`)."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from nncift.core.pairs import UtilityMatrix
from nncift.distributed.shards import Shard
from nncift.errors import DataError, UsageError
from nncift.evaluation.cross_fit import hold_out
from nncift.evaluation.held_out_labels import Recipe
from nncift.labels import LabelBudget
from nncift.labels.vectors import Vectors
from nncift.models.causal_lm import CausalLM
from nncift.models.views import TEXT, Views
from nncift.runs.true_matrix import true_matrix
from nncift.student.candidates import STUDENT
from tests.tolerances import of_cosines, of_directions, of_gradients, of_models

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import calibration
import judging
import pages
import real
import real_world
import target_sets
from real_world import Maker, RealWorld, make

pytestmark = pytest.mark.usefixtures("hastened")
WORDS = (
    "sort list name add sum red blue green cat dog bird sky sea tree house long short first last word number".split()
)
pytest.importorskip("peft")


def write_source(path: Path, rows: int, start: int) -> None:
    lines = []
    for row in range(start, start + rows):
        words = [WORDS[(row * step + step) % len(WORDS)] for step in (1, 2, 3, 5, 7, 11)]
        lines.append(json.dumps({"instruction": " ".join(words[:4]), "output": " ".join(words[3:] * (1 + row % 2))}))
    # One too long, one without a response, one twice.
    lines += [
        json.dumps({"instruction": "red " * 60, "output": "red"}),
        json.dumps({"instruction": "add", "output": " "}),
    ]
    path.write_text("\n".join([*lines, lines[0]]) + "\n", encoding="utf-8")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(real_world, "SOURCES", {"first": "one", "second": "two"})
    monkeypatch.setattr(real_world, "POOLS", (24, 40))
    monkeypatch.setattr(real_world, "PAIRWISE", 20)
    monkeypatch.setattr(real_world, "SHORT", (5, 40))
    monkeypatch.setattr(real_world, "PROJECTION", 512)
    folder = tmp_path / "data"
    folder.mkdir()
    write_source(folder / "one.jsonl", 30, 0)
    write_source(folder / "two.jsonl", 30, 1000)
    return folder


@pytest.fixture
def lm(llama_folder: Path) -> CausalLM:
    return CausalLM.load(llama_folder, device="cpu")


def test_two_processes_and_one_that_was_killed_make_the_same_world(data: Path, lm: CausalLM, tmp_path: Path) -> None:
    one, two = Maker(tmp_path / "one", lm, "hash"), Maker(tmp_path / "two", lm, "hash")
    assert make(one, data)
    assert not make(two, data, shard=Shard(1, 2))
    assert not list((tmp_path / "two").glob("less.npy"))
    # Killed in the middle: some pieces are there, half a one is not.
    lost = sorted((tmp_path / "two" / "pieces").glob("delift-*/*.npy"))[3]
    lost.rename(lost.with_name(lost.name + ".part"))
    assert not make(two, data, shard=Shard(2, 2))
    assert make(two, data)
    for part in real_world.PARTS:
        np.testing.assert_array_equal(np.load(one.folder / f"{part}.npy"), np.load(two.folder / f"{part}.npy"))
    assert not list(two.folder.glob("pieces/*/*"))


def test_the_truths_are_what_the_teachers_say(data: Path, lm: CausalLM, tmp_path: Path) -> None:
    from nncift.teachers.delift import Delift
    from nncift.teachers.less import Less

    make(Maker(tmp_path / "world", lm, "hash"), data)
    real = RealWorld(tmp_path / "world")
    small, large, pairs = real.worlds()
    assert [len(world.matrix.source_ids) for world in (small, large, pairs)] == [24, 40, 20]
    assert small.matrix.source_ids == large.matrix.source_ids[:24]
    np.testing.assert_array_equal(small.matrix.values, large.matrix.values[:24, :24])
    teachers: tuple[Any, ...] = (Less(lm, projection=512, epochs=1, seed=0), Delift(lm))
    # Batches are others here, DELIFT's distances are at most 1, and features of LESS are kept in half precision.
    tolerances = (of_cosines(of_directions(of_gradients(layers=2, width=48)), 512), of_models(layers=2, width=48))
    for number, (world, teacher) in enumerate(zip((large, pairs), teachers, strict=True)):
        rows = real.rows.subset(world.matrix.source_ids)
        expected = true_matrix(teacher, rows, tmp_path / f"truth-{number}")
        order = [expected.source_ids.index(item) for item in world.matrix.source_ids]
        values = expected.values[np.ix_(order, order)]
        np.testing.assert_allclose(world.matrix.values, values, rtol=0, atol=tolerances[number])
        assert np.nanstd(values) > 10 * tolerances[number]


def test_pools_hold_as_many_rows_of_each_source_and_only_short_different_ones(
    data: Path, lm: CausalLM, tmp_path: Path
) -> None:
    make(Maker(tmp_path / "world", lm, "hash"), data, parts=["text"])
    real = RealWorld(tmp_path / "world")
    for ids in (real.rows.ids[:24], real.rows.ids, real.pairwise_ids):
        assert [real_world.source_of(item) for item in ids].count("first") == len(ids) / 2
    assert set(real.pairwise_ids) < set(real.rows.ids[:24])
    assert len({(row.content_hash, real_world.source_of(row.id)) for row in real.rows}) == 40
    assert all(row.response.strip() for row in real.rows)
    assert not list(real.worlds())


def test_another_model_and_missing_files_are_refused(
    data: Path, lm: CausalLM, gpt2_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(Maker(tmp_path / "world", lm, "hash"), data, parts=["text"])
    with pytest.raises(UsageError, match="give another --world"):
        make(Maker(tmp_path / "world", CausalLM.load(gpt2_folder, device="cpu"), "hash"), data, parts=["text"])
    monkeypatch.setattr(real_world, "POOLS", (24, 400))
    with pytest.raises(DataError, match=r"has 30 different rows of 5 to 40 tokens, and 200 are needed"):
        make(Maker(tmp_path / "large", lm, "hash"), data)
    monkeypatch.setattr(real_world, "POOLS", (24, 40))
    (data / "two.jsonl").unlink()
    with pytest.raises(UsageError, match=r"there is no two\.jsonl"):
        make(Maker(tmp_path / "less", lm, "hash"), data)
    with pytest.raises(UsageError, match="make it first"):
        _ = RealWorld(tmp_path / "nothing").about


def test_worlds_are_judged_by_pairs_that_were_not_measured_and_by_what_is_selected(
    data: Path, lm: CausalLM, tmp_path: Path
) -> None:
    make(Maker(tmp_path / "world", lm, "hash"), data)
    world = next(RealWorld(tmp_path / "world").worlds(["less"]))
    assert world.skills(world.matrix) == dict.fromkeys(judging.SKILLS, 1.0)
    way = judging.Way("product", "default", "probe", LabelBudget(0.5, None, "rows"))
    seen = judging.label(world, world.vectors["probe"], way.label_budget, 0)
    known = sum(map(len, seen.labels.values()))
    # Measured rows: a half to train on, three to test, two to validate.
    assert seen.measured == 12 + 3 + 2
    assert known == 17 * 16
    held = hold_out(seen.labels, world.vectors["probe"], Recipe("product", "default", 0), coverage=True)
    made = held.shipped[STUDENT]
    measured = [row for row, item in enumerate(world.matrix.source_ids) if item in items(seen)]
    hidden = np.ones((24, 24), bool)
    hidden[np.ix_(measured, measured)] = False
    np.fill_diagonal(hidden, False)
    truth = world.matrix.values[hidden].astype(float)
    values = judging.hybrid(made, seen).values
    assert not np.array_equal(values[hidden], truth)
    np.testing.assert_array_equal(values[np.ix_(measured, measured)], world.matrix.values[np.ix_(measured, measured)])
    found = judging.agreement(world, made, seen)
    assert found["spearman"] == pytest.approx(spearmanr(truth, values[hidden]).statistic, abs=1e-6)
    mean = seen.labels["train"].value.mean()
    left = ((truth - values[hidden]) ** 2).sum() / ((truth - mean) ** 2).sum()
    assert found["r2"] == pytest.approx(1 - left, abs=1e-4)


def items(seen: judging.Seen) -> set[str]:
    """Return the rows that any label is about."""
    labels = seen.labels["train"]
    return {labels.source_ids[code] for of in seen.labels.values() for code in (*of.target, *of.source)}


def test_plans_ask_for_the_same_number_of_pairs_however_they_are_drawn() -> None:
    random = np.random.default_rng(0)
    ids = tuple(f"row-{number:02d}" for number in range(70))
    values = np.asfortranarray(random.normal(size=(70, 70)).astype(np.float32))
    np.fill_diagonal(values, np.nan)
    text = random.normal(size=(70, 8)).astype(np.float32)
    vectors = Vectors(text, text, Views.of({TEXT: 8}))
    world = judging.World("DELIFT, 70 rows", UtilityMatrix(ids, ids, values), {"text": vectors}, "")
    measured = [
        judging.label(world, vectors, label_budget, seed).measured
        for label_budget in real.label_budgets_of(world)
        for seed in (0, 1)
    ]
    assert measured == pytest.approx([0.2 * 70 * 69] * 6, rel=0.04)


def test_the_page_has_the_real_model_first_and_keeps_what_is_not_measured_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pages, "RESULTS", tmp_path)
    numbers = {"mean": 0.5, "sd": 0.1}
    line = {
        "student": "product",
        "features": "text",
        "plan": "rows",
        "labels": 9,
        "measured": 88,
        "seconds": 1.0,
        **dict.fromkeys((*judging.AGREEMENT, *judging.SKILLS), numbers),
    }
    line |= {key: {"mean": 0.25, "sd": 0.0} for key in judging.SKILLS}
    line |= {"headline": {key: {"bias": 0.02, "size": 0.05, "held": 0.9} for key in judging.SKILLS}}
    line |= {"gated": dict.fromkeys(judging.SKILLS, numbers), "worst against free": dict.fromkeys(judging.SKILLS, -0.2)}
    results = {"machine": "a machine", "seeds": 5, "worlds": {"one": {"about": "toy", "lines": [line]}}}
    rows = {"parameters": 7, "low": 20, "high": 128, "projection": 64}
    pages.publish({"toys": results})
    pages.publish(
        {"real": {**results, "model": "m", "rows": rows, "command": "python benchmarks/real.py judge --write"}}
    )
    page = (tmp_path / "fidelity.md").read_text()
    assert page.index("## A real model") < page.index("### one") < page.index("## Toy models") < page.index("### One")
    row = "| product | text | rows | 88 | 0.50 ± 0.10 | 0.50 ± 0.10 | 0.25 / 0.25 / 0.25 / 0.25 |"
    assert row in page


def clustered(rows: int, sources: tuple[str, ...]) -> judging.World:
    """Return a world of rows that help their own source, with vectors that show the source."""
    random = np.random.default_rng(0)
    names = [sources[row % len(sources)] for row in range(rows)]
    ids = tuple(f"{name}-{row:03d}" for row, name in enumerate(names))
    same = np.array(names)[:, None] == np.array(names)[None, :]
    values = np.asfortranarray((0.5 * same + 0.1 * random.normal(size=(rows, rows))).astype(np.float32))
    np.fill_diagonal(values, np.nan)
    middle = {name: random.normal(size=16) for name in sources}
    vectors = np.array([middle[name] + 0.5 * random.normal(size=16) for name in names], np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    both = {name: Vectors(vectors, vectors, Views.of({TEXT: 16})) for name in ("text", "probe")}
    return judging.World("clusters", UtilityMatrix(ids, ids, values), both, "clusters")


def test_rows_of_a_target_sets_source_are_found() -> None:
    world = clustered(330, ("gsm8k", "t0", "alpaca"))
    assert target_sets.can_be_drawn(world)
    assert not target_sets.can_be_drawn(clustered(300, ("t0", "alpaca")))
    task = target_sets.Task.drawn(world, 1)
    assert sum(item.startswith("gsm8k-") for item in task.pool) == target_sets.OWN
    assert not set(task.pool) & set(task.targets)
    assert all(item.startswith("gsm8k-") for item in task.targets)
    found = task.by_candidates("text", 1)
    assert found["run"] == found["student"] == task.hits(task.values) == target_sets.OWN


def test_calibration_compares_what_runs_state_with_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "SETTINGS", (calibration.Setting(60, 0.5, "text"),))
    world = clustered(90, ("gsm8k", "t0"))
    (line,) = calibration.calibrated([world], 2)
    assert (line["rows"], len(line["runs"])) == (60, 2)
    pools = [set(calibration.pool_of(world, 60, seed).matrix.source_ids) for seed in (0, 0, 1)]
    assert pools[0] == pools[1] != pools[2]
    one = line["runs"][0]["skill at 10%"]
    assert one["true"] in (one["student"], one["best free"])
    for run, (stated, true) in zip(line["runs"], ((0.6, 0.5), (0.5, 0.7)), strict=True):
        for key in run:
            run[key] = {
                **one,
                "stated": stated,
                "true": true,
                "error": 0.1,
                "free": False,
                "student": true,
                "best free": 0.6,
            }
    *_, row, total, _, verdict, choices, _ = calibration.calibration_table([line])
    assert "| -0.05 / -0.05 / -0.05 / -0.05 | 0.15 / 0.15 / 0.15 / 0.15 | 50 % / 50 % / 50 % / 50 % |" in row
    assert total.startswith("| all |")
    assert "holds at 0 of 4 budgets" in verdict
    assert "in 0 of 8 selections" in choices
    assert "in 4 of 8." in choices
