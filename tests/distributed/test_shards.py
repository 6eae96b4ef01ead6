"""Shards: in any order, joined, they are the run of one process to the byte."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from nncift import config
from nncift.distributed.piece_cache import PieceCache
from nncift.distributed.shards import Shard, ShardExecutor
from nncift.errors import ResourceError, UsageError
from nncift.labels import PairLabelStore
from nncift.storage.run_directory import RunDir
from nncift.teachers import Chunk, ChunkLabels
from nncift.teachers.delift import Delift

from .conftest import content

Start = Callable[..., Any]
LESS: Mapping[str, Any] = {"teacher": "less", "labels": "30%", "option": {"projection": 32, "rank": 2, "epochs": 2}}
SLOWER: Mapping[str, Mapping[str, Any]] = {
    "active": {"plan": "active"},
    "auto": {"labels": "auto", "max_labels": "30%"},
    "probe": {"features": "probe", "probe_share": "50%"},
    "ifd": {"teacher": "ifd", "labels": "30%"},
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a few rows be many blocks."""
    monkeypatch.setattr("nncift.models.embedding_cache.BLOCK", 7)
    monkeypatch.setattr("nncift.labels.row_labels.CHUNK_ROWS", 3)


def flip(file: Path, at: int) -> None:
    """Change one bit of a file."""
    data = bytearray(file.read_bytes())
    data[at] ^= 4
    file.write_bytes(data)


def test_what_is_missing_damaged_or_foreign_is_named_and_made_again(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start("alone")
    label, asked = Delift.label, []

    def counted(teacher: Delift, chunk: Chunk) -> ChunkLabels:
        asked.append(chunk)
        return label(teacher, chunk)

    monkeypatch.setattr(Delift, "label", counted)
    first = start("joined", "3/3")
    assert 0 < first["stages"]["label"]["pieces"] == len(asked)
    assert start("joined", "3/3")["stages"]["label"]["pieces"] == 0
    start("joined", "1/3")
    start("joined", "2/4", variant="logprob")
    pieces = tmp_path / "joined/pieces"
    ((sound,), (damaged,)) = (list(pieces.glob(f"label-*/{of}-*")) for of in ("1-of-3", "3-of-3"))
    (cut,) = pieces.glob("embed-*/1-of-3-*")
    flip(damaged, damaged.stat().st_size - 1)
    os.truncate(cut, cut.stat().st_size - 1)
    (foreign,) = pieces.glob("label-*/2-of-4-*")
    asked.clear()
    done = start("joined")
    assert content(tmp_path / "joined") == content(tmp_path / "alone")
    for file, why in (
        (damaged, "does not match its checksum"),
        (cut, "damaged"),
        (foreign.parent, "another model"),
    ):
        assert any(str(file) in note and why in note for note in done.warnings), (why, done.warnings)
    # A third was missing, and a third shared a file that was damaged.
    assert len(asked) == first["left"]["label"] // 2 + first["stages"]["label"]["pieces"]
    assert foreign.exists()
    assert not sound.exists()


@pytest.mark.parametrize("kept", [3, None])
def test_joining_that_was_stopped_goes_on_without_a_word_and_leaves_nothing(
    kept: int | None, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kept: labels of shards that were on disk; None = all, and the stage's mark."""
    for shard in ("1/2", "2/2"):
        start("joined", shard)
    keep, came = PairLabelStore.write, []

    def stopping(store: PairLabelStore, *given: Any) -> None:
        keep(store, *given)
        came.append(given)
        if len(came) == kept:
            raise KeyboardInterrupt

    def stopped(pieces: PieceCache, finished: Any, basis: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PairLabelStore, "write", stopping)
        patch.setattr(PieceCache, "tidy", stopped)
        with pytest.raises(KeyboardInterrupt):
            start("joined")
    assert list((tmp_path / "joined/pieces").rglob("*.safetensors"))
    done = start("joined")
    assert not [note for note in done.warnings if "piece" in note]
    assert not (tmp_path / "joined/pieces").exists()


def test_shards_of_less_train_one_warm_up(start: Start, tmp_path: Path) -> None:
    start("alone", **LESS)
    for shard in ("2/2", "1/2"):
        details = start("joined", shard, **LESS)
    assert details["finished"]
    warm = tmp_path / "joined/labels/teacher"
    before = {file: file.stat().st_mtime_ns for file in warm.rglob("*.safetensors")}
    done = start("joined", **LESS)
    assert done.ledger["stages"]["label"]["seconds"] > details["stages"]["label"]["seconds"] > 0
    assert done.ledger["stages"]["embed"]["seconds"] > details["stages"]["embed"]["seconds"] > 0
    assert before
    assert {file: file.stat().st_mtime_ns for file in warm.rglob("*.safetensors")} == before
    assert content(tmp_path / "joined") == content(tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOWER)
def test_shards_go_round_by_round(case: str, start: Start, tmp_path: Path) -> None:
    start("alone", **SLOWER[case])
    calls = 0
    while not start("joined", f"{calls % 3 + 1}/3", **SLOWER[case])["finished"]:
        calls += 1
        assert calls < 30
    done = start("joined", **SLOWER[case])
    assert content(tmp_path / "joined") == content(tmp_path / "alone")
    assert not any("piece" in note for note in done.warnings)
    assert not (tmp_path / "joined/pieces").exists()


@pytest.mark.slow
def test_ray_by_the_command_line(llama_folder: Path, write_pool: Callable[..., Path], tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "nncift",
        "run",
        str(write_pool(60)),
        "--model",
        str(llama_folder),
        "--encoder",
        "lm",
        "--labels",
        "40%",
        "--budget",
        "20%",
        "--template",
        "plain",
        "--quiet",
    ]
    subprocess.run([*command, "--out", str(tmp_path / "alone")], check=True)
    elsewhere = {**os.environ, "NNCIFT_CACHE": str(tmp_path / "cache")}
    subprocess.run(
        [*command, "--out", str(tmp_path / "ray"), "--engine", "ray", "--workers", "2"], check=True, env=elsewhere
    )
    assert content(tmp_path / "ray") == content(tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--teacher", "less", "--option", "projection=32", "--option", "rank=2")])
def test_shards_work_at_once(
    more: tuple[str, ...], llama_folder: Path, write_pool: Callable[..., Path], tmp_path: Path
) -> None:
    command = [
        sys.executable,
        "-m",
        "nncift",
        "run",
        str(write_pool(60)),
        "--model",
        str(llama_folder),
        "--encoder",
        "hash",
        "--labels",
        "40%",
        "--budget",
        "20%",
        "--template",
        "plain",
        "--quiet",
        *more,
    ]
    subprocess.run([*command, "--out", str(tmp_path / "alone")], check=True)
    joined = [*command, "--out", str(tmp_path / "joined")]
    elsewhere = {**os.environ, "NNCIFT_CACHE": str(tmp_path / "cache")}
    running = [subprocess.Popen([*joined, "--shard", f"{number}/3"], env=elsewhere) for number in (1, 2, 3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    subprocess.run(joined, check=True, env=elsewhere)
    assert content(tmp_path / "joined") == content(tmp_path / "alone")


KILLED = """
import os, signal
from nncift.cli.main import main
from nncift.distributed import piece_cache

write, written = piece_cache.write_arrays, []
piece_cache.BYTES = 1

def killed(path, arrays):
    write(path, arrays)
    written.append(path)
    if len(written) == 4:
        os.kill(os.getpid(), signal.SIGKILL)

piece_cache.write_arrays = killed
main()
"""


@pytest.mark.slow
def test_a_killed_shard_goes_on_where_it_was(
    llama_folder: Path, write_pool: Callable[..., Path], tmp_path: Path
) -> None:
    plain, killed = [sys.executable, "-m", "nncift"], [sys.executable, "-c", KILLED]
    command = [
        "run",
        str(write_pool(120)),
        "--model",
        str(llama_folder),
        "--encoder",
        "hash",
        "--labels",
        "80%",
        "--budget",
        "20%",
        "--template",
        "plain",
        "--quiet",
    ]
    subprocess.run([*plain, *command, "--out", str(tmp_path / "alone")], check=True)
    elsewhere = {**os.environ, "NNCIFT_CACHE": str(tmp_path / "cache")}
    shard = [*command, "--out", str(tmp_path / "joined"), "--shard", "1/2"]
    halted = subprocess.run([*killed, *shard], check=False, env=elsewhere)
    assert halted.returncode == -signal.SIGKILL
    assert list((tmp_path / "joined/pieces").glob("label-*/1-of-2-*"))
    again = subprocess.run([*plain, *shard, "--json"], check=True, env=elsewhere, capture_output=True, text=True)
    done = json.loads(again.stdout)["stages"]["label"]
    assert done["before"] > 0
    assert done["pieces"] > 0
    subprocess.run([*plain, *shard[:-2]], check=True, env=elsewhere)
    assert content(tmp_path / "joined") == content(tmp_path / "alone")


def test_of_shards_that_end_together_the_last_finds_nothing_left(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one does all of its pieces while this one does its first."""
    start("alone")
    do = ShardExecutor._do
    others: list[Any] = []

    def beside(executor: ShardExecutor, *given: Any) -> None:
        do(executor, *given)
        if not others:
            others.append(None)
            others.append(start("joined", "2/2"))

    monkeypatch.setattr(ShardExecutor, "_do", beside)
    details = start("joined", "1/2")
    assert others[1]["left"].keys() == {"label"}
    assert details["left"] == {}
    assert details["finished"]
    start("joined")
    assert content(tmp_path / "joined") == content(tmp_path / "alone")


def test_locks_keep_apart_what_excludes_each_other(tmp_path: Path) -> None:
    run, settings = tmp_path / "run", config.resolve({})

    def shard(number: int) -> Any:
        return ShardExecutor(Shard(number, 3)).open(run, settings)

    with shard(1), shard(2):
        with pytest.raises(ResourceError, match="shard 2/3"), shard(2):
            pass
        with pytest.raises(ResourceError, match="another process"), RunDir(run, settings):
            pass
    with RunDir(run, settings), pytest.raises(ResourceError, match="without --shard"), shard(1):
        pass


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0", "-1/3", ""])
def test_a_shard_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="i from 1 to k"):
        Shard.parse(text)
    assert str(Shard.parse("2/3")) == "2/3"
