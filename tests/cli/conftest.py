"""Run the command line in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from nncift.cli import main as cli


class Outcome(NamedTuple):
    """What a command left."""

    code: int
    out: str
    err: str


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Return a function that runs the command line with these arguments."""

    def run(*arguments: Any) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["nncift", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        found = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return Outcome(caught.value.code, found.out, found.err)

    return run
