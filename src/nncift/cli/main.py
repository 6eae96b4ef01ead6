"""The command line: one file per command, loaded when it is used; every way to fail has its exit code (docs/cli.md)."""

from __future__ import annotations

import difflib
import importlib
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import click

from nncift import __version__
from nncift.cli.shell import HELP
from nncift.core.texts import first_line
from nncift.errors import NnciftError, ResourceError

COMMANDS = {
    "inspect": "Show formats, counts, problems with their lines, token statistics and duplicates of FILES.",
    "run": "Select rows of POOL files that are worth training on.",
    "evaluate": "Measure the student of RUN: quadrants beside baselines, what more labels gave, and truth by training.",
    "explain": "Explain why a row of RUN was chosen or dropped, and what would have to change.",
    "select": "Select again from a finished RUN: another budget, objective or rules; no model is loaded.",
    "export": "Write the selected rows of RUN for a trainer, checked before they are written.",
    "tune": "Train a model on RUN's selection and on rival subsets alike, and judge them by rows that none has seen.",
    "score": "Score NEW rows with the student of a finished run; no language model is loaded.",
    "compare": "Compare the selections of A and B, run directories or outputs of select: overlap, coverage, shifts.",
    "query": "Show which rows of RUN's pool push a model to a response, by the run's student or exactly by its teacher.",
    "report": "Make the report of RUN again where it is missing or old: one file that needs no network.",
    "study": "Run the analyses of GRID, a YAML file, or of a preset; what is finished is not computed again.",
    "demo": "Show the whole idea on a generated world where the truth is known.",
    "doctor": "Show versions, devices, memory, missing extras, and whether encoders and models are on this machine.",
}
"""The commands in the order of work, with what their own help begins with: to list them loads none of them."""

INTERRUPTED = "interrupted; the same command goes on where it was"
MEMORY = "nncift: memory ran out; use --limit, --neighbours, a higher --max-mem, or a machine with more"
DEVICE_MEMORY = "nncift: the device's memory ran out; use --device cpu, or a device with more"
NATIVE = (
    "nncift: the tokenizer of a model, or another library's native code, stopped: {}; try another model or other rows"
)
DEFECT = "nncift: this is a defect of nncift; please report it with the lines above and the command"


class Commands(click.Group):
    """The commands, each from the module of its name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of work."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load a command."""
        if cmd_name not in COMMANDS:
            if ctx.resilient_parsing:
                return None
            near = difflib.get_close_matches(cmd_name, COMMANDS, n=1)
            ctx.fail(f"No such command {cmd_name!r}." + (f" Did you mean {near[0]!r}?" if near else ""))
        found: click.Command = getattr(importlib.import_module(f"nncift.cli.{cmd_name}"), f"{cmd_name}_command")
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, each with its sentence."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


BEGIN = "Begin with: nncift demo. With rows of yours: nncift run FILES --model smollm2 --out DIR --dry-run."


@click.group(cls=Commands, context_settings=HELP, epilog=BEGIN)
@click.version_option(__version__)
def cli() -> None:
    """Select the instruction examples that are worth training on, by influence learned from a few percent of labels."""


def main() -> None:
    """Run the command line."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with _stopped_alike():
            code = cli.main(standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        code = _say(INTERRUPTED, 130)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except NnciftError as error:
        code = _say(f"nncift: {error}", error.exit_code)
    except MemoryError:
        code = _say(MEMORY, ResourceError.exit_code)
    except OSError as error:
        code = _say(f"nncift: {error}", ResourceError.exit_code)
    except SystemExit:
        raise
    except BaseException as error:  # noqa: BLE001 - the last resort turns any defect into exit code 1
        code = _unexpected(error)
    sys.exit(code if isinstance(code, int) else 0)


def _unexpected(error: BaseException) -> int:
    """Say what an error of no known family is. Classes of libraries cannot be named without loading them."""
    if type(error).__name__ == "OutOfMemoryError":
        return _say(DEVICE_MEMORY, ResourceError.exit_code)
    # What native code ends in, by the tokenizer of a model; it is no Exception.
    if type(error).__name__ == "PanicException":
        return _say(NATIVE.format(first_line(error)), ResourceError.exit_code)
    traceback.print_exception(error)
    return _say(DEFECT, 1)


@contextmanager
def _stopped_alike() -> Iterator[None]:
    """Let what ends a process from outside end it as Ctrl-C does; a second time ends it at once, and without a word."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = (getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP"))
    before = {found: signal.getsignal(found) for found in names if found is not None}
    # What is ignored stays so: nohup ignores that a terminal is closed.
    ours = [found for found, handler in before.items() if handler is not signal.SIG_IGN]

    def second(_: int, __: FrameType | None) -> None:
        os._exit(130)

    def first(_: int, __: FrameType | None) -> None:
        for found in ours:
            signal.signal(found, second)
        raise KeyboardInterrupt

    for found in ours:
        signal.signal(found, first)
    try:
        yield
    finally:
        for found, handler in before.items():
            # Where an interruption is on its way out, another one finds the quiet end.
            if found in ours and signal.getsignal(found) is not second:
                signal.signal(found, handler)


def _say(text: str, code: int) -> int:
    click.echo(text, err=True)
    return code
