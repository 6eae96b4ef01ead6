"""Killed and damaged runs, by the harness of `benchmarks/reliability.py`, which forks and so needs a process of its own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HARNESS = Path(__file__).parents[2] / "benchmarks" / "reliability.py"


def measured(*flags: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, HARNESS, "--json", *flags], capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_killed_run_goes_on_to_the_same_bytes() -> None:
    found = measured("--quick", "--only", "kills", "--scenario", "loss")
    assert found["wrong"] == []
    stages = {kill["stage"] for kill in found["kills"]}
    assert len(found["kills"]) == 3
    assert len(stages) > 1
    assert "finished before the kill" not in stages


@pytest.mark.slow
def test_a_dozen_kills_go_on_to_the_same_bytes() -> None:
    found = measured("--quick", "--only", "kills")
    assert found["wrong"] == []
    assert len(found["kills"]) >= 12
    assert sum(kill["stage"] != "finished before the kill" for kill in found["kills"]) >= 12


@pytest.mark.slow
def test_two_hundred_kills_go_on_to_the_same_bytes() -> None:
    found = measured("--only", "kills")
    assert found["wrong"] == []
    assert sum(kill["stage"] != "finished before the kill" for kill in found["kills"]) >= 200


@pytest.mark.slow
def test_no_damaged_file_is_silent() -> None:
    found = measured("--only", "files")
    assert found["wrong"] == []
    assert len(found["faults"]) >= 500


@pytest.mark.slow
@pytest.mark.parametrize("part", ["disk", "processes"])
def test_full_disks_read_only_folders_and_two_processes(part: str) -> None:
    found = measured("--only", part)
    if found["skipped"]:
        pytest.skip("; ".join(found["skipped"]))
    assert found["wrong"] == []
    assert found["faults"]
