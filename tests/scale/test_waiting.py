"""Shards that wait for each other: one submission is enough, and nobody waits for what never comes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from nncift import calculation
from nncift.errors import UsageError
from nncift.scale import waiting
from nncift.scale.records import Names, Reader, Record, Writer
from nncift.scale.shadow import LOCK, WORK, Presence, held, shadow_of
from nncift.scale.shards import Shard, folder_of
from nncift.scale.waiting import Waiting

from .conftest import content
from .test_records import record

Start = Callable[..., Any]
Shards = Callable[[int], Presence]
GRACE = 0.6


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return where a run would lie."""
    return tmp_path / "run"


@pytest.fixture
def presence(run: Path) -> Iterator[Shards]:
    """Return a function that makes a shard of three be there."""
    with ExitStack() as stack:
        yield lambda number: stack.enter_context(shadow_of(run, Shard(number, 3)))[1]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody wait for long."""
    monkeypatch.setattr(waiting, "GRACE", GRACE)
    monkeypatch.setattr(waiting, "LONGEST", 0.05)


def waited(presence: Presence, lacks: Mapping[int, int], *, most: float = 10.0, patient: bool = False) -> float:
    """Wait until it ends, or for so long at most; return the seconds."""
    began = time.monotonic()
    with Waiting(presence, "label", even_for_none=patient) as what:
        while what.more(lacks) and time.monotonic() - began < most:
            pass
    return time.monotonic() - began


def test_nobody_waits_for_who_is_not_there_unless_asked_to(presence: Shards) -> None:
    first = presence(1)
    presence(3)
    assert waited(first, {2: 1}) < GRACE / 2
    assert GRACE <= waited(first, {2: 1}, patient=True) < 10


def test_a_shard_waits_for_one_that_works_as_long_as_it_takes(presence: Shards, run: Path) -> None:
    first, _ = presence(1), presence(2)
    assert waited(first, {2: 1}, most=3 * GRACE) >= 3 * GRACE
    # Behind it, the shard is at work again.
    assert held(folder_of(run, Shard(1, 3)) / WORK)


def test_shards_that_wait_for_each_other_stop(run: Path) -> None:
    took: dict[int, float] = {}
    there = threading.Barrier(3)

    def wait(number: int) -> None:
        with shadow_of(run, Shard(number, 3)) as (_, presence):
            there.wait()
            took[number] = waited(presence, {number % 3 + 1: 4})

    threads = [threading.Thread(target=wait, args=(number,)) for number in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert min(took.values()) >= GRACE
    assert max(took.values()) < 5


def test_a_shard_that_is_gone_is_given_up(run: Path) -> None:
    with shadow_of(run, Shard(1, 3)) as (_, first):
        with ExitStack() as stack:
            stack.enter_context(shadow_of(run, Shard(2, 3)))
            what = Waiting(first, "label")
            assert what.more({2: 1})
        began = time.monotonic()
        while what.more({2: 1}):
            pass
        assert GRACE / 2 <= time.monotonic() - began < 5
        what.go_on()


def test_what_comes_is_a_sign_of_life(presence: Shards) -> None:
    first, second = presence(1), presence(2)
    second.rest()
    began = time.monotonic()
    with Waiting(first, "label") as what:
        for left in range(20, 0, -1):
            assert what.more({2: left})
            time.sleep(GRACE / 10)
    assert time.monotonic() - began > GRACE


def test_waiting_is_told_of(
    presence: Shards, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(waiting, "QUIET", 0.1)
    first, _ = presence(1), presence(2)
    waited(first, {2: 7, 3: 1}, most=0.5)
    assert len(caplog.messages) == 1
    assert "shard 1/3 has waited" in caplog.text
    assert "shard 2/3, 3/3: 8 pieces of label" in caplog.text


def test_a_look_at_a_lock_keeps_nobody_out(run: Path) -> None:
    """Shards that start while others look whether they are there."""
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            held(folder_of(run, Shard(1, 2)) / LOCK)

    watchers = [threading.Thread(target=look) for _ in range(3)]
    for watcher in watchers:
        watcher.start()
    try:
        for _ in range(30):
            with shadow_of(run, Shard(1, 2)):
                pass
    finally:
        done.set()
        for watcher in watchers:
            watcher.join()


def test_what_is_half_written_is_no_damage_while_somebody_writes(tmp_path: Path) -> None:
    file = tmp_path / "label-job.pieces"
    writer = Writer(file)
    writer.add(record("a"))
    whole = file.read_bytes()
    file.write_bytes(whole + whole[:50])
    reader, names = Reader(file), Names(file)
    assert [part.piece for part in reader.new(settled=False)] == ["a"] == list(names.new())
    file.write_bytes(whole + whole.replace(b'"a"', b'"b"'))
    # Its checksum is not that of its content, as if the rest had not arrived.
    assert list(reader.new(settled=False)) == []
    assert list(names.new()) == ["b"]
    (broken,) = reader.new(settled=True)
    assert not isinstance(broken, Record)
    assert (broken.piece, broken.whole) == ("b", False)
    with file.open("ab") as stream:
        stream.write(whole)
    assert [part.piece for part in reader.new(settled=False)] == ["a"]
    # What is cut off at the end is written again by its owner, from there on.
    file.write_bytes(file.read_bytes() + whole[:-1])
    (cut,) = reader.new(settled=True)
    assert not isinstance(cut, Record)
    assert cut.whole
    with file.open("ab") as stream:
        stream.write(whole[-1:])
    assert [part.piece for part in reader.new(settled=True)] == ["a"]


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a few rows be many pieces, all worth sharing."""
    monkeypatch.setattr("nncift.embeddings.BLOCK", 7)
    monkeypatch.setattr(calculation, "WORTH", 0.0)
    monkeypatch.setattr(calculation, "BYTES_A_SECOND", float("inf"))
    monkeypatch.setattr("nncift.select.graphs._PAIRS", 32)


ROUNDS: Mapping[str, Any] = {"plan": "active", "neighbours": 8, "optimiser": "partition"}


@pytest.mark.usefixtures("shared")
def test_in_rounds_two_shards_come_through_in_one_go(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "GRACE", 300.0)
    start("alone", **ROUNDS)
    run, told = tmp_path / "joined", []
    thread = threading.Thread(target=lambda: told.append(start("joined", "1/2", **ROUNDS)))
    with shadow_of(run, Shard(2, 2)):
        thread.start()
        mine = folder_of(run, Shard(1, 2))
        # Until it waits for the other one, which is there.
        while not (held(mine / LOCK) and list(mine.glob("label-*")) and not held(mine / WORK)):
            assert thread.is_alive()
            time.sleep(0.02)
    told.append(start("joined", "2/2", **ROUNDS))
    thread.join()
    assert [one["next"] for one in told if one["left"].keys() - {"score"}] == []
    assert all(one["stages"]["score"]["pieces"] > 0 for one in told)
    # The last calculation is waited for by nobody.
    assert any(one["finished"] for one in told)
    start("joined", **ROUNDS)
    assert content(run) == content(tmp_path / "alone")


@pytest.mark.usefixtures("shared")
def test_without_waiting_a_round_is_a_call(start: Start, run: Path, tmp_path: Path) -> None:
    with shadow_of(tmp_path / "joined", Shard(2, 2)):
        told = start("joined", "1/2", wait=False, **ROUNDS)
    assert told["left"].keys() == {"embed", "label"}
    assert "next round" in told["next"]


SCRIPT = """
from nncift import calculation, cli, embeddings
from nncift.scale import waiting
from nncift.select import graphs
calculation.WORTH, calculation.BYTES_A_SECOND, graphs._PAIRS, embeddings.BLOCK = 0.0, float("inf"), 64, 7
waiting.GRACE = 40.0
cli.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_processes_that_wait_need_one_submission(
    killed: bool, llama_folder: Path, write_pool: Callable[..., Path], tmp_path: Path
) -> None:
    command = [
        sys.executable, "-c", SCRIPT, "run", str(write_pool(60)), "--model", str(llama_folder), "--encoder", "hash",
        "--labels", "60%", "--budget", "20%", "--template", "plain", "--quiet", "--neighbours", "8", "--optimiser", "partition",
    ]  # fmt: skip
    own = {**os.environ, "NNCIFT_CACHE": str(tmp_path / "cache")}
    subprocess.run([*command, "--out", str(tmp_path / "alone")], check=True, env={**own, "NNCIFT_CACHE": str(tmp_path)})
    joined = [*command, "--out", str(tmp_path / "joined")]
    shards = [[*joined, "--wait", "--shard", f"{number}/3"] for number in (1, 2, 3)]
    running = [subprocess.Popen(shard, env=own) for shard in shards]
    if killed:
        folder = tmp_path / "joined/shards/2-of-3"
        while not any(file.stat().st_size for file in folder.glob("label-*")):
            assert running[1].poll() is None
            time.sleep(0.01)
        running[1].kill()
        assert running[1].wait() == -signal.SIGKILL
        # The others wait for it, and it comes again.
        running[1] = subprocess.Popen(shards[1], env=own)
    assert [process.wait() for process in running] == [0, 0, 0]
    files = {file.name for file in (tmp_path / "joined/shards").rglob("score-*")}
    assert len(files) == 4
    subprocess.run(joined, check=True, env=own)
    assert content(tmp_path / "joined") == content(tmp_path / "alone")


def test_the_flag_goes_with_shards() -> None:
    from nncift.cli import run_command

    context = run_command.make_context("run", ["pool.jsonl", "--out", "x", "--wait"])
    with pytest.raises(UsageError, match="goes with --shard"):
        run_command.invoke(context)
