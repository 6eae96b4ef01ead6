"""Hostile input: the corpus of what was found, bombs, and a short fuzz of every target (`benchmarks/fuzz.py` runs for longer)."""

import gzip
import io
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nncift.config import resolve
from nncift.data import read
from nncift.errors import DataError

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import fuzz

INPUTS = {"constraints": 20, "manifest": 30, "directory": 1}
"""How many mutated inputs a target gets in the short profile; 60 where it is not named."""

KEPT = [
    pytest.param(path.parent.name, path, id=f"{path.parent.name}-{path.name}")
    for path in sorted(fuzz.CORPUS.glob("*/*"))
]


@pytest.fixture(autouse=True)
def memory() -> Iterator[None]:
    """Bound the memory that an input may take."""
    with fuzz.bounded():
        yield


@pytest.mark.parametrize(("target", "path"), KEPT)
def test_what_was_found_before_stays_mended(target: str, path: Path) -> None:
    fuzz.attempt(target, path.read_bytes())


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_mutated_input_ends_in_an_error_of_ours_or_in_none(target: str) -> None:
    dice = random.Random(sum(target.encode()))
    for _ in range(INPUTS.get(target, 60)):
        fuzz.attempt(target, fuzz.mutated(target, dice))


@pytest.mark.slow
@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_mutated_input_for_longer(target: str, tmp_path: Path) -> None:
    assert fuzz.fuzz([target], 1.0, 7, tmp_path)["finds"] == []


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=12),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "role",
                    "content",
                    "from",
                    "value",
                    "messages",
                    "conversations",
                    "instruction",
                    "input",
                    "output",
                    "history",
                    "prompt",
                    "completion",
                    "response",
                    "system",
                    "id",
                    "tools",
                    "tool_calls",
                    "function",
                    "name",
                    "arguments",
                    "type",
                    "text",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=16,
)


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(st.lists(VALUES, min_size=1, max_size=4))
def test_any_json_is_read_and_made_into_what_trainers_load(values: list[Any]) -> None:
    data = "\n".join(json.dumps(value) for value in values).encode()
    for target in ("lines", "trainers"):
        fuzz.attempt(target, data)
    fuzz.attempt("document", json.dumps(values).encode())


@settings(max_examples=20, suppress_health_check=list(HealthCheck))
@given(st.lists(st.text(st.characters(blacklist_characters="\n"), max_size=12), min_size=4, max_size=5))
def test_any_text_is_a_constraint_or_an_error_of_ours(texts: list[str]) -> None:
    fuzz.attempt("constraints", "\n".join(texts).encode("utf-8", "surrogatepass"))


def test_a_gzip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nncift.data.opening.LEAST_UNPACKED", 1 << 20)
    for name in ("a.jsonl.gz", "a.json.gz"):
        path = tmp_path / name
        with gzip.open(path, "wb") as stream:
            stream.write(b'{"prompt": "a", "completion": "b"}\n' * 60_000)
        with pytest.raises(DataError, match="unpacks to more than 200 times"):
            read(path)


def test_a_parquet_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 1_500_000, pa.int32()), ["x"])
    pq.write_table(pa.table({"prompt": column, "completion": column}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="1,500,000 rows in"):
        read(tmp_path / "a.parquet")


def test_a_row_that_is_too_long_is_set_aside_and_the_others_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    row = b'{"prompt": "a", "completion": "b"}\n'
    path.write_bytes(row + b'{"prompt": "' + b"a" * (1 << 26) + b'", "completion": "b"}\n' + row)
    found = read(path)
    assert [row.line for row in found] == [1, 3]
    assert [(no.line, no.reason) for no in found.rejected] == [(2, "too long: the row has more than 32 MiB")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("option: &a [1]\nmap: *a\n", "has an alias"),
        ("seed: " + "9" * 5000, "a number of more than 40 digits"),
        ("pool: !!python/object/apply:os.system [false]", "could not determine a constructor"),
    ],
)
def test_settings_hold_no_aliases_no_endless_numbers_and_no_code(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(DataError, match=said):
        resolve({}, tmp_path / "a.yaml")


def test_a_link_in_a_run_is_not_written_through(tmp_path: Path) -> None:
    from nncift.storage.atomic import write_text
    from nncift.storage.row_store import RowStore

    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    (tmp_path / "a.json.part").symlink_to(mine)
    (tmp_path / "a.json").symlink_to(mine)
    write_text(tmp_path / "a.json", "theirs")
    assert mine.read_text() == "mine"
    RowStore.open(tmp_path / "rows", 3, 1)
    (tmp_path / "rows.npy").rename(tmp_path / "elsewhere.npy")
    (tmp_path / "rows.npy").symlink_to(tmp_path / "elsewhere.npy")
    with pytest.raises(DataError, match="it is a link"):
        RowStore.open(tmp_path / "rows", 3, 1)


def test_a_pickled_array_is_never_opened(tmp_path: Path) -> None:
    import numpy as np

    from nncift.storage.vector_store import load_array

    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}], object), allow_pickle=True)
    (tmp_path / "a.npy").write_bytes(stream.getvalue())
    with pytest.raises(ValueError, match="allow_pickle"):
        load_array(tmp_path / "a.npy")
