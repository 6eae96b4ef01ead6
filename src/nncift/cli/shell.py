"""What every command shares: help in groups, `--json` and `--quiet`, and the progress bar."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import sys
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any

import click

from nncift.errors import NnciftError

if TYPE_CHECKING:
    from nncift.core.result_types import JsonObject, Record

HELP: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
OUTPUT = "Output and help"
GROUPS = ("Rows", "Teacher", "Labels and cost", "Student", "Selection", "Training", "Judging", "Run", "Where it runs")
"""The groups of options in the order of help; others come before, output and help behind."""


class Option(click.Option):
    """An option of a group."""

    def __init__(self, *args: Any, group: str = "Options", **given: Any) -> None:
        super().__init__(*args, **given)
        self.group = group


class Command(click.Command):
    """A command whose help has an example, and its options in groups.

    everyday: names of the options that `--help` shows, all others being for `--help-all`; empty = all.
    """

    def __init__(self, *args: Any, example: str = "", everyday: Collection[str] = (), **given: Any) -> None:
        super().__init__(*args, **{"context_settings": HELP, **given})
        self.example, self.everyday = example, frozenset(everyday)
        self.params.append(
            Option(
                ["--help-all"],
                is_flag=True,
                is_eager=True,
                expose_value=False,
                callback=_show_all,
                group=OUTPUT,
                hidden=not everyday,
                help=f"Show all {sum(isinstance(one, click.Option) for one in self.params) + 2} options.",
            )
        )

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what the command does, and how it is typed."""
        super().format_help_text(ctx, formatter)
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(f"Example: {self.example}")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options group by group: those of every day, or all."""
        groups: dict[str, list[tuple[str, str]]] = {name: [] for name in ("Options", *GROUPS, OUTPUT)}
        for option in self.get_params(ctx):
            record = option.get_help_record(ctx) if isinstance(option, click.Option) else None
            if record is not None and (ctx.meta.get("all") or not self.everyday or self._is_shown(option)):
                groups[option.group if isinstance(option, Option) else OUTPUT].append(record)
        for name, records in groups.items():
            if records:
                with formatter.section(name):
                    formatter.write_dl(records)

    def _is_shown(self, option: click.Parameter) -> bool:
        return not isinstance(option, Option) or option.name in self.everyday or option.name == "help_all"


def _show_all(ctx: click.Context, _: click.Parameter, given: bool) -> None:
    if given:
        ctx.meta["all"] = True
        click.echo(ctx.get_help())
        ctx.exit()


option = functools.partial(click.option, cls=Option)


def command(
    name: str, *, example: str, everyday: Collection[str] = ()
) -> Callable[[Callable[..., Record | JsonObject]], Command]:
    """Make a command of a function that returns what `--json` prints; show tells it whether to print for people."""

    def decorate(function: Callable[..., Record | JsonObject]) -> Command:
        @functools.wraps(function)
        def called(json_: bool, quiet: bool, **given: Any) -> None:
            logging.basicConfig(
                level=logging.ERROR if quiet else logging.WARNING, format="%(message)s", stream=sys.stderr
            )
            _calm_libraries()
            if not json_ and not quiet:
                progress_begins(name)
            try:
                with _memory_named(name):
                    result = function(show=not json_ and not quiet, **given)
            except NnciftError as error:
                if json_ and error.about is not None:
                    click.echo(json.dumps(error.about, allow_nan=False))
                raise
            finally:
                progress_ends()
            if json_:
                # ASCII escapes print on any terminal and in any locale, and mean the same.
                click.echo(json.dumps(result if isinstance(result, dict) else result.to_json(), allow_nan=False))

        quiet = option("--quiet", is_flag=True, group=OUTPUT, help="Print errors only.")
        about = "One JSON object on standard output, nothing else there."
        as_json = option("--json", "json_", is_flag=True, group=OUTPUT, help=about)
        return click.command(name, cls=Command, example=example, everyday=everyday)(as_json(quiet(called)))

    return decorate


@contextlib.contextmanager
def _memory_named(name: str) -> Iterator[None]:
    """Name the command where memory runs out and no stage said so. The module is loaded when that happens, or a cap is set."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError, ImportError, SystemError):
        from nncift.core.memory import named

        with named(f"`nncift {name}`"):
            raise


STAGED = ("run", "demo")
"""Commands that go through the stages of a run."""


def progress(show: bool) -> Any:
    """Return what shows progress of this command: on a terminal a line that is there already, else the silent one."""
    if show and (bars := sys.modules.get("nncift.api.progress_bars")) is not None:
        return bars.of_command()
    from nncift.core.progress import silent

    return silent


def progress_begins(name: str) -> None:
    """Show on a terminal that a command works, before it loads anything that takes a while."""
    if sys.stderr.isatty():
        from nncift.api.progress_bars import start

        start(staged=name in STAGED)


def progress_ends() -> None:
    """Take progress away where any is shown: results and errors have the terminal for themselves."""
    if (bars := sys.modules.get("nncift.api.progress_bars")) is not None:
        bars.finish()


def _calm_libraries() -> None:
    """Keep other libraries from drawing bars of their own, from warning about forks, and from spinning while they wait."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # As `core.threads.wait_passively`, before any library that starts threads is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
