"""How many threads a model is given: by a trial, and by what other processes leave."""

from __future__ import annotations

import os
import sys

import pytest

from nncift.core import threads
from nncift.core.threads import SMALL_ROWS, best_threads, free_cores, one_thread_if_small, wait_passively


class Machine:
    """A clock, and work that takes a time which depends on the threads in use."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self.now, self.threads, self.seconds, self.tried = 0.0, 1, seconds, list[int]()

    def use(self, some: int) -> None:
        """Use so many threads."""
        self.threads = some

    def work(self) -> None:
        """Let the time of a piece of work pass."""
        self.tried.append(self.threads)
        self.now += self.seconds[self.threads]


@pytest.mark.parametrize(
    ("seconds", "free", "chosen", "tried"),
    [
        ({1: 0.10, 4: 0.04}, 4, 4, {1, 4}),
        ({1: 0.10, 4: 0.095}, 4, 1, {1, 4}),
        ({1: 0.10, 4: 0.40}, 4, 1, {1, 4}),
        # Others work on two of the four cores.
        ({1: 0.10, 2: 0.06}, 2, 2, {1, 2}),
        # A busy machine is not tried at all, and a large model not compared.
        ({1: 0.10, 4: 0.04}, 1, 1, set()),
        ({1: 9.0, 4: 3.0}, 4, 4, {4}),
    ],
)
def test_several_threads_are_taken_where_they_are_faster_and_free(
    seconds: dict[int, float], free: int, chosen: int, tried: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(seconds)
    monkeypatch.setattr(threads, "free_cores", lambda: free)
    monkeypatch.setattr("time.perf_counter", lambda: machine.now)
    assert best_threads(machine.work, 4, machine.use) == chosen
    assert set(machine.tried) == tried


@pytest.mark.parametrize(("load", "free"), [(0.0, 8), (1.0, 8), (3.2, 6), (8.0, 1), (40.0, 1)])
def test_what_others_leave_is_told_by_the_load(load: float, free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    assert free_cores() == free


def test_waiting_is_set_only_before_torch_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "")
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setitem(sys.modules, "torch", object())
    wait_passively()
    assert "OMP_WAIT_POLICY" not in os.environ
    monkeypatch.delitem(sys.modules, "torch")
    wait_passively()
    assert os.environ["OMP_WAIT_POLICY"] == "passive"
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    wait_passively()
    assert os.environ["OMP_WAIT_POLICY"] == "active"


def test_small_matrices_take_one_thread_and_large_ones_what_there_is() -> None:
    from threadpoolctl import threadpool_info, threadpool_limits

    def used() -> list[int]:
        return [one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"]

    with threadpool_limits(limits=2, user_api="blas"):
        before = used()
        if not before:
            pytest.skip("there is no linear algebra here whose threads can be counted")
        with one_thread_if_small(SMALL_ROWS):
            assert used() == [1] * len(before)
        assert used() == before
        with one_thread_if_small(SMALL_ROWS + 1):
            assert used() == before
