"""Locks between processes: one holder at a time, given back by whatever ends a process."""

import subprocess
import sys
from pathlib import Path

import pytest

from nncift.errors import ResourceError
from nncift.storage.locks import PathLock, locked

HOLDER = """
import sys
from pathlib import Path
from nncift.storage.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_is_held_by_one_and_comes_back_from_a_process_that_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert not PathLock(path).take()
        holder.kill()
        holder.wait()
    assert PathLock(path).take()


def test_a_second_lock_of_the_same_process_waits_for_the_first(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    with locked(path):
        assert not PathLock(path).take()
    second = PathLock(path)
    assert second.take(wait=True)
    second.check_in_place()
    path.unlink()
    with pytest.raises(ResourceError, match="was moved, replaced or deleted"):
        second.check_in_place()
    second.release()
