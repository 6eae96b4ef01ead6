import hashlib
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nncift.core.fingerprints import fingerprint
from nncift.storage import atomic as files
from nncift.storage.atomic import atomic, write_json, write_text


def test_what_fails_half_way_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail() -> None:
        with atomic(path) as part:
            part.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_nan_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not (tmp_path / "a.json").exists()


def test_names_of_files_that_are_no_text_can_be_written_and_read_back(tmp_path: Path) -> None:
    name = b"caf\xe9.jsonl".decode("utf-8", "surrogateescape")
    write_json(tmp_path / "a.json", {"file": name, "other": "žluťoučký \N{CAT}"})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"file": name, "other": "žluťoučký \N{CAT}"}
    write_text(tmp_path / "a.yaml", yaml.safe_dump({"file": "\N{CAT}"}, allow_unicode=True))
    assert yaml.safe_load((tmp_path / "a.yaml").read_text("utf-8")) == {"file": "\N{CAT}"}


def test_a_fingerprint_depends_on_values_and_not_on_the_order_of_keys() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert len({fingerprint("a", "b"), fingerprint("ab"), fingerprint(["a", "b"]), fingerprint("b", "a")}) == 4


@given(st.lists(st.tuples(st.text(), st.integers())), st.integers(1, 5))
def test_an_iterator_is_hashed_as_the_list_of_what_it_yields(items: list[tuple[str, int]], at_once: int) -> None:
    before, files._AT_ONCE = files._AT_ONCE, at_once
    try:
        assert fingerprint("x", iter(items), {"b": 1, "a": None}) == fingerprint("x", list(items), {"a": None, "b": 1})
    finally:
        files._AT_ONCE = before


def test_fingerprints_stay_the_same_between_versions() -> None:
    text = json.dumps(["x", [["a", 1]], {"k": "é"}], sort_keys=True)
    assert fingerprint("x", [["a", 1]], {"k": "é"}) == hashlib.sha256(text.encode()).hexdigest()[:16]
