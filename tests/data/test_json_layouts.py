"""JSON of every layout under every name: the same rows, and one sentence where there are none."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nncift.data import read
from nncift.data.json_files import rows_of_table
from nncift.data.records import from_text
from nncift.errors import DataError

ROWS = [{"instruction": f"Q{k}", "input": None, "output": f"A {k}\n\r\u2028"} for k in range(3)]
NAMES = ["a.jsonl", "a.ndjson", "a.json", "a"]


def lines(rows: list[Any], end: str = "\n") -> str:
    return "".join(json.dumps(row) + end for row in rows)


LAYOUTS = {
    "lines": lines(ROWS),
    "carriage returns": lines(ROWS, "\r"),
    "both": lines(ROWS, "\r\n"),
    "commas": lines(ROWS, ",\n"),
    "array": json.dumps(ROWS),
    "array over lines": json.dumps(ROWS, indent=1),
    "array of lines": "[\n" + ",\n".join(json.dumps(row) for row in ROWS) + "\n]",
    "objects over lines": "\n".join(json.dumps(row, indent=2) for row in ROWS),
    "objects over lines with commas": ",\n".join(json.dumps(row, indent=2) for row in ROWS),
    "one line": " ".join(json.dumps(row) for row in ROWS),
    "wrapped": json.dumps({"data": ROWS, "version": 1}),
    "wrapped over lines": json.dumps({"version": 1, "rows": ROWS}, indent=2),
    "lists": json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]}),
    "columns": json.dumps({name: {str(k): row[name] for k, row in enumerate(ROWS)} for name in ROWS[0]}),
    "index": json.dumps({str(k): row for k, row in enumerate(ROWS)}, indent=2),
    "split": json.dumps({"columns": [*ROWS[0]], "index": [0, 1, 2], "data": [[*row.values()] for row in ROWS]}),
    "table": json.dumps({"schema": {"fields": [{"name": "index"}]}, "data": ROWS}),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_every_layout_gives_the_same_rows(tmp_path: Path, name: str, layout: str, encoding: str) -> None:
    path = tmp_path / name
    path.write_bytes(LAYOUTS[layout].encode(encoding))
    assert [row.row for row in read(path)] == ROWS


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_rows_that_are_lists_of_turns(tmp_path: Path, name: str) -> None:
    talks = [[{"from": "human", "value": f"Q{k}"}, {"from": "gpt", "value": "A"}] for k in range(2)]
    for text in (
        lines(talks),
        json.dumps(talks),
        json.dumps(talks, indent=1),
        "\n".join(json.dumps(t, indent=1) for t in talks),
    ):
        (tmp_path / name).write_text(text)
        assert [row.prompt for row in read(tmp_path / name)] == ["Q0", "Q1"]
    (tmp_path / name).write_text(json.dumps(talks[0]))
    (found,) = read(tmp_path / name)
    assert (found.prompt, found.response, json.loads(found.raw)) == ("Q0", "A", talks[0])


def test_a_broken_line_costs_itself_alone_also_the_first(tmp_path: Path) -> None:
    for broken in (0, 1):
        texts = [json.dumps(row) for row in ROWS]
        texts[broken] = texts[broken][:-1]
        (tmp_path / "a.jsonl").write_text("\n".join(texts))
        found = read(tmp_path / "a.jsonl")
        assert (len(found), [no.line for no in found.rejected]) == (2, [broken + 1])


def test_printed_python_is_called_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(map(repr, ROWS)))
    with pytest.raises(DataError, match=r"printed Python \(single quotes\); write rows with json.dumps"):
        read(tmp_path / "a.jsonl")


@pytest.mark.parametrize("encoding", ["gbk", "cp1251"])
def test_another_encoding_is_named_with_the_command_to_type(tmp_path: Path, encoding: str) -> None:
    rows = [{"instruction": "Почему?", "output": "Потому."}]
    for name, text in (
        ("a.jsonl", json.dumps(rows[0], ensure_ascii=False)),
        ("a.json", json.dumps(rows, ensure_ascii=False)),
    ):
        (tmp_path / name).write_bytes(text.encode(encoding))
        with pytest.raises(DataError, match=r"another encoding, such as GBK or Latin-1.* iconv -f GBK -t UTF-8"):
            read(tmp_path / name)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_a_number_that_is_not_finite_is_null_in_every_kind_of_file(tmp_path: Path, number: str) -> None:
    text = f'{{"instruction": "Q", "input": {number}, "output": "A", "scores": [1.5, {number}]}}'
    for name, content in (("a.jsonl", f"{text}\n{text}"), ("b.json", f"[{text}]"), ("c.jsonl", text)):
        (tmp_path / name).write_text(content)
        found = read(tmp_path / name)[0]
        assert json.loads(found.raw, parse_constant=pytest.fail)["scores"] == [1.5, None]
        assert (found.prompt, found.rejected if hasattr(found, "rejected") else ()) == ("Q", ())


def test_a_broken_row_with_such_a_number_is_a_broken_row() -> None:
    assert from_text(1, '{"a": NaN, "b"').reason.startswith("broken JSON")


def test_finite_numbers_leave_a_line_as_it_was() -> None:
    for text in ('{"a" :1.50,"b":1e-400}', '{"a": 1e308}', '{"a": "NaN"}'):
        assert from_text(1, text).raw == text


@pytest.mark.parametrize(
    "value",
    [{"a": [1], "b": [1, 2]}, {"a": []}, {"a": {"x": 1}, "b": {"y": 1}}, {"a": 1}, {"a": {}}],
)
def test_what_is_no_table_by_columns(value: dict[str, Any]) -> None:
    assert rows_of_table(value) is None


@given(st.integers(1, 4), st.lists(st.sampled_from("abcde"), unique=True, min_size=2, max_size=4), st.data())
def test_tables_by_columns_are_the_rows(count: int, names: list[str], data: st.DataObject) -> None:
    rows = [{name: data.draw(st.text(max_size=3) | st.integers()) for name in names} for _ in range(count)]
    by_lists = {name: [row[name] for row in rows] for name in names}
    by_columns = {name: {str(k): row[name] for k, row in enumerate(rows)} for name in names}
    by_index = {str(k): row for k, row in enumerate(rows)}
    split = {"columns": names, "data": [[*row.values()] for row in rows]}
    for table in (by_lists, by_columns, by_index, split):
        assert [*(rows_of_table(table) or ())] == rows


def test_a_single_row_is_no_table(tmp_path: Path) -> None:
    turns = {"prompt": [{"role": "user", "content": "Q"}], "completion": [{"role": "assistant", "content": "A"}]}
    lima = {"conversations": ["Q", "A"]}
    columns = {"messages": {"role": ["user", "assistant"], "content": ["Q", "A"]}}
    for row in (turns, lima, columns):
        (tmp_path / "a.json").write_text(json.dumps(row))
        (found,) = read(tmp_path / "a.json")
        assert (found.prompt, found.response, found.row) == ("Q", "A", row)
