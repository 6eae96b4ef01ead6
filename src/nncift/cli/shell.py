"""What every command shares: `--json`, `--quiet`, assignments such as `NAME=COLUMN`, and the progress bar."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click

from nncift.errors import NnciftError, UsageError


def command(function: Callable[..., dict[str, Any]]) -> Callable[..., Any]:
    """Give a command `--json` and `--quiet`, and print what it returns when `--json` is set."""

    def shell(json_: bool, quiet: bool, **given: Any) -> None:
        logging.basicConfig(level=logging.ERROR if quiet else logging.WARNING, format="%(message)s", stream=sys.stderr)
        _calm_libraries()
        try:
            with _memory_named(function.__name__.removesuffix("_command")):
                summary = function(show=not json_ and not quiet, **given)
        except NnciftError as error:
            if json_ and error.about is not None:
                click.echo(json.dumps(error.about, allow_nan=False))
            raise
        if json_:
            # ASCII escapes print on any terminal and in any locale, and mean the same.
            click.echo(json.dumps(summary, allow_nan=False))

    shell.__doc__ = function.__doc__
    shell.__name__ = function.__name__
    quiet = click.option("--quiet", is_flag=True, help="Print errors only.")
    as_json = click.option(
        "--json", "json_", is_flag=True, help="One JSON object on standard output, nothing else there."
    )
    return as_json(quiet(shell))


@contextlib.contextmanager
def _memory_named(name: str) -> Iterator[None]:
    """Name the command where memory runs out and no stage said so. The module is loaded when that happens, or a cap is set."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError, ImportError, SystemError):
        from nncift.core.memory import named

        with named(f"`nncift {name}`"):
            raise


def offline_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `--offline`, which takes effect before any library that knows the hub is loaded."""

    def check_hub_allowed(_: click.Context, __: click.Parameter, given: bool) -> None:
        if given:
            from nncift.models.loading import go_offline

            go_offline()

    return click.option(
        "--offline",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=check_hub_allowed,
        help="Use local files and the local cache alone; refuse what is not there.",
    )(function)


def memory_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `--max-mem`, a cap that the system holds this process to."""

    def hold(_: click.Context, __: click.Parameter, given: str | None) -> None:
        if given is not None:
            from nncift.core.memory import cap, parse_memory

            cap(parse_memory(given))

    return click.option(
        "--max-mem",
        metavar="SIZE",
        is_eager=True,
        expose_value=False,
        callback=hold,
        help="Memory that this process may take, such as 8G: what needs more is refused.",
    )(function)


def engine_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the flags that say whose processes do its pieces."""
    for option in reversed(
        (
            click.option(
                "--engine", default="local", show_default=True, help="local, or ray: workers of a cluster (extra ray)."
            ),
            click.option(
                "--address", help="Ray cluster to use: auto, HOST:PORT or ray://HOST:PORT.  [default: a local one]"
            ),
            click.option(
                "--workers", type=int, help="Workers of --engine ray.  [default: one per CPU, or as GPUs allow]"
            ),
            click.option(
                "--gpus-per-worker", type=float, help="GPUs of a worker of --engine ray.  [default: 1, if any]"
            ),
        )
    ):
        function = option(function)
    return function


def selection_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the flags that say what a selection has to keep."""
    for option in reversed(
        (
            click.option("--budget", help="Share (30%), number of rows, or tokens (2Mtok) to select.  [default: 30%]"),
            click.option(
                "--quota",
                multiple=True,
                metavar="COLUMN:min=5%,max=40%",
                help="Bounds for each value of a column (source: the file), or for one: COLUMN=VALUE:...; may be repeated.",
            ),
            click.option("--include", help="File of ids, one a line, that must be selected."),
            click.option("--exclude", help="File of ids, one a line, that must not be selected."),
            click.option(
                "--neighbours",
                type=int,
                help="Select on a graph of so many nearest rows each (32 to 64), where all pairs would not fit in memory.",
            ),
            click.option(
                "--optimiser",
                help="With --neighbours: lazy, stochastic, or partition (in parts, then among their choices).  [default: lazy]",
            ),
            click.option(
                "--dedup", help="exact or near:0.95: remove duplicates before selecting.  [default: keep them]"
            ),
        )
    ):
        function = option(function)
    return function


def assignment(flag: str, text: str) -> tuple[str, str]:
    """Split what a repeatable flag was given at its first `=`. Raises UsageError where a side is empty."""
    name, sign, value = text.partition("=")
    if not sign or not name or not value:
        example = "NAME=COLUMN, such as prompt=question" if flag == "--map" else "NAME=VALUE, such as projection=4096"
        raise UsageError(f"{flag} {text!r} was given; expected {example}")
    return name, value


def typed(name: str, text: str) -> Any:
    """Return an option's value, read as YAML; a number such as 2e-5 is text to YAML 1.1, and a number to people."""
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"--option {name}={text!r} was given, and its value cannot be read as YAML") from error
    if isinstance(value, str) and value[-1:].isdigit():
        with contextlib.suppress(ValueError):
            return float(value)
    return value


def progress(show: bool) -> Any:
    """Return the bar for a terminal, else the silent one."""
    if show and sys.stderr.isatty():
        from nncift.cli.display import bar

        return bar
    from nncift.core.progress import silent

    return silent


def _calm_libraries() -> None:
    """Keep other libraries from drawing bars of their own and from warning about forks."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
