"""Threads: of compiled loops over ranges, one each, and how many a model is given on the CPU."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import pairwise

from nncift.core.memory import check_room


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    """Return threads that stay: starting one takes longer than many a range."""
    return ThreadPoolExecutor(workers)


if hasattr(os, "register_at_fork"):
    # A child process has none of its parent's threads. Windows forks none.
    os.register_at_fork(after_in_child=_pool.cache_clear)


LONG = 1.0
"""Seconds of a trial from which on nothing is compared."""
SMALL_ROWS = 1024
"""Rows up to which a matrix is small to the linear algebra of a student."""
WORTH = 0.9
"""Share of one thread's time below which several are taken."""


def wait_passively() -> None:
    """Let threads of torch that wait for each other sleep, where torch is not loaded yet.

    By default they spin: on a busy machine two threads then take four times the processor of one.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@contextmanager
def one_thread_if_small(rows: int) -> Iterator[None]:
    """Let matrix products and factorisations inside take one thread where matrices have at most `SMALL_ROWS` rows.

    More bring little there, and on a busy machine they spin for each other: a student of 380 rows then took four times the
    processor. The size decides, and not the load, so that a run leaves the same bytes at any load.
    """
    if rows > SMALL_ROWS:
        yield
        return
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1, user_api="blas"):
        yield


def free_cores() -> int:
    """Return how many cores other processes leave, by the load of the last minute; at least one."""
    cores = os.cpu_count() or 1
    try:
        # This process is one of those that are counted.
        others = max(0.0, os.getloadavg()[0] - 1)
    except (OSError, AttributeError):
        return cores
    return max(1, round(cores - others))


def best_threads(work: Callable[[], object], most: int, use: Callable[[int], object]) -> int:
    """Return the number of threads, 1 or what is free of `most`, with which work takes less time; ties go to one.

    work: a short piece of what will be done often. use: sets the number of threads.
    """
    several = min(most, free_cores())
    if several < 2:
        return 1
    use(several)
    if _clock(work) >= LONG:
        # So large a model gains by every core that is free.
        return several
    together = min(_clock(work), _clock(work))
    use(1)
    return several if together < WORTH * min(_clock(work), _clock(work)) else 1


def _clock(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def in_threads(kernel: Callable[[int, int], object], n: int, least: int = 64) -> None:
    """Run `kernel(start, stop)` over ranges that cover `n`, one thread each; the kernel must release the GIL.

    least: the shortest range that is worth a thread. Threads of our own, since numba's parallel loops abort when two Python
    threads run them at once.
    """
    check_room("a compiled loop")
    if n < 2 * least:
        kernel(0, n)
        return
    import numba

    workers = min(numba.config.NUMBA_NUM_THREADS, max(n // least, 1))  # type: ignore[attr-defined]
    edges = [n * i // workers for i in range(workers + 1)]
    if workers == 1:
        kernel(0, n)
        return
    others = [_pool(workers - 1).submit(kernel, *ends) for ends in pairwise(edges[1:])]
    kernel(edges[0], edges[1])
    for other in others:
        other.result()
