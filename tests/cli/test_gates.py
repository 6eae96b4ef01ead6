"""Gates and growing labels, as a user types them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Call = Callable[..., Any]
pytestmark = pytest.mark.usefixtures("hastened")


def test_a_gate_that_is_not_reached_is_exit_code_5(
    call: Call, write_pool: Callable[..., Path], tmp_path: Path, llama_folder: Path
) -> None:
    command = [
        "run",
        write_pool(40),
        "--model",
        llama_folder,
        "--encoder",
        "hash",
        "--budget",
        "8",
        "--labels",
        "80",
        "--teacher",
        "delift",
        "--out",
        tmp_path / "run",
        "--quiet",
        "--json",
    ]
    found = call(*command, "--min-spearman", "1", "--max-labels", "120")
    assert found.code == 5
    assert found.out == ""
    assert "Traceback" not in found.err
    said = " ".join(found.err.split())
    assert "--min-spearman 1 was asked for and the Spearman correlation on unseen items is" in said
    assert "with 120 labels to learn from" in said
    assert not (tmp_path / "run" / "subset.jsonl").exists()
    # The gate is the run's until another is given.
    command[command.index("80")] = "120"
    assert call(*command).code == 5
    # Without the gate, from the labels that are there.
    again = call(*command, "--min-spearman", "-1")
    assert again.code == 0
    summary = json.loads(again.out)
    assert (summary["selected"], summary["labels"]["train"]) == (8, 120)


def test_auto_takes_no_number_and_says_how_it_grew(
    call: Call, write_pool: Callable[..., Path], tmp_path: Path, llama_folder: Path
) -> None:
    found = call(
        "run",
        write_pool(40),
        "--model",
        llama_folder,
        "--encoder",
        "hash",
        "--budget",
        "8",
        "--labels",
        "auto",
        "--max-labels",
        "160",
        "--teacher",
        "delift",
        "--plan",
        "active",
        "--student",
        "towers",
        "--out",
        tmp_path / "run",
        "--quiet",
        "--json",
    )
    assert found.code == 0, found.err
    summary = json.loads(found.out)
    assert [step["labels"] for step in summary["growth"]] == [80, 160]
    assert (summary["plan"], summary["student"], summary["labels"]["train"]) == ("active", "towers", 160)
    kept = json.loads((tmp_path / "run" / "growth.json").read_text())
    assert kept == summary["growth"]
