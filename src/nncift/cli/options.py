"""`run --print-config`: the settings as a commented YAML file that `--config` reads back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import click
import yaml

from nncift.config import (
    DataSettings,
    EncoderSettings,
    GateSettings,
    LabelSettings,
    RunSettings,
    SelectSettings,
    SpendSettings,
    StudentSettings,
    TeacherSettings,
)

PARTS = (
    DataSettings,
    EncoderSettings,
    TeacherSettings,
    LabelSettings,
    SpendSettings,
    StudentSettings,
    GateSettings,
    SelectSettings,
)
WITHOUT_FLAG = {
    "pool": "Files of instruction examples, or hub:org/name[:split].",
    "test_items": "Rows held out on each axis to measure fidelity.",
    "validation_items": "Rows held out on each axis to stop training.",
}


def commented(settings: RunSettings, flags: click.Command) -> str:
    """Return the settings as YAML, one part for each stage, every setting under what the flag's help says of it.

    Settings without a value stand as comments, so that the file says all that there is.
    """
    help_of = {
        option.name.rstrip("_"): option.help
        for option in flags.params
        if isinstance(option, click.Option) and option.name
    }
    values = settings.model_dump(mode="json")
    lines = [
        "# Settings of nncift run; flags override this file. Read it back with: nncift run --config FILE --out DIR"
    ]
    left = list(values)
    for part in PARTS:
        lines += ["", f"# {str(part.__doc__).strip().splitlines()[0]}"]
        for name in part.model_fields:
            lines += _setting(name, values[name], help_of)
            left.remove(name)
    lines += ["", "# The whole run."]
    for name in left:
        lines += _setting(name, values[name], help_of)
    return "\n".join(lines) + "\n"


def _setting(name: str, value: Any, help_of: Mapping[str, str | None]) -> list[str]:
    said = re.sub(r"\s*\[default: .*?\]", "", help_of.get(name) or WITHOUT_FLAG.get(name, ""))
    comment = [f"# {said}"] if said else []
    if value is None:
        return [*comment, f"# {name}:"]
    # A list around the value gives every kind of value in one form, on one line.
    text = yaml.safe_dump([value], allow_unicode=True, default_flow_style=True, width=100_000).strip()[1:-1]
    return [*comment, f"{name}: {text}"]
