"""Several inputs to one collection: source names, ids, the sample of `limit`, strict reading, notes."""

import copy
import json
import pickle
import tracemalloc
from collections import Counter
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nncift.data import Examples, content_hash, read
from nncift.data.records import Line, Record
from nncift.errors import DataError, UsageError


def row(prompt: str = "Q", response: str = "A", **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": response, **more}


def put(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("".join(json.dumps(item) + "\n" for item in rows), encoding="utf-8")
    return path


def test_sources_are_stems_made_unique_by_their_folders(tmp_path: Path) -> None:
    names = ["x/train.jsonl", "y/train.jsonl", "y/train.ndjson", "y/other.jsonl"]
    found = read(*(put(tmp_path, name, [row()]) for name in names))
    assert [item.source for item in found] == ["x/train", "y/train.jsonl", "y/train.ndjson", "other"]


def test_input_given_twice_is_read_twice_and_said(tmp_path: Path) -> None:
    path = put(tmp_path, "a.jsonl", [row()])
    found = read(path, str(path))
    assert len({item.source for item in found}) == len(set(found.ids)) == 2
    assert "more than once" in found.notes[0]


def test_own_ids_are_kept_and_numbers_become_text(tmp_path: Path) -> None:
    found = read(put(tmp_path, "a.jsonl", [row(id="x"), row(id=7), row(id=" y ")]))
    assert found.ids == ("x", "7", " y ")


def test_rows_without_a_fit_id_are_named_by_content_and_occurrence(tmp_path: Path) -> None:
    unfit = [None, "", "  ", True, 1.5, ["x"], "a\nb", "a\x00", "\ud83d", "x" * 201]
    found = read(put(tmp_path, "a.jsonl", [row(id=own) for own in unfit]))
    content = found[0].content_hash
    assert found.ids == tuple(f"{content}-{k}" for k in range(len(unfit)))
    assert "Ids that cannot be used in 4 rows" in found.notes[0]


def test_shared_own_id_is_used_by_none_of_its_rows(tmp_path: Path) -> None:
    found = read(put(tmp_path, "a.jsonl", [row("1", id=1), row("2", id="1"), row("3", id="z")]))
    assert found.ids == (f"{found[0].content_hash}-0", f"{found[1].content_hash}-0", "z")
    assert found.notes[0].startswith("Ids that several rows share in 2 rows (first: '1')")


def test_own_id_cannot_take_the_content_id_of_another_row(tmp_path: Path) -> None:
    victim = f"{read(put(tmp_path, 'v.jsonl', [row('victim')]))[0].content_hash}-0"
    found = read(put(tmp_path, "a.jsonl", [row("thief", id=victim), row("victim")]))
    assert found.ids == (f"{found[0].content_hash}-0", victim)


def test_content_id_written_into_the_row_stays(tmp_path: Path) -> None:
    first = read(put(tmp_path, "a.jsonl", [row("1"), row("2")]))
    again = read(put(tmp_path, "b.jsonl", [{**item.row, "id": item.id} for item in first]))
    assert again.ids == first.ids


def test_content_id_ignores_format_and_metadata(tmp_path: Path) -> None:
    first = read(put(tmp_path, "a.jsonl", [row("Q", "A", note=1)]))
    second = read(put(tmp_path, "b.jsonl", [{"instruction": "Q", "input": "", "output": "A"}]))
    assert first.ids == second.ids


_ROWS = st.lists(
    st.builds(row, st.sampled_from("PQ"), st.sampled_from("AB"), id=st.sampled_from([None, "x", "y", "z", 1, "1"])),
    min_size=2,
    max_size=8,
)


@given(rows=_ROWS, data=st.data())
def test_ids_do_not_depend_on_how_rows_are_split_into_files(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("split")
    cut = data.draw(st.integers(1, len(rows) - 1))
    whole = read(put(folder, "whole.jsonl", rows))
    parts = read(put(folder, "one.jsonl", rows[:cut]), put(folder, "two.jsonl", rows[cut:]))
    assert whole.ids == parts.ids


@pytest.fixture(scope="module")
def two_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("two")
    big = put(folder, "big.jsonl", [row(f"b{k}", id=f"b{k}") for k in range(30)])
    return big, put(folder, "small.jsonl", [row(f"s{k}", id=f"s{k}") for k in range(10)])


def sources(found: Examples) -> dict[str, int]:
    return dict(Counter(item.source for item in found))


def test_limit_is_in_proportion_and_in_reading_order(two_files: tuple[Path, Path]) -> None:
    whole, found = read(*two_files), read(*two_files, limit=8)
    assert sources(found) == {"big": 6, "small": 2}
    assert list(found.ids) == [name for name in whole.ids if name in set(found.ids)]


@settings(deadline=None)
@given(small=st.integers(1, 45), large=st.integers(1, 45), seed=st.integers(0, 3))
def test_limit_is_nested(two_files: tuple[Path, Path], small: int, large: int, seed: int) -> None:
    small, large = sorted((small, large))
    fewer, more = read(*two_files, limit=small, seed=seed), read(*two_files, limit=large, seed=seed)
    assert len(fewer) == min(small, 40)
    assert set(fewer.ids) <= set(more.ids)


def test_limit_depends_on_the_seed_and_not_on_the_order_of_inputs(two_files: tuple[Path, Path]) -> None:
    drawn = {seed: frozenset(read(*two_files, limit=8, seed=seed).ids) for seed in (0, 1)}
    assert drawn[0] != drawn[1]
    assert drawn[0] == frozenset(read(*reversed(two_files), limit=8, seed=0).ids)


def test_limit_reads_on_until_enough_rows_are_usable(tmp_path: Path) -> None:
    good, bad = [row(f"g{k}") for k in range(20)], [row(response="") for _ in range(20)]
    path = put(tmp_path, "a.jsonl", [each for pair in zip(good, bad, strict=True) for each in pair])
    found = read(path, limit=10)
    assert len(found) == 10
    assert 0 < len(found.rejected) < 20
    assert any(f"for a limit of 10, and {len(found.rejected)} of them are rejected" in note for note in found.notes)
    whole = {item.line: item.prompt for item in read(path)}
    assert all(whole[item.line] == item.prompt for item in found)
    everything = read(path, limit=100)
    assert (len(everything), len(everything.rejected)) == (20, 20)
    with pytest.raises(DataError, match=r"^a, line 2: empty response"):
        read(path, limit=1, strict=True)


def test_limit_parses_what_it_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path, "a.jsonl", [row(f"g{k}") for k in range(200)])
    parsed: list[int] = []
    plain = Line.parsed

    def counted(line: Line) -> Record:
        parsed.append(line.line)
        return plain(line)

    monkeypatch.setattr(Line, "parsed", counted)
    assert {item.line for item in read(path, limit=5)} == set(parsed)
    assert len(set(parsed)) == 5


def test_limit_does_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    rows = [row(f"g{k}") for k in range(30)]
    one, other = (
        read(put(tmp_path, name, lines), limit=7) for name, lines in (("a.jsonl", rows), ("b.jsonl", rows[::-1]))
    )
    assert set(one.ids) == set(other.ids)


def test_limit_refuses_an_input_without_a_usable_row_however_small(tmp_path: Path) -> None:
    big, small = put(tmp_path, "big.jsonl", [row(f"g{k}") for k in range(99)]), put(tmp_path, "bad.jsonl", [{}])
    with pytest.raises(DataError, match=r"bad.jsonl' is usable"):
        read(big, small, limit=2)
    usable = put(tmp_path, "one.jsonl", [row("one")])
    assert len(read(big, usable, limit=1)) == 1


def test_strict_names_the_first_row_that_cannot_be_used(tmp_path: Path) -> None:
    path = put(tmp_path, "a.jsonl", [row(), row(response=""), {}])
    assert [item.line for item in read(path).rejected] == [2, 3]
    with pytest.raises(DataError, match=r"^a, line 2: empty response"):
        read(path, strict=True)


def test_what_is_not_used_of_rows_is_noted(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "Q"}, {"type": "image"}]},
        {"role": "assistant", "content": "A"},
        {"role": "user", "content": "thanks"},
    ]
    path = put(tmp_path, "a.jsonl", [{"messages": turns, "tools": [{"name": "f"}]}, row()])
    text = "\n".join(read(path).notes)
    assert "after the response in 1 row" in text
    assert "not text in 1 row" in text
    assert "'tools' in 1 row" in text


def test_mapped_column_that_no_row_has_is_noted(tmp_path: Path) -> None:
    found = read(put(tmp_path, "a.jsonl", [row()]), map={"system": "sytem_text"})
    assert found.notes == ("No row has the column 'sytem_text' that map names.",)


def test_clean_data_has_no_notes(tmp_path: Path) -> None:
    found = read(put(tmp_path, "a.jsonl", [row()]))
    assert (found.notes, found.rejected) == ((), ())


@pytest.mark.parametrize("limit", [0, -1, True, 2.5])
def test_impossible_limits(tmp_path: Path, limit: Any) -> None:
    with pytest.raises(UsageError, match="limit is"):
        read(put(tmp_path, "a.jsonl", [row()]), limit=limit)


def test_no_input_or_a_list_of_inputs() -> None:
    with pytest.raises(UsageError, match="no input"):
        read()
    several: Any = ["a.jsonl"]
    with pytest.raises(UsageError, match="one by one"):
        read(several)


def test_rows_that_keep_their_json_alone_are_rows_like_others(tmp_path: Path) -> None:
    rows = [row("Q é", "A"), row("Q", "😀", id="own"), row("Q", "A", system="be kind")]
    for stored in read(put(tmp_path, "a.jsonl", rows)):
        whole = replace(stored)
        assert (whole, hash(whole), repr(whole)) == (stored, hash(stored), repr(stored))
        assert (whole.text, whole.content_hash, whole.row) == (stored.text, stored.content_hash, stored.row)
        assert pickle.loads(pickle.dumps(stored)) == copy.deepcopy(stored) == stored
        with pytest.raises(AttributeError, match="no attribute 'answer'"):
            _ = stored.answer  # type: ignore[attr-defined]


def test_what_json_has_no_value_for_is_read_as_it_is_kept(tmp_path: Path) -> None:
    calls = [{"name": "f", "arguments": {"day": date(2026, 1, 2)}}]
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": None, "tool_calls": calls}]
    pq.write_table(pa.Table.from_pylist([{"messages": turns}]), tmp_path / "a.parquet")
    (found,) = read(tmp_path / "a.parquet")
    assert "2026-01-02" in found.response
    assert found.content_hash == content_hash(found.messages, found.response)


def test_a_row_in_memory_is_little_more_than_its_bytes(tmp_path: Path) -> None:
    path = put(tmp_path, "a.jsonl", [row(f"{k} " + "q " * 100, f"{k} " + "a " * 100) for k in range(2000)])
    tracemalloc.start()
    found = read(path)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    size = path.stat().st_size / len(found)
    assert held / len(found) < size + 400
    assert peak / len(found) < size + 500
