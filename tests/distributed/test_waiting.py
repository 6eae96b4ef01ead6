"""Shards that wait for each other: one submission is enough, and nobody waits for what never comes."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import pytest

from nncift.core import parallel as calculation
from nncift.distributed import shadow, waiting
from nncift.distributed.piece_records import Names, Reader, Record, Writer
from nncift.distributed.shadow import LOCK, WORK, Presence, held, shadow_of
from nncift.distributed.shard_executor import Part
from nncift.distributed.shards import Shard, folder_of
from nncift.distributed.waiting import EVERY, LONGEST, QUIET, Waiting
from nncift.errors import ResourceError, UsageError

from .conftest import content
from .test_records import record

Start = Callable[..., Any]
Shards = Callable[[int], Presence]
GRACE = waiting.GRACE


class Clock:
    """Stands in for the module `time`: nobody sleeps, and seconds pass only where somebody would have."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asleep: Callable[[], object] = lambda: None

    def monotonic(self) -> float:
        """Return the seconds that passed."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let seconds pass, and others do what they do meanwhile."""
        self.now += seconds
        self.asleep()


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return the clock of everybody who waits."""
    found = Clock()
    monkeypatch.setattr(waiting, "time", found)
    return found


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return where a run would lie."""
    return tmp_path / "run"


@pytest.fixture
def presence(run: Path) -> Iterator[Shards]:
    """Return a function that makes a shard of three be there."""
    with ExitStack() as stack:
        yield lambda number: stack.enter_context(shadow_of(run, Shard(number, 3)))[1]


def waited(
    clock: Clock, presence: Presence, lacks: Mapping[int, int], *, most: float = 10 * GRACE, patient: bool = False
) -> float:
    """Wait until it ends, or for so long at most; return the seconds."""
    began = clock.now
    with Waiting(presence, "label", even_for_none=patient) as what:
        while what.more(lacks) and clock.now - began < most:
            pass
    return clock.now - began


def test_nobody_waits_for_who_is_not_there_unless_asked_to(presence: Shards, clock: Clock) -> None:
    first = presence(1)
    presence(3)
    assert waited(clock, first, {2: 1}) == 0
    assert GRACE <= waited(clock, first, {2: 1}, patient=True) < GRACE + LONGEST


def test_a_shard_waits_for_one_that_works_as_long_as_it_takes(presence: Shards, run: Path, clock: Clock) -> None:
    first, _ = presence(1), presence(2)
    assert waited(clock, first, {2: 1}, most=3 * GRACE) >= 3 * GRACE
    # Behind it, the shard is at work again.
    assert held(folder_of(run, Shard(1, 3)) / WORK)


def test_shards_that_wait_for_each_other_stop(presence: Shards, clock: Clock) -> None:
    shards = {number: presence(number) for number in (1, 2, 3)}
    each = {number: Waiting(shard, "label") for number, shard in shards.items()}
    took: dict[int, float] = {}
    while len(took) < 3:
        for number, what in each.items():
            if number not in took and not what.more({number % 3 + 1: 4}):
                took[number] = clock.now
    assert all(GRACE <= seconds < GRACE + 3 * LONGEST for seconds in took.values())


def test_a_shard_that_is_gone_is_given_up(run: Path, clock: Clock) -> None:
    with shadow_of(run, Shard(1, 3)) as (_, first):
        with ExitStack() as stack:
            stack.enter_context(shadow_of(run, Shard(2, 3)))
            what = Waiting(first, "label")
            assert what.more({2: 1})
        began = clock.now
        while what.more({2: 1}):
            pass
        assert GRACE - LONGEST <= clock.now - began < GRACE + LONGEST
        what.go_on()


def test_what_comes_is_a_sign_of_life(presence: Shards, clock: Clock) -> None:
    first, second = presence(1), presence(2)
    second.rest()
    with Waiting(first, "label") as what:
        for left in range(20, 0, -1):
            assert what.more({2: left})
            clock.sleep(GRACE / 10)
    assert clock.now > GRACE


def test_waiting_is_told_of(presence: Shards, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    first, _ = presence(1), presence(2)
    waited(clock, first, {2: 7, 3: 1}, most=QUIET + EVERY / 2)
    assert len(caplog.messages) == 1
    assert "shard 1/3 has waited" in caplog.text
    assert "shard 2/3, 3/3: 8 tasks of label" in caplog.text


@pytest.mark.parametrize("looks", [1, 19, 20])
def test_a_look_at_a_lock_keeps_nobody_out(run: Path, looks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards that start while others look whether they are there; looks: how many tries find somebody who looks."""
    lock = folder_of(run, Shard(1, 2)) / LOCK
    lock.parent.mkdir(parents=True)
    monkeypatch.setattr(shadow, "time", clock := Clock())
    with lock.open("a+") as stream:
        fcntl.flock(stream, fcntl.LOCK_SH)
        clock.asleep = lambda: fcntl.flock(stream, fcntl.LOCK_UN) if clock.now > looks * shadow._PAUSE - 1e-9 else None
        refused = nullcontext() if looks < 20 else pytest.raises(ResourceError, match="another process")
        with refused, shadow_of(run, Shard(1, 2)):
            assert held(lock)


def test_what_is_half_written_is_no_damage_while_somebody_writes(tmp_path: Path) -> None:
    file = tmp_path / "label-job.pieces"
    writer = Writer(file)
    writer.add(record("a"))
    whole = file.read_bytes()
    file.write_bytes(whole + whole[:50])
    reader, names = Reader(file), Names(file)
    assert [part.task for part in reader.new(settled=False)] == ["a"] == list(names.new())
    file.write_bytes(whole + whole.replace(b'"a"', b'"b"'))
    # Its checksum is not that of its content, as if the rest had not arrived.
    assert list(reader.new(settled=False)) == []
    assert list(names.new()) == ["b"]
    (broken,) = reader.new(settled=True)
    assert not isinstance(broken, Record)
    assert (broken.task, broken.whole) == ("b", False)
    with file.open("ab") as stream:
        stream.write(whole)
    assert [part.task for part in reader.new(settled=False)] == ["a"]
    # What is cut off at the end is written again by its owner, from there on.
    file.write_bytes(file.read_bytes() + whole[:-1])
    (cut,) = reader.new(settled=True)
    assert not isinstance(cut, Record)
    assert cut.whole
    with file.open("ab") as stream:
        stream.write(whole[-1:])
    assert [part.task for part in reader.new(settled=True)] == ["a"]


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a few rows be many tasks, all worth sharing."""
    monkeypatch.setattr("nncift.models.embedding_cache.BLOCK", 7)
    monkeypatch.setattr(calculation, "WORTH", 0.0)
    monkeypatch.setattr(calculation, "BYTES_A_SECOND", float("inf"))
    monkeypatch.setattr("nncift.selection.graphs._PAIRS", 32)


ROUNDS: Mapping[str, Any] = {"plan": "active", "neighbours": 8, "optimiser": "partition"}


@pytest.mark.usefixtures("shared")
def test_in_rounds_a_shard_comes_through_in_one_go_beside_one_that_comes_again(
    start: Start, tmp_path: Path, clock: Clock
) -> None:
    """Whenever the first one waits, the other is there once more and goes as far as it comes."""
    start("alone", **ROUNDS)
    run = tmp_path / "joined"
    others: list[Any] = []

    def other() -> None:
        clock.asleep = lambda: None
        stack.close()
        others.append(start("joined", "2/2", **ROUNDS))
        stack.enter_context(shadow_of(run, Shard(2, 2)))
        clock.asleep = other

    clock.asleep = other
    with ExitStack() as stack:
        stack.enter_context(shadow_of(run, Shard(2, 2)))
        details = start("joined", "1/2", **ROUNDS)
    assert details["left"].keys() <= {"score"}
    assert len(others) > 1
    assert details["stages"]["score"]["pieces"] > 0
    start("joined", **ROUNDS)
    assert content(run) == content(tmp_path / "alone")


@pytest.mark.usefixtures("shared")
def test_what_others_do_meanwhile_is_not_left(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one does all of its tasks while this one does its first."""
    do = Part._do
    others: list[Any] = []

    def beside(part: Part, *given: Any) -> None:
        do(part, *given)
        if not others:
            others.append(None)
            others.append(start("joined", "2/2"))

    monkeypatch.setattr(Part, "_do", beside)
    details = start("joined", "1/2")
    assert others[1]["left"].keys() == {"label"}
    assert details["left"] == {}


@pytest.mark.usefixtures("shared")
def test_without_waiting_a_round_is_a_call(start: Start, run: Path, tmp_path: Path) -> None:
    with shadow_of(tmp_path / "joined", Shard(2, 2)):
        details = start("joined", "1/2", wait=False, **ROUNDS)
    assert details["left"].keys() == {"embed", "label"}
    assert "next round" in details["next"]


SCRIPT = """
from nncift import calculation, cli, embeddings
from nncift.distributed import waiting
from nncift.selection import graphs
calculation.WORTH, calculation.BYTES_A_SECOND, graphs._PAIRS, embeddings.BLOCK = 0.0, float("inf"), 64, 7
waiting.GRACE = 3600.0
cli.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_processes_that_wait_need_one_submission(
    killed: bool, llama_folder: Path, write_pool: Callable[..., Path], tmp_path: Path
) -> None:
    command = [
        sys.executable,
        "-c",
        SCRIPT,
        "run",
        str(write_pool(60)),
        "--model",
        str(llama_folder),
        "--encoder",
        "hash",
        "--labels",
        "60%",
        "--budget",
        "20%",
        "--template",
        "plain",
        "--quiet",
        "--neighbours",
        "8",
        "--optimiser",
        "partition",
    ]
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
    from nncift.cli.main import run_command

    context = run_command.make_context("run", ["pool.jsonl", "--out", "x", "--wait"])
    with pytest.raises(UsageError, match="goes with --shard"):
        run_command.invoke(context)
