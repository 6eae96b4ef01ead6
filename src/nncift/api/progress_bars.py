"""Progress bars for people: on a terminal and in a notebook, on standard error; silent elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nncift.core import progress as library
from nncift.core.progress import Advance


@contextmanager
def bar(what: str, total: int) -> Iterator[Advance]:
    """Show a bar with the time left on standard error."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda steps: progress.advance(task, steps)


def for_people() -> library.Progress:
    """Return bars where somebody looks, a terminal or a notebook, and silence where nobody does."""
    return bar if sys.stderr.isatty() or "ipykernel" in sys.modules else library.silent
