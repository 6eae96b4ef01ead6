"""Test rows in a pool: refused with their names, or left out and counted."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import nncift
from nncift.config import resolve
from nncift.data import Examples, rows_from
from nncift.errors import DataError, QualityError, UsageError
from nncift.models.encoders import HashEncoder
from nncift.pipeline import run
from nncift.stages.decontaminate import screened
from nncift.stages.inspection import inspect

pytestmark = pytest.mark.usefixtures("hastened")
POOL = [{"prompt": f"What is the answer to question number {k}?", "completion": f"It is {k}{k}."} for k in range(6)]
TESTS = [{"prompt": "what is the ANSWER to question number 3", "completion": "It is 33"}]


def screen(pool: list[Any], tests: list[Any] | None, **settings: Any) -> Examples:
    against = None if tests is None else rows_from(tests)
    return screened(resolve({"encoder": "hash", **settings}), rows_from(pool), against, None)


def test_a_pool_with_test_rows_is_refused_with_their_names() -> None:
    with pytest.raises(
        QualityError, match=r"test rows are in 1 of 6 rows \(1 exact\): .* of rows \(line 4\)"
    ) as caught:
        screen(POOL, TESTS)
    assert caught.value.exit_code == 5
    assert caught.value.about is not None
    (hit,) = caught.value.about["contamination"]["hits"]
    assert (hit["row"]["text"], hit["test"]["line"]) == ("What is the answer to question number 3?\n\nIt is 33.", 1)


def test_such_rows_are_left_out_where_that_is_asked_for() -> None:
    found = screen(POOL, TESTS, decontaminate=True)
    assert [row.line for row in found] == [1, 2, 3, 5, 6]
    (rejection,) = found.rejected
    assert (rejection.source, rejection.line, rejection.kind) == ("rows", 4, "in the test rows")
    assert "exact (1.00)" in rejection.reason
    assert "1 of 6 rows are left out, since test rows are in them (1 exact)." in found.notes


def test_a_pool_without_test_rows_goes_through_and_says_so() -> None:
    found = screen(POOL, [{"prompt": "Entirely different words", "completion": "indeed"}])
    assert len(found) == 6
    assert found.notes == ("No row of the pool has any of 1 test rows in it.",)


def test_meaning_is_compared_by_the_encoder_of_the_run() -> None:
    # The same words in another order: no three of them in a row are shared.
    pool = [{"prompt": "alpha beta gamma", "completion": "delta"}, *POOL]
    tests = [{"prompt": "delta gamma beta", "completion": "alpha"}]
    with pytest.raises(QualityError, match="1 similar"):
        screened(resolve({}), rows_from(pool), rows_from(tests), HashEncoder())
    found = screen(pool, tests, encoder="lm")
    assert len(found) == 7
    assert any("by meaning were not looked for" in note for note in found.notes)


def test_the_pool_as_its_own_test_rows_leaves_nothing() -> None:
    with pytest.raises(DataError, match="is --against the pool itself"):
        screen(POOL, POOL, decontaminate=True)


def test_leaving_out_without_test_rows_is_a_mistake() -> None:
    assert len(screen(POOL, None)) == 6
    with pytest.raises(UsageError, match="--decontaminate was given without --against"):
        screen(POOL, None, decontaminate=True)


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_inspect_tells_of_test_rows_with_columns_of_their_own(tmp_path: Path) -> None:
    pool = write(tmp_path / "pool.jsonl", POOL)
    tests = write(tmp_path / "tests.jsonl", [{"question": row["prompt"], "answer": row["completion"]} for row in TESTS])
    columns = {"tests.jsonl:prompt": "question", "tests.jsonl:completion": "answer"}
    found = inspect(pool, map=columns, against=[tests]).to_json()["contamination"]
    assert (found["rows"], found["tests"], found["contaminated"]) == (6, 1, 1)
    assert found["by_kind"] == {"exact": 1, "near_copy": 0, "overlap": 0, "similar": 0}
    assert "contamination" not in inspect(pool).to_json()
    with pytest.raises(UsageError, match="--encoder was given without --against"):
        inspect(pool, encoder="hash")


def test_a_run_leaves_such_rows_out_and_counts_them(write_pool: Callable[..., Path], tmp_path: Path) -> None:
    pool, tests = write_pool(60), tmp_path / "tests.jsonl"
    tests.write_text("\n".join(pool.read_text().split("\n")[7:9]) + "\n")
    settings: dict[str, Any] = {"teacher": "length", "encoder": "hash", "labels": "100%", "against": str(tests)}
    with pytest.raises(QualityError, match=r"test rows are in \d+ of 60 rows"):
        run(pool, out=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()
    made = run(pool, out=tmp_path / "run", decontaminate=True, **settings)
    left = [json.loads(line) for line in (tmp_path / "run" / "rejected.jsonl").read_text().splitlines()]
    assert {8, 9} <= {line["line"] for line in left}
    assert made.summary["contaminated"] == made.summary["rejected"] == len(left) == 60 - made.summary["pool"]
    assert any("are left out, since test rows are in them" in warning for warning in made.warnings)
    assert "are left out, since test rows are in them" in (tmp_path / "run" / "report.html").read_text()


def test_test_rows_may_come_from_python_and_are_looked_for_with_progress(tmp_path: Path) -> None:
    rows = [
        {"id": f"r{k}", "prompt": f"w{k}a w{k}b w{k}c w{k}d w{k}e", "completion": f"said{k} " * (k + 1)}
        for k in range(40)
    ]
    shown: list[tuple[str, int]] = []

    @contextmanager
    def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
        shown.append((what, total))
        yield lambda steps: None

    given: dict[str, Any] = {
        "teacher": "length",
        "encoder": "hash",
        "labels": 0.5,
        "test_items": 5,
        "validation_items": 4,
    }
    with pytest.raises(QualityError, match="test rows are in 2 of 40 rows"):
        nncift.run(rows, against=rows[5:7], out=tmp_path / "run", **given)
    found = nncift.run(
        iter(rows), against=rows[5:7], decontaminate=True, out=tmp_path / "run", progress=progress, **given
    )
    assert (found.summary["pool"], found.summary["contaminated"]) == (38, 2)
    assert ("looking for test rows", 40) in shown
