"""What stops a run, or bars a file to it, is said as it is and leaves everything as it was."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nncift
from nncift.errors import ResourceError
from nncift.storage import checksums
from nncift.storage.locks import PathLock

pytestmark = pytest.mark.usefixtures("hastened")
Call = Callable[..., Any]
STOPPED = """
import os, signal, sys
from nncift.cli import main
# A shell that starts tests in the background has them ignore SIGINT, which children inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.{before})
def command(**_):
    try:
        os.kill(os.getpid(), signal.{name})
        print("went on")
    finally:
        if {again}:
            os.kill(os.getpid(), signal.{name})
main.cli.main = lambda **_: command()
main.main()
"""


def _stopped(name: str, *, again: bool = False, before: str = "SIG_DFL") -> subprocess.CompletedProcess[str]:
    code = STOPPED.format(name=name, again=again, before=before)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_every_way_to_stop_a_process_ends_it_alike(name: str) -> None:
    found = _stopped(name)
    assert (found.returncode, found.stdout) == (130, "")
    assert found.stderr.strip() == "interrupted; the same command goes on where it was"


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_second_time_ends_it_without_a_word(name: str) -> None:
    found = _stopped(name, again=True)
    assert (found.returncode, found.stderr) == (130, "")


def test_nohup_keeps_its_meaning() -> None:
    found = _stopped("SIGHUP", before="SIG_IGN")
    assert (found.returncode, found.stdout) == (0, "went on\n")


def test_handlers_are_given_back(call: Call) -> None:
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    call("doctor", "--quiet")
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_lock_that_is_a_link_is_not_written_through(tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    (tmp_path / ".lock").symlink_to(mine)
    with pytest.raises(OSError, match="link"):
        PathLock(tmp_path / ".lock").take()
    assert mine.read_text() == "mine"


@pytest.fixture
def finished(write_pool: Callable[..., Path], tmp_path: Path) -> Path:
    """Return a small finished run without a model."""
    nncift.run(write_pool(24), out=tmp_path / "run", teacher="length", encoder="hash", labels="60%", budget=5)
    return tmp_path / "run"


def test_damaged_costs_are_figures_alone(
    call: Call, finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (finished / "costs.json").write_text("{")
    line = (
        "run",
        tmp_path / "pool.jsonl",
        "--teacher",
        "length",
        "--encoder",
        "hash",
        "--labels",
        "60%",
        "--budget",
        5,
    )
    with caplog.at_level(logging.WARNING):
        assert call(*line, "--out", finished, "--quiet").code == 0
    assert "costs are counted anew" in caplog.text


def test_a_file_that_may_not_be_read_is_not_damaged(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(checksums, "digest", refused)
    before = (finished / "selection.parquet").read_bytes()
    mark = checksums.read_mark(finished, "select")
    with pytest.raises(ResourceError, match="may not be read"):
        checksums.matches(finished, mark, ("selection.parquet",))
    with pytest.raises(ResourceError, match="may not be read"):
        checksums.verify(finished, "selection.parquet")
    assert (finished / "selection.parquet").read_bytes() == before


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no names that are no UTF-8")
def test_names_that_are_no_text(call: Call, write_pool: Callable[..., Path], tmp_path: Path) -> None:
    pool = os.path.join(os.fsencode(tmp_path), b"p\xff.jsonl")
    data = write_pool(24).read_bytes() + b'{"no": "row"}\n'
    with open(pool, "wb") as stream:
        stream.write(data)
    out = os.fsdecode(os.path.join(os.fsencode(tmp_path), b"run\xfe"))
    given = ("--teacher", "length", "--encoder", "hash", "--labels", "60%", "--budget", 5, "--quiet")
    assert call("run", os.fsdecode(pool), "--out", out, *given).code == 0
    assert call("run", os.fsdecode(pool), "--out", out, *given).code == 0
    assert call("inspect", os.fsdecode(pool)).code == 0
    assert call("inspect", os.fsdecode(pool), "--json").code == 0
    chosen = nncift.load(out).selected_ids[0]
    assert call("explain", out, "--id", chosen).code == 0
    assert call("export", out, "--to", "trl", "--out", f"{out}/train.jsonl").code == 0
