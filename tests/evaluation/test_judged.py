"""The full teacher judges selections of every objective, each by what the objective is about."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import nncift
from nncift import evaluate
from nncift.core.pairs import UtilityMatrix
from nncift.data import Examples, read
from nncift.errors import UsageError
from nncift.runs.finished import FinishedRun
from nncift.runs.select_again import reselect
from nncift.selection import Given, pose
from nncift.selection.objectives import Reference
from nncift.teachers.delift_se import Similarity
from tests.hastened import hasten

Write = Callable[..., Path]
QUICK: dict[str, Any] = {
    "encoder": "hash",
    "labels": "60%",
    "budget": 8,
    "test_items": 4,
    "validation_items": 4,
    "gate": False,
    "device": "cpu",
}


@pytest.fixture(autouse=True, scope="module")
def hastened() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        hasten(patch)
        yield


def features(rows: Examples) -> npt.NDArray[np.float32]:
    teacher = Similarity("hash")
    teacher.prepare(rows)
    return teacher.measure(rows.ids).values


def cosines(targets: Examples, sources: Examples, name: str = "", *, masked: bool = False) -> UtilityMatrix:
    values = np.asfortranarray(features(targets) @ features(sources).T)
    if masked:
        np.fill_diagonal(values, np.nan)
    return UtilityMatrix(tuple(f"{name}{item}" for item in targets.ids), sources.ids, values)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, write_rows: Callable[..., Path]) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("judged")
    return {
        "pool": write_rows(folder / "pool.jsonl", 40),
        "target": write_rows(folder / "target.jsonl", 12, 500),
        "existing": write_rows(folder / "existing.jsonl", 5, 900),
    }


@pytest.fixture(scope="module")
def write_rows() -> Callable[..., Path]:
    words = "red green blue seven nine river stone bread light night paper glass".split()

    def write(path: Path, count: int, first: int = 0) -> Path:
        lines = []
        for number in range(first, first + count):
            drawn = [words[(number * step + step) % len(words)] for step in (1, 3, 5, 7)]
            row = {
                "id": f"r{number:03d}",
                "prompt": f"{' '.join(drawn[:2])} {number}?",
                "response": " ".join(drawn[1:]),
            }
            lines.append(json.dumps(row))
        path.write_text("\n".join(lines) + "\n", "utf-8")
        return path

    return write


@pytest.fixture(scope="module")
def aimed(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("aimed") / "run"
    nncift.run(files["pool"], target=files["target"], teacher=Similarity("hash"), out=out, **QUICK)
    return out


def expected(files: dict[str, Path], objective: str) -> Any:
    """Return the objective over the true matrix, from cosines computed here."""
    pool, target = read(files["pool"]), read(files["target"])
    if objective == "flmi":
        given = Given(Reference.of(cosines(pool, target)))
        return pose(cosines(pool, pool, masked=True), "flmi", given)
    return pose(cosines(target, pool, "target:"), objective)


@pytest.mark.parametrize("objective", ["fl2mi", "rr", "max", "topk", "fl", "flmi"])
def test_every_objective_with_a_target_set_is_judged_by_its_own_value(
    aimed: Path, files: dict[str, Path], objective: str
) -> None:
    reselect(aimed, {"objective": objective})
    record = evaluate(aimed, full_teacher=True, device="cpu")["full_teacher"]
    run, problem = FinishedRun(aimed), expected(files, objective)
    assert record["objective"] == objective
    assert record["value"]["this run"] == pytest.approx(problem.value(run.chosen), rel=1e-5)
    best = problem.choose(8, run.settings.seed)
    assert record["value"]["full teacher"] == pytest.approx(best.value, rel=1e-5)
    assert record["skill"]["full teacher"] == 1
    # The teacher is the cosine of embeddings: what these select alone is what the full teacher selects.
    assert record["skill"]["embeddings"] == pytest.approx(1, abs=0.05)
    assert [step["rows"] for step in record["skill_by_budget"]] == [1, 2, 4, 12]
    assert all(step["embeddings_skill"] == pytest.approx(1, abs=0.05) for step in record["skill_by_budget"])


def test_rows_that_were_trained_on_already_are_asked_about_too(files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    nncift.run(files["pool"], existing=files["existing"], teacher=Similarity("hash"), out=out, **QUICK)
    pool, existing = read(files["pool"]), read(files["existing"])
    reference = Reference.of(cosines(pool, existing))
    for objective in ("flcg", "rr", "max"):
        reselect(out, {"objective": objective})
        record = evaluate(out, full_teacher=True, device="cpu")["full_teacher"]
        problem = pose(cosines(pool, pool, masked=True), objective, Given(reference))
        assert record["value"]["this run"] == pytest.approx(problem.value(FinishedRun(out).chosen), rel=1e-5, abs=1e-6)
        assert record["value"]["full teacher"] == pytest.approx(problem.choose(8, 0).value, rel=1e-5, abs=1e-6)


def test_rows_that_no_file_holds_cannot_be_asked_about(files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    nncift.run(files["pool"], existing=read(files["existing"]), teacher=Similarity("hash"), out=out, **QUICK)
    with pytest.raises(UsageError, match="looks at rows that were trained on already"):
        evaluate(out, full_teacher=True, device="cpu")
    reselect(out, {"objective": "fl"})
    assert evaluate(out, full_teacher=True, device="cpu")["full_teacher"]["objective"] == "fl"


def test_rules_bind_everything_that_is_compared(files: dict[str, Path], tmp_path: Path) -> None:
    out, names = tmp_path / "run", tmp_path / "out.txt"
    pool = read(files["pool"])
    names.write_text("\n".join(pool.ids[:20]) + "\n")
    nncift.run(files["pool"], teacher=Similarity("hash"), out=out, exclude=str(names), **QUICK)
    record = evaluate(out, full_teacher=True, device="cpu")["full_teacher"]
    # Not what 40 rows to choose from would give.
    problem = pose(cosines(pool, pool, masked=True), "fl")
    assert record["value"]["full teacher"] < problem.choose(8).value
    assert record["value"]["this run"] <= record["value"]["full teacher"] * 1.001


@pytest.mark.parametrize("objective", ["fl", "rr", "max"])
def test_a_selection_on_neighbours_is_judged_by_the_whole_truth(
    aimed: Path, files: dict[str, Path], objective: str
) -> None:
    record = reselect(aimed, {"objective": objective, "neighbours": 6}).to_json()["selection"]
    assert record["neighbours"] == {"each": 6, "recall": 1.0}
    assert set(record["controls"]) == {"random", "stratified", "longest", "embedding"}
    judged = evaluate(aimed, full_teacher=True, device="cpu")["full_teacher"]
    problem = expected(files, objective)
    assert judged["value"]["this run"] == pytest.approx(problem.value(FinishedRun(aimed).chosen), rel=1e-5)
    assert judged["skill_by_budget"][0]["skill"] is not None
    reselect(aimed, {"objective": objective, "neighbours": None})
