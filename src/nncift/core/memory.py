"""How much memory is free, a cap on what this process may take, and blocks of work that fit into little."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from nncift.errors import ResourceError, UsageError

if sys.platform != "win32":
    import resource

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


UNIT = 192
"""Rows that blocks are multiples of where that many fit: kernels of linear algebra work on 4 to 64 rows at once."""

AT_ONCE = 1 << 22
"""Bytes of a block of rows: what a core's cache holds, and large enough that a block costs no more than its rows."""

TORCH = 200 * UNITS["m"]
"""What loading PyTorch and transformers takes beside their code."""

SPARE = 16 * UNITS["m"]
"""What is kept free for libraries that cannot be refused memory."""

_SAID = (
    "can't allocate memory",
    "not enough memory",
    "can't start new thread",
    "malloc of size",
    "cannot allocate memory",
    "failed to map segment",
    "std::bad_alloc",
    "failed to launch worker thread",
)
"""What torch, Arrow, Python and the loader of libraries say where they do not raise MemoryError, in small letters."""

_SAID_UNDER_A_CAP = ("error return without exception set", "could not find/load shared object")
"""What imports say that are refused memory, and that elsewhere means something else."""

_FAMILIES = (MemoryError, RuntimeError, OSError, ImportError, SystemError)

_ASKED = re.compile(r"allocate ([\d.]+) (bytes|[KMGT]iB)|allocate (\d+) bytes|of size (\d+)")


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
    free, most = _free_on_machine(), capped()
    if most is None:
        return free
    left = max(0, most - taken())
    return left if free is None else min(free, left)


def capped() -> int | None:
    """Return the bytes that `cap` lets this process take, None without one."""
    if sys.platform == "win32":
        return None
    most, _ = resource.getrlimit(resource.RLIMIT_DATA)
    return None if most == resource.RLIM_INFINITY else most


def rows_within(size: int, row_bytes: int) -> int:
    """Return how many rows of so many bytes fit into a block of this size, at least one: a multiple of UNIT where it can be."""
    rows = size // max(1, row_bytes)
    return rows // UNIT * UNIT if rows >= UNIT else max(1, rows)


def rows_at_once(most: int, row_bytes: int) -> int:
    """Return how many rows of so many bytes are done at once: AT_ONCE bytes of them, or UNIT rows, in a block of `most` bytes.

    A cap does not change it, and so no result: kernels add in another order where a product has other shapes.
    """
    return rows_within(min(most, max(AT_ONCE, UNIT * row_bytes)), row_bytes)


def ran_out(error: BaseException) -> bool:
    """Tell whether an error says that this process's memory, and not a device's, ran out."""
    known = _SAID if capped() is None else (*_SAID, *_SAID_UNDER_A_CAP)
    return isinstance(error, MemoryError) or any(said in str(error).lower() for said in known)


def pass_on(error: Exception) -> None:
    """Raise MemoryError where an error of a reader says that memory ran out, so that a sound file is not called damaged."""
    if ran_out(error):
        raise MemoryError(str(error)) from error


@contextmanager
def named(what: str) -> Iterator[None]:
    """Raise ResourceError where memory runs out in a block, naming what was done, what was asked for and what is taken."""
    try:
        yield
    except _FAMILIES as error:
        if not ran_out(error):
            raise
        most, asked = capped(), _asked(str(error))
        more = "more memory" if asked is None else f"{asked / 1e6:,.1f} MB more"
        within = "all that this machine has" if most is None else f"the {most / 1e6:,.1f} MB of --max-mem"
        raise ResourceError(
            f"memory ran out: {what} needs {more}, and {taken() / 1e6:,.1f} MB of {within} are taken; use --limit, "
            "--neighbours, a higher --max-mem, or a machine with more"
        ) from error


def check_torch() -> None:
    """Raise ResourceError where a cap leaves too little to load PyTorch, which would end the process in the middle of it."""
    most = capped()
    if most is not None and "torch" not in sys.modules and (left := most - taken()) < TORCH:
        raise ResourceError(
            f"memory ran out: loading PyTorch needs {TORCH / 1e6:,.0f} MB, and {max(0, left) / 1e6:,.1f} MB of the "
            f"{most / 1e6:,.1f} MB of --max-mem are left; give more"
        )


def check_room(what: str, size: int = 0) -> None:
    """Raise ResourceError where a cap leaves next to nothing beside `size` bytes.

    Tokenizers, safetensors and LLVM, which compiles our loops, end the process when they are refused memory.
    """
    most, needed = capped(), SPARE + size
    if most is not None and (left := most - taken()) < needed:
        raise ResourceError(
            f"memory ran out: {what} needs {needed / 1e6:,.0f} MB to spare, and {max(0, left) / 1e6:,.1f} MB of the "
            f"{most / 1e6:,.1f} MB of --max-mem are left; give more"
        )


def _asked(text: str) -> int | None:
    """Return the bytes that an error says were asked for, None where it does not say."""
    found = _ASKED.search(text)
    if found is None:
        return None
    if found[1] is None:
        return int(found[3] or found[4])
    return int(float(found[1]) * UNITS[found[2][:2].lower() if found[2] != "bytes" else ""])


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
    if sys.platform == "win32":
        raise ResourceError("--max-mem was given, and Windows caps no process's memory; leave it out")
    _take_work_space()
    _make_arrow_modest()
    if (have := taken()) > most:
        raise ResourceError(
            f"--max-mem of {most / 1e6:,.0f} MB was given, and the program alone takes {have / 1e6:,.0f} MB; give more"
        )
    before, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (most if before == resource.RLIM_INFINITY else min(most, before), hard))


def _make_arrow_modest() -> None:
    """Let Arrow ask the system for memory, from one thread.

    Its own allocator sets a gigabyte aside at a time, which would count, and a thread that is refused memory ends the process.
    """
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    import pyarrow as pa

    pa.set_memory_pool(pa.system_memory_pool())
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)


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
        names, known = ("SC_PHYS_PAGES", "SC_PAGE_SIZE"), getattr(os, "sysconf_names", {})
        if all(name in known for name in names):
            return os.sysconf(names[0]) * os.sysconf(names[1])
    return None
