import json
from pathlib import Path

import numpy as np
import pytest

from nncift.errors import DataError
from nncift.storage.atomic import read_arrays, read_json, write_arrays, write_sealed
from nncift.storage.checksums import is_marked, mark_of, read_mark, verify, write_mark


def flip(path: Path, byte: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[byte] ^= 1 << bit
    path.write_bytes(content)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a run with one finished stage."""
    (tmp_path / "a.txt").write_text("hello")
    write_mark(tmp_path, "fit", "key", ("a.txt", "absent.txt"))
    return tmp_path


def test_a_stage_is_finished_while_its_files_are_what_it_wrote(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert is_marked(run, "fit", "key", ("a.txt",))
    assert not is_marked(run, "fit", "other", ("a.txt",))
    assert not is_marked(run, "fit", "key", ("a.txt", "absent.txt"))
    verify(run, "a.txt", "nobody knows this one.txt")
    assert not caplog.text


@pytest.mark.parametrize(("damage", "said"), [("flip", "not what was written"), ("cut", "4 bytes, and 5 were written")])
def test_damage_is_named_to_who_resumes_and_refused_to_who_reads(
    run: Path, damage: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    if damage == "flip":
        flip(run / "a.txt", 2)
    else:
        (run / "a.txt").write_text("hell")
    assert not is_marked(run, "fit", "key", ("a.txt",))
    assert said in caplog.text
    with pytest.raises(DataError, match=rf"a\.txt.*{said}"):
        verify(run, "a.txt")


def test_a_file_that_is_gone_is_refused_to_who_reads(run: Path) -> None:
    (run / "a.txt").unlink()
    with pytest.raises(DataError, match="it is gone"):
        verify(run, "a.txt")


def test_no_bit_of_a_mark_can_be_flipped_unseen(run: Path) -> None:
    mark = mark_of(run, "fit")
    whole, content = read_mark(run, "fit"), mark.read_bytes()
    unseen = []
    for byte in range(len(content)):
        flip(mark, byte, byte % 8)
        found = read_mark(run, "fit")
        # What only changes the checksum's own name leaves the rest as it was.
        if found and {name: found.get(name) for name in whole} != dict(whole):
            unseen.append(byte)
        mark.write_bytes(content)
    assert unseen == []


def test_a_damaged_mark_is_named(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    mark_of(run, "fit").write_text("{")
    assert not is_marked(run, "fit", "key")
    assert "fit.json is damaged" in caplog.text
    with pytest.raises(DataError, match=r"fit\.json"):
        verify(run, "a.txt")


def test_json_comes_back_as_it_was_and_damage_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_sealed(path, {"b": [1, 2.5, None, "é \udc80"], "a": {"x": True}})
    assert read_json(path) == {"b": [1, 2.5, None, "é \udc80"], "a": {"x": True}}
    path.write_text(path.read_text().replace("2.5", "3.5"))
    with pytest.raises(ValueError, match="checksum"):
        read_json(path)


def test_arrays_come_back_as_they_were_and_damage_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    arrays = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)[:, ::2], "y": np.zeros(0, np.float32)}
    write_arrays(path, arrays)
    found = read_arrays(path)
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)
    content = path.read_bytes()
    for byte in range(len(content)):
        flip(path, byte, byte % 8)
        try:
            again = read_arrays(path)
        except (ValueError, OSError):
            pass
        else:
            assert json.dumps({name: again[name].tolist() for name in sorted(again)}) == json.dumps(
                {name: found[name].tolist() for name in sorted(found)}
            )
        path.write_bytes(content)
