"""`--cost` and `--time`: how much labels, probe and embedding may take."""

from __future__ import annotations

import math
import re

from nncift.errors import InfeasibleError, UsageError

DEFAULT_SHARE = 0.1
"""Share of training on the whole pool that a run may cost by default ..."""

LEAST_PASSES = 3000
"""... or so many forward passes, where that is more."""

UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0}


def parse_cost(text: str) -> float:
    """Read `10%` and `0.1` as a share of training; it may be above 1. Raises UsageError, InfeasibleError for nothing."""
    stripped = text.strip()
    try:
        if not (stripped.endswith("%") or "." in stripped):
            raise ValueError
        share = float(stripped[:-1]) / 100 if stripped.endswith("%") else float(stripped)
    except ValueError as error:
        raise UsageError(f"--cost {text!r} was given; expected a share of training such as 10% or 0.1") from error
    if not (share > 0 and math.isfinite(share)):
        raise InfeasibleError(f"--cost {text}: the share must be above 0 %")
    return share


def parse_time(text: str) -> float:
    """Read `30m`, `1h30m`, `90s` or a number of seconds, and return seconds. Raises UsageError, InfeasibleError for none."""
    stripped = text.strip().lower().replace(" ", "")
    parts = re.findall(r"(\d+(?:\.\d+)?)(h|m|s)", stripped)
    if re.fullmatch(r"\d+(?:\.\d+)?", stripped):
        seconds = float(stripped)
    elif parts and "".join(number + unit for number, unit in parts) == stripped:
        seconds = sum(float(number) * UNITS[unit] for number, unit in parts)
    else:
        raise UsageError(f"--time {text!r} was given; expected a time such as 30m, 2h, 1h30m or 90s")
    if not (seconds > 0 and math.isfinite(seconds)):
        raise InfeasibleError(f"--time {text}: the time must be above 0")
    return seconds
