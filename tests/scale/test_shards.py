"""Shards: in any order, joined, they are the run of one process to the byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nncift import encode
from nncift.errors import ResourceError, UsageError
from nncift.rundir import RunDir
from nncift.scale.shards import Shard, shadow_of
from nncift.config import RunSettings

from .conftest import content

Start = Callable[..., Any]
TEACHERS = {
    "pairs": {},
    "active": {"plan": "active"},
    "auto": {"labels": "auto", "max_labels": "30%"},
    "probe": {"features": "probe"},
    "less": {"teacher": "less", "labels": "30%", "option": {"projection": 32, "rank": 2, "epochs": 2}},
    "selectit": {"teacher": "ifd", "labels": "30%"},
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a few rows be many blocks."""
    monkeypatch.setattr(encode, "BLOCK", 7)
    monkeypatch.setattr("nncift.rows.CHUNK_ROWS", 3)


@pytest.mark.parametrize("case", TEACHERS)
def test_joined_shards_are_the_run_of_one_process(case: str, start: Start, tmp_path: Path) -> None:
    start("alone", **TEACHERS[case])
    rounds = 0
    while not (told := start("joined", "1/3", **TEACHERS[case]))["finished"]:
        told = [start("joined", shard, **TEACHERS[case]) for shard in ("3/3", "2/3")][-1]
        rounds += 1
        assert rounds < 9
    done = start("joined", **TEACHERS[case])
    assert content(tmp_path / "joined") == content(tmp_path / "alone")
    assert done.warnings == start("alone", **TEACHERS[case]).warnings
    assert not (tmp_path / "joined" / "shards").exists()
