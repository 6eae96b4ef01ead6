"""Texts that editors wrote: byte order marks and line ends are no part of them."""

import json
from pathlib import Path

import pytest

from nncift import config
from nncift.config import SelectSettings
from nncift.core.texts import one_line, read_text
from nncift.errors import DataError
from nncift.selection.constraints import Constraints
from nncift.teachers.rating import read_prompts

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"]


def put(path: Path, text: str, encoding: str, end: str = "\r\n") -> Path:
    data = text.replace("\n", end).encode(encoding)
    path.write_bytes(b"\xff\xfe" + data if encoding == "utf-16-le" else data)
    return path


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_texts_are_read_without_marks(tmp_path: Path, encoding: str, end: str) -> None:
    assert read_text(put(tmp_path / "a.txt", "3\nä\n", encoding, end)) == "3\nä\n"


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_lists_of_ids_settings_and_prompts_take_every_mark(tmp_path: Path, encoding: str) -> None:
    ids = put(tmp_path / "ids.txt", "3\n\n5\n", encoding)
    assert Constraints.read(SelectSettings(include=str(ids))).include == {"3", "5"}
    settings = put(tmp_path / "a.yaml", "teacher: length\nlabels: 50%\n", encoding)
    assert config.load(settings) == {"teacher": "length", "labels": "50%"}
    prompts = put(tmp_path / "b.yaml", json.dumps(["Q {prompt} A {response} is"]), encoding)
    assert read_prompts(prompts).texts == ("Q {prompt} A {response} is",)


def test_text_of_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_bytes("größe".encode("latin-1"))
    with pytest.raises(DataError, match=r"--include .* cannot be read"):
        Constraints.read(SelectSettings(include=str(tmp_path / "ids.txt")))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\n b\tc", "a b c"),
        ("\x1b]0;title\x07red \x1b[31m", "\\x1b]0;title\\x07red \\x1b[31m"),
        ("\u202eevil\u200b \x9b31m", "\\u202eevil\\u200b \\x9b31m"),
        ("Straße 木 🌊", "Straße 木 🌊"),
        ("word " * 9, "word word word wo ..."),
    ],
)
def test_a_text_of_a_row_commands_no_terminal(text: str, shown: str) -> None:
    assert one_line(text, 17 if len(text) > 40 else 40) == shown
