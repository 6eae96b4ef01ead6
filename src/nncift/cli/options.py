"""Options that are made from settings, and those that several commands share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from nncift.cli.shell import option
from nncift.core.declaration import Setting, Settings, declared
from nncift.errors import UsageError

if TYPE_CHECKING:
    from nncift.core.parallel import Executor

Decorated = Callable[..., Any]
WHERE = "Where it runs"
TYPES = {"integer": int, "number": float}


def settings_options(
    kind: type[Settings],
    names: Collection[str] | None = None,
    *,
    without: Collection[str] = (),
    shown: str | None = None,
) -> Callable[[Decorated], Decorated]:
    """Give a command the flags of settings. names: of these alone. shown: the default in words, of all."""
    found = {
        name: one for name, one in declared(kind).items() if (names is None or name in names) and name not in without
    }

    def decorate(function: Decorated) -> Decorated:
        for one in reversed(found.values()):
            function = _option(one, one.default if shown is None else shown)(function)
        return function

    return decorate


def _option(one: Setting, default: str) -> Callable[[Decorated], Decorated]:
    about = one.sentence if not default else f"{one.sentence}  [default: {default}]"
    given: dict[str, Any] = {"group": one.group, "help": about, "metavar": one.metavar}
    if one.kind == "switch":
        # What is on by default has a flag to turn it off, and what is off one to turn it on.
        names = f"{one.flag}/--no-{one.flag[2:]}" if one.default else one.flag
        return option(names, is_flag=True, default=None, **given)
    several = one.kind in ("list", "mapping")
    return option(one.flag, type=TYPES.get(one.kind, str), multiple=several, shell_complete=_completing(one), **given)


def _completing(one: Setting) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]] | None:
    """Return what completes a value in the shell: its choices and those of plug-ins, or files."""

    def complete(_: click.Context, __: click.Parameter, begun: str) -> list[CompletionItem]:
        from importlib import metadata

        known = [*one.choices, *(entry.name for entry in metadata.entry_points(group=one.plugins or " "))]
        return [CompletionItem(value) for value in known if value.startswith(begun)]

    def files(_: click.Context, __: click.Parameter, begun: str) -> list[CompletionItem]:
        return [CompletionItem(begun, type="file")]

    if one.choices:
        return complete
    return files if one.metavar == "FILE" or one.name == "model" else None


def choices(*known: str) -> dict[str, Any]:
    """Return what completes an option of these values."""
    return {"shell_complete": lambda _, __, begun: [CompletionItem(one) for one in known if one.startswith(begun)]}


def chosen(flags: Mapping[str, Any], kind: type[Settings]) -> dict[str, Any]:
    """Return the settings that were given as flags. Raises UsageError for assignments that cannot be read."""
    known = declared(kind)
    found = {name: value for name, value in flags.items() if name in known and value is not None and value != ()}
    for name, one in known.items():
        if one.kind == "mapping" and name in found:
            pairs = [assignment(one.flag, text) for text in found[name]]
            # Columns have names; options have values.
            found[name] = {key: value if name == "map" else typed(key, value) for key, value in pairs}
    return found


def assignment(flag: str, text: str) -> tuple[str, str]:
    """Split what a repeatable flag was given at its first `=`. Raises UsageError where a side is empty."""
    name, sign, value = text.partition("=")
    if not sign or not name or not value:
        example = "NAME=COLUMN, such as prompt=question" if flag == "--map" else "NAME=VALUE, such as projection=4096"
        raise UsageError(f"{flag} {text!r} was given; expected {example}")
    return name, value


def typed(name: str, text: str) -> Any:
    """Return an option's value, read as YAML; a number such as 2e-5 is text to YAML 1.1, and a number to people."""
    from nncift.core.yaml_text import parse_yaml

    try:
        value = parse_yaml(text)
    except ValueError as error:
        raise UsageError(f"--option {name}={text!r} was given, and its value cannot be read as YAML") from error
    if isinstance(value, str) and value[-1:].isdigit():
        with contextlib.suppress(ValueError):
            return float(value)
    return value


def run_argument(function: Decorated) -> Decorated:
    """Give a command the directory of a run as its argument RUN."""
    return click.argument("run", type=click.Path(path_type=Path))(function)


def path_option(name: str, about: str, **given: Any) -> Callable[[Decorated], Decorated]:
    """Return an option that takes a path."""
    return option(name, type=click.Path(path_type=Path), help=about, **{"group": "Run", **given})


def verbose_option(function: Decorated) -> Decorated:
    """Give a command `--verbose`, which prints all tables that the answer rests on."""
    return option("--verbose", is_flag=True, group="Run", help="Print all tables that the answer rests on.")(function)


def offline_option(function: Decorated) -> Decorated:
    """Give a command `--offline`, which takes effect before any library that knows the hub is loaded."""

    def check_hub_allowed(_: click.Context, __: click.Parameter, given: bool) -> None:
        if given:
            from nncift.models.loading import go_offline

            go_offline()

    about = "Use local files and the local cache alone; refuse what is not there."
    given: dict[str, Any] = {"is_flag": True, "is_eager": True, "expose_value": False}
    return option("--offline", callback=check_hub_allowed, help=about, group=WHERE, **given)(function)


def fetch_option(function: Decorated) -> Decorated:
    """Give a command `--fetch`, the yes to downloads that a file asks for."""
    about = "Fetch from the hub what the files given name and is not at hand; without it that is refused."
    return option("--fetch", is_flag=True, help=about, group=WHERE)(function)


def memory_option(function: Decorated) -> Decorated:
    """Give a command `--max-mem`, a cap that the system holds this process to."""

    def hold(_: click.Context, __: click.Parameter, given: str | None) -> None:
        if given is not None:
            from nncift.core.memory import cap, parse_memory

            cap(parse_memory(given))

    about = "Memory that this process may take, such as 8G; what needs more is refused."
    given: dict[str, Any] = {"metavar": "SIZE", "is_eager": True, "expose_value": False}
    return option("--max-mem", callback=hold, help=about, group=WHERE, **given)(function)


def engine_options(function: Decorated) -> Decorated:
    """Give a command the flags that say whose processes do its tasks; see `executor_from`."""
    for made in reversed(
        (
            option(
                "--engine",
                default="local",
                group=WHERE,
                help="Who computes: local, or ray, the workers of a cluster (extra ray).  [default: local]",
                **choices("local", "ray"),
            ),
            option(
                "--address",
                group=WHERE,
                help="Ray cluster to use: auto, HOST:PORT or ray://HOST:PORT.  [default: a local one]",
            ),
            option(
                "--workers",
                type=int,
                group=WHERE,
                help="Workers of --engine ray.  [default: one per CPU, or as GPUs allow]",
            ),
            option(
                "--gpus-per-worker",
                type=float,
                group=WHERE,
                help="GPUs of a worker of --engine ray.  [default: 1, if any]",
            ),
        )
    ):
        function = made(function)
    return function


def executor_from(flags: Mapping[str, Any], shard: str | None = None) -> Executor:
    """Return the executor that the flags of `engine_options` stand for."""
    from nncift.distributed.start import executor_of

    return executor_of(
        flags["engine"], shard, **{name: flags[name] for name in ("address", "workers", "gpus_per_worker")}
    )
