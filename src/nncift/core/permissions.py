"""What the call at hand permits. Permission comes from a flag or an argument of this very call; no file gives any."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Permissions:
    """What a call permits, nothing by default.

    code: run code that comes with a model (`--trust-remote-code`). fetch: fetch from the hub what the files of a run or a
    student name (`--fetch`).
    """

    code: bool = False
    fetch: bool = False


NOTHING = Permissions()
