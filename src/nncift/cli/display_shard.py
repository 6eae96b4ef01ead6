"""What the command line prints of a shard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nncift.cli.display import console

VERBS = {"embed": "embedded", "probe": "probed", "label": "labelled", "score": "calculated"}


def show_shard(summary: Mapping[str, Any]) -> None:
    """Print what a shard did, what is left, and what to do next."""
    out = console()
    for name, done in summary["stages"].items():
        before = f", {done['before']} were done before" if done["before"] else ""
        out.print(
            f"Shard {summary['shard']} {VERBS.get(name, name)} {done['pieces']} pieces ({done['passes']:,} passes, "
            f"{done['seconds']:.1f} s{before})."
        )
    out.print(f"{summary['run']}: {summary['next']}.")
    for warning in summary["warnings"]:
        out.print(f"Note: {warning}")
