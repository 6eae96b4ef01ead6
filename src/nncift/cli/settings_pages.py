"""All settings of a run as pages: a commented YAML file for `--config`, and the table of docs/settings.md.

python -m nncift.cli.settings_pages > docs/settings.md
"""

from __future__ import annotations

from typing import Any

import yaml

from nncift.config import PARTS, RunSettings
from nncift.core.declaration import Setting, declared, own


def commented(settings: RunSettings) -> str:
    """Return the settings as YAML, one part for each stage, every setting under what it is.

    Settings without a value stand as comments, so that the file says all that there is.
    """
    values, known = settings.model_dump(mode="json"), declared(RunSettings)
    lines = [
        "# Settings of nncift run; flags override this file. Read it back with: nncift run --config FILE --out DIR"
    ]
    for part in PARTS:
        lines += ["", f"# {str(part.__doc__).strip().splitlines()[0]}"]
        for name in own(part):
            lines += [f"# {known[name].sentence}", _line(name, values[name])]
    return "\n".join(lines) + "\n"


def _line(name: str, value: Any) -> str:
    if value is None:
        return f"# {name}:"
    # A list around the value gives every kind of value in one form, on one line.
    return (
        f"{name}: " + yaml.safe_dump([value], allow_unicode=True, default_flow_style=True, width=100_000).strip()[1:-1]
    )


def page() -> str:
    """Return docs/settings.md: every setting of a run, by stage."""
    known = declared(RunSettings)
    lines = [
        "# Settings of a run",
        "",
        "Flags of `nncift run`, names in a settings file (`--config FILE`, `test_items` for `--test-items`) and keywords of",
        "`nncift.run` are the same. `nncift run --print-config` prints a file with all of them.",
        "",
        "<!-- Made from the declarations in nncift/config.py: python -m nncift.cli.settings_pages > docs/settings.md -->",
    ]
    for part in PARTS:
        title = str(part.__doc__).strip().splitlines()[0].rstrip(".")
        lines += ["", f"## {title}", "", "| setting | is | default |", "|---|---|---|"]
        lines += [_row(known[name]) for name in own(part)]
    return "\n".join(lines) + "\n"


def _row(one: Setting) -> str:
    name = "`POOL...`" if one.name == "pool" else f"`{one.flag}`"
    return f"| {name} | {one.sentence.replace('|', chr(92) + '|')} | {one.default} |"


if __name__ == "__main__":
    print(page(), end="")
