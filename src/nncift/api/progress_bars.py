"""Progress for people, on a terminal and in a notebook, on standard error; silent elsewhere.

The command line shows one line from the first moment to the last, so that nothing is silent: a spinner, what is being done, its
number among the stages of a run, how much of it is done, the time since the command began, and the time that is left.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from nncift.core import progress as library
from nncift.core.progress import Advance

STAGES = (
    ("checking rows",),
    ("embedding",),
    ("probing",),
    ("labelling", "measuring", "preparing"),
    ("fitting",),
    ("predicting", "selecting"),
    ("writing the report",),
)
"""What the stages of a run are called: the beginnings of what is said of their work, in the order of work."""

WORKING = "working"


def stage_of(what: str) -> int | None:
    """Return the number of the stage that work belongs to, from 1; None for what is no stage of a run."""
    return next((number for number, names in enumerate(STAGES, 1) if what.startswith(names)), None)


class _Count(ProgressColumn):
    """How much is done; nothing where it is not known how much there is."""

    def render(self, task: Task) -> Text:
        return Text("" if not task.total else f"{int(task.completed):,}/{int(task.total):,}")


class _Since(ProgressColumn):
    """The time since the command began."""

    def __init__(self, began: float) -> None:
        super().__init__()
        self.began = began

    def render(self, task: Task) -> Text:
        minutes, seconds = divmod(int(monotonic() - self.began), 60)
        return Text(f"{minutes}:{seconds:02d} so far")


def _display(began: float, console: Console | None = None) -> Progress:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        _Count(),
        _Since(began),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    return Progress(*columns, console=console or Console(stderr=True), transient=True, refresh_per_second=4)


class CommandBars:
    """What a command shows from its start until `stop`. staged: it goes through the stages of a run."""

    def __init__(self, *, staged: bool = False, console: Console | None = None) -> None:
        self._display, self._staged = _display(monotonic(), console), staged
        self._task = self._display.add_task(WORKING, total=None)
        self._display.start()
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self, what: str, total: int) -> Iterator[Advance]:
        """Show work in the place of the one before; work inside of other work gives its place back."""
        before = self._display.tasks[0]
        name, size, done = before.description, before.total, before.completed
        self._show(self._named(what), total or None)
        try:
            yield lambda steps: self._display.advance(self._task, steps)
        finally:
            self._show(name, size, done)

    def stop(self) -> None:
        """Take the line away; what comes after shows nothing."""
        self._display.stop()

    def _named(self, what: str) -> str:
        number = stage_of(what) if self._staged else None
        return what if number is None else f"{number}/{len(STAGES)} {what}"

    def _show(self, name: str, total: float | None, completed: float = 0) -> None:
        with self._lock:
            self._display.reset(self._task, description=name, completed=int(completed))
            # A reset keeps the total where the new one is unknown.
            self._display.tasks[0].total = total


_running: list[CommandBars] = []


def start(*, staged: bool = False) -> None:
    """Begin to show progress of a command; see `finish`."""
    finish()
    _running.append(CommandBars(staged=staged))


def of_command() -> library.Progress:
    """Return what the command at hand shows; the silent one where that is nothing."""
    return _running[-1] if _running else library.silent


def finish() -> None:
    """Take away what a command shows, before it prints its result or its error."""
    while _running:
        _running.pop().stop()


@contextmanager
def bar(what: str, total: int) -> Iterator[Advance]:
    """Show a bar with the time since it began and the time left on standard error."""
    with _display(monotonic()) as progress:
        task = progress.add_task(what, total=total or None)
        yield lambda steps: progress.advance(task, steps)


def for_people() -> library.Progress:
    """Return bars where somebody looks, a terminal or a notebook, and silence where nobody does."""
    return bar if sys.stderr.isatty() or "ipykernel" in sys.modules else library.silent
