"""How much memory is free, and a cap on what this process may take."""

from __future__ import annotations

import os
import re
import resource
from pathlib import Path

import numpy as np

from nncift.errors import ResourceError, UsageError

UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 1 << 10,
    "mi": 1 << 20,
    "gi": 1 << 30,
    "ti": 1 << 40,
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgt]?i?)b?", re.IGNORECASE)


def parse_memory(text: str) -> int:
    """Return the bytes of a size such as 8G, 500M or 2GiB. Raises UsageError for anything else, and for less than 1 M."""
    found = _SIZE.fullmatch(text.strip())
    size = int(float(found[1]) * UNITS[found[2].lower()]) if found and found[2].lower() in UNITS else 0
    if size < UNITS["m"]:
        raise UsageError(f"--max-mem {text!r} was given; expected a size such as 8G or 500M, at least 1M")
    return size


def free_memory() -> int | None:
    """Return the bytes that can be had without swapping, within the cap of `cap` where there is one.

    All of the machine's where only that is known; None where nothing is.
    """
    free = _free_on_machine()
    most, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if most == resource.RLIM_INFINITY:
        return free
    left = max(0, most - taken())
    return left if free is None else min(free, left)


def taken() -> int:
    """Return the bytes of this process that count against a cap: all private memory that can be written, touched or not."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def cap(most: int) -> None:
    """Let this process take at most so many bytes from now on: the system refuses it more.

    What is asked beyond raises MemoryError, or RuntimeError in torch. Memory maps of files do not count. A lower cap that exists
    already stays. Raises ResourceError where the process takes more than that already.
    """
    _take_work_space()
    if (have := taken()) > most:
        raise ResourceError(
            f"--max-mem of {most / 1e6:,.0f} MB was given, and the program alone takes {have / 1e6:,.0f} MB; give more"
        )
    before, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (most if before == resource.RLIM_INFINITY else min(most, before), hard))


def _take_work_space() -> None:
    """Let the linear algebra of numpy and scipy take its work space now.

    It does so once, at its first use. OpenBLAS that is refused memory then ends the process, and earlier ones wait for ever.
    """
    from scipy.linalg.blas import sgemm

    # Large enough for all threads to take part.
    square = np.ones((512, 512), np.float32, order="F")
    square @ square
    sgemm(1.0, square, square)


def _free_on_machine() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        names = ("SC_PHYS_PAGES", "SC_PAGE_SIZE")
        if all(name in os.sysconf_names for name in names):
            return os.sysconf(names[0]) * os.sysconf(names[1])
    return None
