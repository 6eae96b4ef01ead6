"""Every promise of SECURITY.md names the tests that hold it."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_promise_names_tests_that_exist() -> None:
    table = [line for line in (ROOT / "SECURITY.md").read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    promises = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table[2:]]
    assert len(promises) > 15
    for promise in promises:
        assert len(promise) == 4, promise
        named = re.findall(r"`(tests/[^`]+)`", promise[3])
        assert named, promise
        for name in named:
            assert "def test_" in (ROOT / name).read_text(encoding="utf-8"), name
