"""The commands of everyday use, as a user types them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

Call = Callable[..., Any]


def test_inspect_tells_people_and_programs(call: Call, write_pool: Callable[..., Path], tmp_path: Path) -> None:
    pool = write_pool(30)
    with pool.open("a") as stream:
        stream.write('{"text": 1}\n')
    found = call("inspect", pool)
    assert found.code == 0
    assert "31 rows, 30 usable (30 alpaca), 1 rejected" in found.out
    assert "1 x no known format, line 31" in found.out
    summary = json.loads(call("inspect", pool, "--json").out)
    assert summary["files"][0]["formats"] == {"alpaca": 30}


def test_print_config_prints_flags_over_the_file(call: Call, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("labels: 9%\nbudget: 10\n")
    found = call("run", "pool.jsonl", "--config", file, "--labels", "7%", "--print-config")
    assert found.code == 0
    read = yaml.safe_load(found.out)
    assert (read["labels"], read["budget"], read["pool"]) == ("7%", "10", ["pool.jsonl"])
    assert json.loads(call("run", "--print-config", "--json").out)["labels"] == "5%"
    assert call("run", "--labels", "x", "--lables", "y", "--print-config").code == 2


def test_inspect_is_a_gate_against_test_rows(call: Call, write_pool: Callable[..., Path], tmp_path: Path) -> None:
    pool, tests = write_pool(30), tmp_path / "tests.jsonl"
    tests.write_text(pool.read_text().split("\n")[7] + "\n")
    found = call("inspect", pool, "--against", tests)
    assert found.code == 5
    assert "exact" in found.out
    assert "test rows are in" in found.err
    found = call("inspect", pool, "--against", tests, "--json")
    assert (found.code, json.loads(found.out)["contamination"]["tests"]) == (5, 1)
    tests.write_text('{"instruction": "Entirely different words", "output": "indeed"}\n')
    assert call("inspect", pool, "--against", tests).code == 0
