"""The command line: one file per command, loaded when it is used; every way to fail has its exit code (docs/cli.md)."""

from __future__ import annotations

import importlib
import io
import sys
import traceback

import click

from nncift import __version__
from nncift.cli.shell import HELP
from nncift.errors import NnciftError, ResourceError

COMMANDS = (
    *("inspect", "run", "evaluate", "explain", "select", "export", "tune"),
    *("score", "compare", "study", "demo", "doctor"),
)
"""The commands in the order of work."""

INTERRUPTED = "interrupted; the same command goes on where it was"
MEMORY = "nncift: memory ran out; use --limit, --neighbours, a higher --max-mem, or a machine with more"
DEVICE_MEMORY = "nncift: the device's memory ran out; use --device cpu, or a device with more"
DEFECT = "nncift: this is a defect of nncift; please report it with the lines above and the command"


class Commands(click.Group):
    """The commands, each from the module of its name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of work."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load a command."""
        if cmd_name not in COMMANDS:
            return None
        found: click.Command = getattr(importlib.import_module(f"nncift.cli.{cmd_name}"), f"{cmd_name}_command")
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, each with its whole sentence."""
        with formatter.section("Commands"):
            commands = [(name, self.get_command(ctx, name)) for name in COMMANDS]
            formatter.write_dl([(name, found.get_short_help_str(limit=200)) for name, found in commands if found])


@click.group(cls=Commands, context_settings=HELP)
@click.version_option(__version__)
def cli() -> None:
    """Select the instruction examples that are worth training on, by influence learned from a few percent of labels."""


def main() -> None:
    """Run the command line."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
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
    except Exception as error:  # noqa: BLE001 - the last resort turns any defect into exit code 1
        # torch's; its class cannot be named without loading torch.
        if type(error).__name__ == "OutOfMemoryError":
            sys.exit(_say(DEVICE_MEMORY, ResourceError.exit_code))
        traceback.print_exc()
        code = _say(DEFECT, 1)
    sys.exit(code if isinstance(code, int) else 0)


def _say(text: str, code: int) -> int:
    click.echo(text, err=True)
    return code
