"""The error classes of nncift: a message says what was given, what was expected and what to do.

Every class carries the exit code of the command line (docs/cli.md), so that a script can tell a typing mistake
from unusable data or a missing package.
"""

from __future__ import annotations

from typing import Any


class NnciftError(Exception):
    """Base of all errors that nncift raises on purpose."""

    exit_code = 1
    about: dict[str, Any] | None = None
    """What a command found before it failed, for `--json`."""


class UsageError(NnciftError):
    """A setting or an argument is wrong: unknown name, impossible value, settings that contradict a finished run."""

    exit_code = 2


class DataError(NnciftError):
    """The data cannot be used: missing file, no usable row, too few rows."""

    exit_code = 3


class InfeasibleError(NnciftError):
    """The request is infeasible: a budget of nothing, a budget larger than the pool."""

    exit_code = 4


class QualityError(NnciftError):
    """A quality gate that the user set was not reached."""

    exit_code = 5


class ResourceError(NnciftError):
    """The environment lacks something: an extra, a device, model weights, memory, disk."""

    exit_code = 6
