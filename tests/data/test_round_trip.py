"""Every format of input through every export: what the trainer reads is what the row said."""

import bz2
import csv
import gzip
import json
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nncift.data import Examples, export, rows_from
from nncift.data.export import _Selected

TEXT = (
    st.text(min_size=1, max_size=8)
    .filter(lambda text: bool(text.strip()) and "<" not in text)
    .map(lambda text: text.encode("utf-8", "ignore").decode() or "x")
    .filter(lambda text: bool(text.strip()) and text.strip()[0] not in "[{")
)
TALKS = st.lists(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=2), min_size=2, max_size=3)
Talk = list[tuple[str, str]]


def turns(talk: Talk, role: str, content: str, names: tuple[str, str]) -> list[dict[str, str]]:
    return [{role: names[k], content: text} for pair in talk for k, text in enumerate(pair)]


SHAPES: dict[str, Callable[[Talk], Any]] = {
    "messages": lambda talk: {"messages": turns(talk, "role", "content", ("user", "assistant"))},
    "sharegpt": lambda talk: {"conversations": turns(talk, "from", "value", ("human", "gpt"))},
    "texts": lambda talk: {"conversations": [text for pair in talk for text in pair]},
    "json text": lambda talk: {"messages": json.dumps(turns(talk, "role", "content", ("user", "assistant")))},
    "columns": lambda talk: {
        "messages": {"role": ["user", "assistant"] * len(talk), "content": [t for p in talk for t in p]}
    },
    "alpaca": lambda talk: {"instruction": talk[-1][0], "output": talk[-1][1], "history": [list(p) for p in talk[:-1]]},
    "prompt": lambda talk: {
        "prompt": turns(talk, "role", "content", ("user", "assistant"))[:-1],
        "completion": talk[-1][1],
    },
    "bare": lambda talk: turns(talk, "speaker", "text", ("user", "assistant")),
    "pair": lambda talk: {
        "chosen": turns(talk, "role", "content", ("user", "assistant")),
        "rejected": turns([*talk[:-1], (talk[-1][0], talk[-1][1] + "!")], "role", "content", ("user", "assistant")),
    },
}


def put_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def put_array(path: Path, rows: list[Any]) -> Path:
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-16")
    return path


def put_parquet(path: Path, rows: list[Any]) -> Path:
    pq.write_table(pa.Table.from_pylist([row if isinstance(row, dict) else {"messages": row} for row in rows]), path)
    return path


def as_dicts(rows: list[Any]) -> list[dict[str, Any]]:
    return [row if isinstance(row, dict) else {"messages": row} for row in rows]


def put_arrow(path: Path, rows: list[Any]) -> Path:
    table = pa.Table.from_pylist(as_dicts(rows))
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return path


def put_cells(path: Path, rows: list[Any]) -> Path:
    """Write a table of texts, whose cells hold lists as JSON text."""
    cells = [
        {name: value if isinstance(value, str) else json.dumps(value) for name, value in row.items()}
        for row in as_dicts(rows)
    ]
    with path.open("w", newline="", encoding="utf-8-sig") as stream:
        kind = "excel-tab" if path.suffix == ".tsv" else "excel"
        writer = csv.DictWriter(stream, list(dict.fromkeys(name for row in cells for name in row)), dialect=kind)
        writer.writeheader()
        writer.writerows(cells)
    return path


def put_packed(path: Path, rows: list[Any]) -> Path:
    text = "\n".join(map(json.dumps, rows)).encode()
    packings: dict[str, Callable[[bytes], bytes]] = {
        ".gz": gzip.compress,
        ".bz2": bz2.compress,
        ".xz": lzma.compress,
    }
    path.write_bytes(packings[path.suffix](text))
    return path


def put_zip(path: Path, rows: list[Any]) -> Path:
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("a.jsonl", "\n".join(map(json.dumps, rows)))
    return path


def hold(_: Path, rows: list[Any]) -> list[Any]:
    """Hand rows over as Python holds them."""
    return rows


FILES: dict[str, Callable[[Path, list[Any]], Any]] = {
    "a.jsonl": put_lines,
    "a.json": put_array,
    "a.parquet": put_parquet,
    "a.arrow": put_arrow,
    "a.csv": put_cells,
    "a.tsv": put_cells,
    "a.jsonl.gz": put_packed,
    "a.jsonl.bz2": put_packed,
    "a.jsonl.xz": put_packed,
    "a.zip": put_zip,
    "rows": hold,
}
TABLES = ("a.parquet", "a.arrow", "a.csv", "a.tsv")
"""Files whose rows are not the same objects: they have nulls, or texts for lists."""


def exported(found: Examples, folder: Path, to: str) -> list[dict[str, Any]]:
    """Return what export writes of rows in their order."""
    selected = [_Selected(row.id, rank, row.source, row.raw) for rank, row in enumerate(found, start=1)]
    (folder / "manifest.yaml").write_text("pool: [a]\n")
    with mock.patch.object(export, "_selected", return_value=selected):
        export.export(folder, folder / "out.jsonl", to=to, turns="all")
    return [json.loads(line) for line in (folder / "out.jsonl").read_text(encoding="utf-8").split("\n") if line]


def loaded(row: dict[str, Any], to: str) -> list[str]:
    """Return the texts of a row, turn by turn, as the trainer reads it."""
    if to == "llamafactory" and "instruction" in row:
        asked = "\n".join(text for text in (row["instruction"], row["input"]) if text)
        return [*(text for pair in row.get("history", ()) for text in pair), asked, row["output"]]
    if to == "llamafactory":
        return [turn["value"] for turn in (*row["conversations"], *([row["chosen"]] if "chosen" in row else ()))]
    if "preferred_output" in row:
        return [turn["content"] for turn in (*row["input"]["messages"], *row["preferred_output"])]
    if to == "axolotl" and "chosen" in row:
        return [turn["content"] for turn in (*row["messages"], row["chosen"])]
    if "messages" in row:
        return [turn["content"] for turn in row["messages"]]
    return [turn["content"] for turn in (*row["prompt"], *row.get("completion", row.get("chosen", ())))]


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(talks=TALKS, names=st.permutations(list(FILES)))
def test_every_format_through_every_export(
    tmp_path_factory: pytest.TempPathFactory, shape: str, talks: list[Talk], names: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("trip")
    rows = [SHAPES[shape](talk) for talk in talks]
    for name in names[:4]:
        # In a cell, turns beside a plain answer are a text like any other.
        if shape == "prompt" and FILES[name] is put_cells:
            continue
        found = rows_from(FILES[name](folder / name, rows))
        for to in ("trl", "axolotl", "llamafactory", "openai"):
            texts = [loaded(row, to) for row in exported(found, folder, to)]
            assert texts == [[text for pair in talk for text in pair] for talk in talks]
        if name not in TABLES:
            assert [as_dicts([json.loads(row.raw)])[0] for row in found] == as_dicts(rows)
