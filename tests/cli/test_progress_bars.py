"""What a command shows while it works."""

import io
import sys
from collections.abc import Iterator

import pytest
from rich.console import Console

from nncift.api import progress_bars
from nncift.api.progress_bars import STAGES, CommandBars, stage_of
from nncift.cli import shell
from nncift.core.progress import silent


@pytest.fixture
def bars() -> Iterator[CommandBars]:
    made = CommandBars(staged=True, console=Console(file=io.StringIO(), force_terminal=True))
    yield made
    made.stop()


def shown(bars: CommandBars) -> tuple[str, float | None, float]:
    (task,) = bars._display.tasks
    return task.description, task.total, task.completed


def test_something_is_shown_before_any_work_begins(bars: CommandBars) -> None:
    assert shown(bars) == ("working", None, 0)


def test_work_is_numbered_among_the_stages_of_a_run(bars: CommandBars) -> None:
    with bars("labelling pairs", 7) as advance:
        advance(3)
        assert shown(bars) == (f"4/{len(STAGES)} labelling pairs", 7, 3)
    assert shown(bars) == ("working", None, 0)


def test_work_inside_of_work_gives_its_place_back(bars: CommandBars) -> None:
    with bars("selecting rows", 0):
        with bars("predicting all pairs", 2) as advance:
            advance(1)
            assert shown(bars)[1:] == (2, 1)
        assert shown(bars) == (f"6/{len(STAGES)} selecting rows", None, 0)


def test_what_is_no_stage_has_no_number(bars: CommandBars) -> None:
    assert stage_of("tuning and judging") is None
    with bars("tuning and judging", 1):
        assert shown(bars)[0] == "tuning and judging"


def test_the_stages_are_in_the_order_of_work() -> None:
    said = ("checking rows", "embedding rows", "probing rows", "measuring rows", "fitting the student")
    assert [stage_of(what) for what in (*said, "selecting rows", "writing the report")] == list(range(1, 8))


def test_nobody_is_shown_anything_where_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    shell.progress_begins("run")
    assert shell.progress(True) is silent
    assert progress_bars.of_command() is silent


def test_a_models_libraries_draw_no_bars_and_keep_their_setting() -> None:
    from transformers.utils import logging

    from nncift.models.quiet import without_bars

    logging.enable_progress_bar()
    with without_bars():
        assert not logging.is_progress_bar_enabled()
    assert logging.is_progress_bar_enabled()
