"""CSV and TSV: cells as they are, rows that do not fit set aside, and one sentence for what is no table."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nncift.data import read
from nncift.errors import DataError


def put(folder: Path, name: str, text: str, encoding: str = "utf-8") -> Path:
    (folder / name).write_bytes(text.encode(encoding))
    return folder / name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "instruction,input,output\nQ,,A\n"),
        ("a.csv", 'instruction,input,output\r\nQ,,"A"\r\n\r\n'),
        ("a.csv", "instruction;input;output\nQ;;A"),
        ("a.tsv", "instruction\tinput\toutput\nQ\t\tA\n"),
        ("a.csv", '"instruction","input","output"\n"Q","","A"\n'),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tables_are_rows_of_text(tmp_path: Path, name: str, text: str, encoding: str) -> None:
    (found,) = read(put(tmp_path, name, text, encoding))
    assert found.row == {"instruction": "Q", "input": None, "output": "A"}


def test_cells_hold_line_breaks_quotes_and_a_megabyte(tmp_path: Path) -> None:
    long = 'x"\n,\r\n' * 200_000
    stream = io.StringIO()
    csv.writer(stream).writerows([["prompt", "completion"], [long, "A"], ["Q", "B"]])
    found = read(put(tmp_path, "a.csv", stream.getvalue()))
    assert [row.response for row in found] == ["A", "B"]
    assert found[0].prompt == long
    # The second row stands behind the lines of the first one.
    assert [row.line for row in found] == [2, 2 + 400_000 + 1]


def test_cells_of_json_text_are_turns(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    stream = io.StringIO()
    csv.writer(stream).writerows([["id", "messages"], ["7", json.dumps(turns)]])
    (found,) = read(put(tmp_path, "a.csv", stream.getvalue()))
    assert (found.id, found.prompt, found.response) == ("7", "Q", "A")


def test_rows_of_another_width_are_set_aside(tmp_path: Path) -> None:
    found = read(put(tmp_path, "a.csv", "prompt,completion\nQ,A\nQ,A,B\nQ\n"))
    assert len(found) == 1
    assert [(no.line, no.kind) for no in found.rejected] == [(3, "wrong number of cells"), (4, "wrong number of cells")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('prompt,completion\nQ,"A\n', "is a double quote left open"),
        ("prompt,prompt\nQ,A\n", "names the column 'prompt' twice"),
        ("\n\nQ,A\n", "has no header"),
        ("prompt,completion\n", "has no rows"),
    ],
)
def test_what_is_no_table_is_said(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read(put(tmp_path, "a.csv", text))


def test_another_encoding_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="another encoding"):
        read(put(tmp_path, "a.csv", "prompt,completion\nQ,größer\n", "latin-1"))


@given(
    rows=st.lists(
        st.fixed_dictionaries({"prompt": st.text(min_size=1), "note": st.text(min_size=1)}), min_size=1, max_size=4
    ),
    tabs=st.booleans(),
)
def test_what_is_written_is_what_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], tabs: bool
) -> None:
    rows = [{**row, "completion": "A"} for row in rows]
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, [*rows[0]], delimiter="\t" if tabs else ",")
    writer.writeheader()
    writer.writerows(rows)
    path = tmp_path_factory.mktemp("csv") / f"a.{'tsv' if tabs else 'csv'}"
    path.write_bytes(stream.getvalue().encode("utf-8", "replace"))
    from nncift.data.file_rows import file_records

    expected = [{k: v.encode("utf-8", "replace").decode() for k, v in row.items()} for row in rows]
    assert [record.row for record in file_records(path)] == expected
