"""Compiled loops over ranges, one thread each."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


def in_threads(kernel: Callable[[int, int], object], n: int, least: int = 64) -> None:
    """Run `kernel(start, stop)` over ranges that cover `n`, one thread each; the kernel must release the GIL.

    least: the shortest range that is worth a thread. Threads of our own, since numba's parallel loops abort when two Python
    threads run them at once.
    """
    import numba

    workers = min(numba.config.NUMBA_NUM_THREADS, max(n // least, 1))  # type: ignore[attr-defined]
    edges = [n * i // workers for i in range(workers + 1)]
    if workers == 1:
        kernel(0, n)
        return
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(kernel, edges[:-1], edges[1:]))
