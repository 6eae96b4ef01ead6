"""How much memory is free."""

from __future__ import annotations

import os
from pathlib import Path


def free_memory() -> int | None:
    """Return the bytes that can be had without swapping; all of the machine's where only that is known; else None."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        names = ("SC_PHYS_PAGES", "SC_PAGE_SIZE")
        if all(name in os.sysconf_names for name in names):
            return os.sysconf(names[0]) * os.sysconf(names[1])
    return None
