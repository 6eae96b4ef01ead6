"""`nncift tune`, as a user types it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nncift
from nncift.teachers.delift_se import Similarity

pytestmark = pytest.mark.usefixtures("hastened")
Call = Callable[..., Any]


@pytest.fixture
def command(tmp_path: Path, write_pool: Callable[..., Path], llama_folder: Path) -> list[Any]:
    """Return a command over a finished run."""
    run = tmp_path / "run"
    nncift.run(write_pool(40), teacher=Similarity("hash"), out=run, encoder="hash", labels=0.5, budget=6, gate=False)
    test = write_pool(6, "test.jsonl", start=77)
    return [
        "tune",
        run,
        "--test",
        test,
        "--model",
        llama_folder,
        "--steps",
        "2",
        "--batch",
        "2",
        "--max-new-tokens",
        "3",
        "--seeds",
        "1",
        "--device",
        "cpu",
    ]


def test_it_prints_tables_and_leaves_files(call: Call, command: list[Any], tmp_path: Path) -> None:
    found = call(
        *command,
        "--arms",
        "selected,none",
        "--metrics",
        "loss,embedding",
        "--method",
        "lora",
        "--out",
        tmp_path / "out",
    )
    assert found.code == 0, found.err
    for text in ("(lora)", "Equal steps", "Equal tokens", "selected", "none", "One seed: the intervals"):
        assert text in found.out
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"tune.json", "tune.md", "tune.html", "cells"}


def test_json_is_what_is_stored_and_nothing_else_is_printed(call: Call, command: list[Any]) -> None:
    found = call(
        *command, "--arms", "selected,random,none", "--equal", "steps", "--budget", "4", "--budget", "5", "--json"
    )
    assert found.code == 0, found.err
    summary = json.loads(found.out)
    assert [(result["how"], result["budget"], result["rows"]) for result in summary["results"]] == [
        ("steps", "4", 4),
        ("steps", "5", 5),
    ]
    assert json.loads((Path(command[1]) / "tune" / "tune.json").read_text()) == summary


def test_questions_are_asked_too(call: Call, command: list[Any], tmp_path: Path) -> None:
    questions = tmp_path / "questions.jsonl"
    rows = [
        {"question": f"sort the {word}", "choices": ["red", "blue"], "answer": index % 2}
        for index, word in enumerate("dog cat bird sky sea tree".split())
    ]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = call(
        *command,
        "--arms",
        "selected,none",
        "--metrics",
        "choice",
        "--questions",
        questions,
        "--in-context",
        "1",
        "--json",
    )
    assert found.code == 0, found.err
    summary = json.loads(found.out)
    for result in summary["results"]:
        one = result["comparisons"][0]
        assert (one["metric"], one["items"]) == ("choice", 6)
        assert result["arms"]["none"]["metrics"]["choice"]["failed"] == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--qlora", "--method", "whole"], "--qlora and --method whole"),
        (["--arms", "selected,every"], "there is no arm 'every'"),
        (["--equal", "epochs"], "setting 'equal'"),
        (["--judge", "model"], "NAME=VALUE"),
    ],
)
def test_wrong_usage_is_exit_code_2(call: Call, command: list[Any], flags: list[str], message: str) -> None:
    found = call(*command, *flags)
    assert found.code == 2
    assert message in " ".join(found.err.split())


def test_what_a_judge_cannot_grade_is_counted(call: Call, command: list[Any], gpt2_folder: Path) -> None:
    # Its context of 160 tokens does not hold the rubric.
    found = call(
        *command,
        "--arms",
        "selected,none",
        "--equal",
        "steps",
        "--metrics",
        "loss,judge",
        "--judge",
        f"model={gpt2_folder}",
        "--judge",
        "device=cpu",
        "--json",
    )
    assert found.code == 0, found.err
    (result,) = json.loads(found.out)["results"]
    for arm in ("selected", "none"):
        summary = result["arms"][arm]["metrics"]["judge"]
        assert (summary["mean"], summary["failed"]) == (None, 6)
        assert "too long" in summary["first_failure"]
    (judged,) = [one for one in result["comparisons"] if one["metric"] == "judge"]
    assert (judged["items"], judged["left_out"], judged["interval"]) == (0, 6, None)
    assert judged["verdict"] == "no significant difference"
