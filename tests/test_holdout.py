"""Rows that a run sets aside: which they are, that nothing sees them, and that they stay so."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import nncift
from nncift.core.amounts import HoldoutAmount
from nncift.data.layout import Layout
from nncift.errors import InfeasibleError, UsageError
from nncift.stages.holdout import read_holdout

Call = Callable[..., Any]
pytestmark = pytest.mark.usefixtures("hastened")
LENGTH: dict[str, Any] = {
    "teacher": "length",
    "encoder": "hash",
    "labels": 0.5,
    "budget": 5,
    "test_items": 5,
    "validation_items": 4,
}


def row(index: int, **more: Any) -> dict[str, Any]:
    return {
        "id": f"row-{index}",
        "prompt": f"question {index}",
        "completion": f"answer {index} " + "word " * index,
        **more,
    }


def held(run: Path) -> list[str]:
    return [json.loads(line)["id"] for line in (run / "holdout.jsonl").read_text().splitlines()]


def pool_ids(run: Path) -> set[str]:
    return set(pq.read_table(run / "selection.parquet")["id"].to_pylist())


def test_amounts() -> None:
    assert HoldoutAmount.parse(0.1).rows(45) == 5
    assert HoldoutAmount.parse("7").rows(45) == 7
    for given in ("0%", "100%", "150%"):
        with pytest.raises(InfeasibleError):
            HoldoutAmount.parse(given)
    for given in ("45", "1%", "0"):
        with pytest.raises(InfeasibleError, match="one left"):
            HoldoutAmount.parse(given).rows(45)
    for given in ("2Mtok", "some", "-3"):
        with pytest.raises((UsageError, InfeasibleError)):
            HoldoutAmount.parse(given).rows(45)


def test_rows_are_set_aside_in_proportion_over_the_sources(tmp_path: Path) -> None:
    for name, first, count in (("a", 0, 60), ("b", 60, 20)):
        rows = [json.dumps(row(index)) + "\n" for index in range(first, first + count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))
    run = nncift.run([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], holdout="10%", out=tmp_path / "run", **LENGTH)
    sources = [record["source"] for record in json.loads((run.path / "holdout.json").read_text())]
    assert (sources.count("a"), sources.count("b")) == (6, 2)
    assert not pool_ids(run.path) & set(held(run.path))
    assert (run.summary["pool"], run.summary["holdout"]) == (72, 8)
    assert any("8 of 80 rows are set aside" in text for text in run.warnings)


def test_nothing_of_the_run_names_a_row_that_is_set_aside(tmp_path: Path) -> None:
    rows = [{**row(index), "prompt": f"zebra{index}x question"} for index in range(40)]
    run = nncift.run(rows, holdout=6, out=tmp_path / "run", **LENGTH)
    aside = {record["id"] for record in json.loads((run.path / "holdout.json").read_text())}
    assert len(aside) == 6
    marks = [f"zebra{name.removeprefix('row-')}x".encode() for name in aside] + [f'"{name}"'.encode() for name in aside]
    for file in run.path.rglob("*"):
        if file.is_file() and file.name not in ("holdout.jsonl", "holdout.json"):
            text = file.read_bytes()
            assert not [mark for mark in marks if mark in text], file
    assert not set(pq.read_table(run.path / "rows.parquet")["id"].to_pylist()) & aside


def test_copies_of_a_row_are_set_aside_together(tmp_path: Path) -> None:
    rows = [{"prompt": f"question {index // 2}", "completion": f"answer {index // 2}"} for index in range(60)]
    run = nncift.run(rows, holdout="10%", out=tmp_path / "run", **LENGTH)
    texts = [json.loads(line)["prompt"] for line in (run.path / "holdout.jsonl").read_text().splitlines()]
    assert len(texts) == 6
    assert all(texts.count(text) == 2 for text in texts)


def texts_of(run: Path) -> tuple[list[str], list[str]]:
    """Return the prompts of the rows that were set aside, and of those in the pool."""
    aside = [json.loads(line)["prompt"] for line in (run / "holdout.jsonl").read_text().splitlines()]
    return aside, [json.loads(raw)["prompt"] for raw in pq.read_table(run / "rows.parquet")["raw"].to_pylist()]


def copied(index: int, end: str = "") -> dict[str, str]:
    """Return a row whose words are its own, but for the last."""
    return {"prompt": " ".join(f"w{index}x{n}" for n in range(20)) + end, "completion": f"said{index}"}


def test_near_copies_of_a_row_are_set_aside_together(tmp_path: Path) -> None:
    rows = [copied(index // 2, "" if index % 2 else " More!") for index in range(60)]
    run = nncift.run(rows, holdout="10%", out=tmp_path / "run", **LENGTH)
    aside, pool = texts_of(run.path)
    assert {text.split()[0] for text in aside}.isdisjoint(text.split()[0] for text in pool)
    assert len(aside) >= 6
    assert any("of them are near copies of others that are" in text for text in run.warnings)


def test_copies_in_other_letters_are_near_copies(tmp_path: Path) -> None:
    rows = [{"prompt": f"Question {index // 2}", "completion": "YES." if index % 2 else "yes"} for index in range(60)]
    aside, pool = texts_of(nncift.run(rows, holdout="10%", out=tmp_path / "run", **LENGTH).path)
    assert set(aside).isdisjoint(pool)


def test_near_copies_of_what_the_run_has_seen_are_not_set_aside(tmp_path: Path) -> None:
    nncift.run([copied(index) for index in range(40)], holdout="10%", out=tmp_path / "run", **LENGTH)
    more = [copied(index) for index in range(40)] + [copied(index, " More!") for index in range(60)]
    run = nncift.run(more, out=tmp_path / "run")
    aside, pool = texts_of(run.path)
    assert {text.split()[0] for text in aside}.isdisjoint(text.split()[0] for text in pool)
    assert len(aside) >= 10


def test_near_copies_of_a_target_set_are_not_set_aside(tmp_path: Path) -> None:
    target = [copied(index, " More!") for index in range(36)]
    given = {**LENGTH, "teacher": "delift-se"}
    run = nncift.run([copied(index) for index in range(40)], target=target, holdout=3, out=tmp_path / "run", **given)
    assert {text.split()[0] for text in texts_of(run.path)[0]} < {f"w{index}x0" for index in range(36, 40)}


def test_a_crowd_of_near_copies_does_not_take_the_pool(tmp_path: Path) -> None:
    rows = [copied(0, f" end{index}") for index in range(30)] + [copied(index) for index in range(1, 31)]
    run = nncift.run(rows, holdout="10%", out=tmp_path / "run", **LENGTH)
    aside, pool = texts_of(run.path)
    assert 0 < len(aside) <= 12
    assert sum(text.startswith("w0x0") for text in pool) == 30


def test_the_same_rows_are_set_aside_by_every_process_and_others_by_another_seed(tmp_path: Path) -> None:
    rows = [row(index) for index in range(40)]
    one, two, other = (
        held(nncift.run(rows, holdout=6, seed=seed, out=tmp_path / name, **LENGTH).path)
        for name, seed in (("one", 0), ("two", 0), ("other", 1))
    )
    assert one == two != other


def test_a_run_that_is_extended_keeps_what_it_has_set_aside_and_never_sets_aside_what_it_has_seen(
    tmp_path: Path,
) -> None:
    rows = [row(index) for index in range(90)]
    first = nncift.run(rows[:40], holdout="10%", out=tmp_path / "run", **LENGTH)
    before, seen = held(first.path), pool_ids(first.path)
    again = nncift.run(rows[:40], out=tmp_path / "run")
    assert (held(again.path), pool_ids(again.path)) == (before, seen)
    more = nncift.run(rows, out=tmp_path / "run")
    after = held(more.path)
    assert len(after) == 9
    assert set(before) < set(after)
    assert not set(after) & seen
    assert seen < pool_ids(more.path)


def test_a_run_without_rows_set_aside_cannot_set_any_aside_later(tmp_path: Path) -> None:
    rows = [row(index) for index in range(40)]
    nncift.run(rows, out=tmp_path / "run", **LENGTH)
    with pytest.raises((UsageError, InfeasibleError), match="holdout"):
        nncift.run(rows, out=tmp_path / "run", holdout="10%")


def test_rows_of_a_target_set_are_never_set_aside(tmp_path: Path) -> None:
    rows = [row(index) for index in range(40)]
    given = {**LENGTH, "teacher": "delift-se"}
    run = nncift.run(rows, target=rows[:36], holdout=3, out=tmp_path / "run", **given)
    assert set(held(run.path)) < {f"row-{index}" for index in range(36, 40)}


def test_test_rows_are_left_out_before_rows_are_set_aside(tmp_path: Path) -> None:
    rows = [
        {"id": f"row-{k}", "prompt": " ".join(f"w{k}x{n}" for n in range(9)), "completion": f"said{k} " * (k + 1)}
        for k in range(60)
    ]
    tests = tmp_path / "tests.jsonl"
    tests.write_text("".join(json.dumps(one) + "\n" for one in rows[:20]))
    run = nncift.run(rows, against=str(tests), decontaminate=True, holdout="25%", out=tmp_path / "run", **LENGTH)
    assert not set(held(run.path)) & {one["id"] for one in rows[:20]}
    assert (run.summary["contaminated"], run.summary["holdout"], run.summary["pool"]) == (20, 10, 30)


def test_a_limit_counts_all_rows_and_the_holdout_is_of_them(tmp_path: Path) -> None:
    run = nncift.run([row(index) for index in range(90)], limit=40, holdout="10%", out=tmp_path / "run", **LENGTH)
    assert (run.summary["holdout"], run.summary["pool"]) == (4, 36)


def test_rows_that_are_set_aside_are_read_as_the_run_read_them(tmp_path: Path) -> None:
    rows = [{"q": f"question {index}", "a": f"answer {index}"} for index in range(40)]
    columns = {"prompt": "q", "completion": "a"}
    run = nncift.run(rows, map=columns, holdout=5, out=tmp_path / "run", **LENGTH)
    found = read_holdout(run.path, Layout.from_settings("auto", columns))
    assert {one.prompt.replace("question", "answer") for one in found} == {one.response for one in found}
    assert [one.id for one in found] == [one["id"] for one in json.loads((run.path / "holdout.json").read_text())]
    assert len({one.content_hash for one in found}) == 5


def test_a_damaged_holdout_is_named(tmp_path: Path) -> None:
    run = nncift.run([row(index) for index in range(40)], holdout=5, out=tmp_path / "run", **LENGTH)
    (run.path / "holdout.jsonl").write_text("{}\n")
    with pytest.raises(nncift.errors.DataError, match=r"holdout.jsonl"):
        read_holdout(run.path, Layout(None))


def test_proof_without_rows_or_model_is_refused_first(tmp_path: Path) -> None:
    rows = [row(index) for index in range(40)]
    with pytest.raises(UsageError, match="--holdout 10%"):
        nncift.run(rows, prove=True, out=tmp_path / "a", **LENGTH)
    with pytest.raises(UsageError, match="--model"):
        nncift.run(rows, prove=True, holdout=5, out=tmp_path / "b", **LENGTH)
    assert not (tmp_path / "a").exists()
