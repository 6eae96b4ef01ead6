"""Ray: what workers do is what one process does, to the byte, also where workers and machines are lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nncift import config
from nncift.core import parallel as calculation
from nncift.distributed import ray_cluster as cluster
from nncift.distributed.ray_cluster import RayExecutor
from nncift.distributed.ray_worker import Worker
from nncift.distributed.start import executor_of
from nncift.errors import ResourceError, UsageError

from .conftest import content

Start = Callable[..., Any]


def test_flags_that_do_not_fit_are_refused() -> None:
    assert executor_of("local", "1/2", workers=None).partial
    for engine, shard, given, why in (
        ("spark", None, {}, "local or ray"),
        ("local", None, {"workers": 2}, "goes with --engine ray"),
        ("ray", "1/2", {}, "give one of them"),
        ("ray", None, {"workers": 0}, "at least 1"),
        ("ray", None, {"gpus_per_worker": -1}, "0 or more"),
    ):
        with pytest.raises(UsageError, match=why):
            executor_of(engine, shard, **given)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ResourceError, match="pip install ray"):
        RayExecutor()


class Killing(RayExecutor):
    """Kills something when so many results of a stage have come back."""

    def __init__(self, after: int, kill: Callable[[RayExecutor], None], stage: str = "label", **given: Any) -> None:
        super().__init__(**given)
        self._after, self._kill, self._stage = after, kill, stage
        self.came = 0

    def map(self, worker: Any, group: Any, tasks: Any, keep: Any) -> None:
        """Keep, count and kill."""

        def kept(task: Any, result: Any) -> None:
            keep(task, result)
            self.came += group.stage == self._stage
            if self.came == self._after and group.stage == self._stage:
                self._kill(self)

        super().map(worker, group, tasks, kept)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a few rows be many blocks and orders."""
    monkeypatch.setattr("nncift.models.embedding_cache.BLOCK", 7)
    monkeypatch.setattr("nncift.labels.row_labels.CHUNK_ROWS", 3)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


@pytest.fixture
def two_workers() -> Iterator[RayExecutor]:
    """Return an executor of two local workers."""
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield RayExecutor(workers=2)
    ray.shutdown()


@pytest.mark.parametrize(
    ("device", "asked", "gpus", "workers"),
    [
        ("auto", None, 1.0, 2),
        ("cuda:0", None, 1.0, 2),
        ("cpu", None, 0.0, 3),
        ("auto", 0.5, 0.5, 4),
        ("auto", 0.0, 0.0, 3),
    ],
)
def test_a_worker_has_a_gpu_of_its_own_where_there_are_any(
    device: str, asked: float | None, gpus: float, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"GPU": 2.0, "CPU": 3.0})
    settings = config.resolve({"pool": "a.jsonl", "device": device})
    executor = RayExecutor(gpus_per_worker=asked)
    executor._settings = settings
    assert (executor._gpus(), executor._wanted()) == (gpus, workers)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 3.0})
    if asked is None:
        assert (executor._gpus(), executor._wanted()) == (0.0, 3)


def test_a_model_over_several_gpus_needs_their_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"GPU": 2.0})
    settings = config.resolve({"pool": "a.jsonl", "device_map": "auto"})
    executor, other = RayExecutor(), RayExecutor(gpus_per_worker=2)
    executor._settings = other._settings = settings
    with pytest.raises(UsageError, match="--gpus-per-worker 2"):
        executor._gpus()
    assert other._gpus() == 2


@pytest.mark.slow
def test_two_workers_see_a_gpu_each(start: Start, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    # There are none: what is asked for is what Ray shows to whom.
    ray.init(num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False)
    seen = []

    class Seeing(Worker):
        def visible(self) -> str | None:
            return os.environ.get("CUDA_VISIBLE_DEVICES")

    class Looking(RayExecutor):
        made_of = Seeing

        def map(self, *given: Any) -> None:
            super().map(*given)
            seen.append(sorted(ray.get(actor.handle.visible.remote()) for actor in self._ready))

    try:
        start("alone")
        start("shared", executor=Looking())
        assert content(tmp_path / "shared") == content(tmp_path / "alone")
        assert ["0", "1"] in seen
    finally:
        ray.shutdown()


CASES: dict[str, dict[str, Any]] = {
    "delift": {"plan": "active"},
    "less": {"teacher": "less", "labels": "30%", "option": {"projection": 32, "rank": 2, "epochs": 2}},
    "probe": {"features": "probe", "probe_share": "60%", "encoder": "lm"},
}


@pytest.mark.slow
def test_two_workers_are_one_process(start: Start, two_workers: RayExecutor, tmp_path: Path) -> None:
    for case, more in CASES.items():
        start(f"{case}-alone", **more)
        start(case, executor=two_workers, **more)
        assert content(tmp_path / case) == content(tmp_path / f"{case}-alone")


@pytest.mark.slow
def test_a_killed_worker_costs_nothing_but_time(start: Start, tmp_path: Path) -> None:
    start("alone")

    def kill(executor: RayExecutor) -> None:
        os.kill(executor.processes()[0], signal.SIGKILL)

    killing = Killing(workers=2, after=5, kill=kill)

    start("killed", executor=killing)
    assert killing.lost == 1
    assert content(tmp_path / "killed") == content(tmp_path / "alone")


SCORED: dict[str, dict[str, Any]] = {
    "dense": {},
    "graph": {"neighbours": 8, "student": "paper"},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", SCORED)
def test_a_worker_killed_while_it_scores_costs_nothing_but_time(
    case: str, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calculation, "WORTH", 0.0)
    monkeypatch.setattr(calculation, "BYTES_A_SECOND", float("inf"))
    monkeypatch.setattr("nncift.student.score.SIDE", 8)
    monkeypatch.setattr("nncift.selection.graphs._PAIRS", 32)
    start("alone", **SCORED[case])

    def kill(executor: RayExecutor) -> None:
        os.kill(executor.processes()[0], signal.SIGKILL)

    killing = Killing(workers=2, after=5, kill=kill, stage="score")

    start("killed", executor=killing, **SCORED[case])
    assert killing.came > 5
    assert killing.lost == 1
    assert content(tmp_path / "killed") == content(tmp_path / "alone")


@pytest.mark.slow
def test_a_lost_machine_costs_nothing_but_time(start: Start, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    start("alone")
    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        others = [machines.add_node(num_cpus=1) for _ in range(3)]
        machines.wait_for_nodes()
        killing = Killing(
            address=machines.address, workers=4, after=5, kill=lambda executor: machines.remove_node(others[0])
        )
        start("lost", executor=killing)
        assert content(tmp_path / "lost") == content(tmp_path / "alone")
        assert killing.lost >= 1
    finally:
        ray.shutdown()
        machines.shutdown()


@pytest.mark.slow
def test_what_a_worker_raises_is_raised_here(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "PATIENCE", 5.0)

    executor = RayExecutor(workers=1, gpus_per_worker=1)
    with pytest.raises(ResourceError, match="no worker could be had"):
        start("run", executor=executor)
