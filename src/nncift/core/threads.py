"""Compiled loops over ranges, one thread each."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

from nncift.core.memory import check_room


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    """Return threads that stay: starting one takes longer than many a range."""
    return ThreadPoolExecutor(workers)


# A child process has none of its parent's threads.
os.register_at_fork(after_in_child=_pool.cache_clear)


def in_threads(kernel: Callable[[int, int], object], n: int, least: int = 64) -> None:
    """Run `kernel(start, stop)` over ranges that cover `n`, one thread each; the kernel must release the GIL.

    least: the shortest range that is worth a thread. Threads of our own, since numba's parallel loops abort when two Python
    threads run them at once.
    """
    import numba

    check_room("a compiled loop")
    workers = min(numba.config.NUMBA_NUM_THREADS, max(n // least, 1))  # type: ignore[attr-defined]
    edges = [n * i // workers for i in range(workers + 1)]
    if workers == 1:
        kernel(0, n)
        return
    others = [_pool(workers - 1).submit(kernel, *ends) for ends in pairwise(edges[1:])]
    kernel(edges[0], edges[1])
    for other in others:
        other.result()
