"""The executor that has tasks done by workers of a Ray cluster: `--engine ray` (docs/scale.md).

The driver, which is the run itself, cuts the plan's chunks and blocks of rows into orders, gives them to workers, checks what
comes back, and keeps it as a run in one process does. An order whose worker or machine is lost is given to another one.
What the parts of a calculation share lies in the cluster's store once, where all workers of a machine read it in place.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nncift.config import RunSettings
from nncift.core.parallel import KeepResult, Task, TaskGroup, TaskResult, pays
from nncift.core.texts import first_line
from nncift.distributed.local import LocalExecutor
from nncift.distributed.model_worker import ModelWorker
from nncift.distributed.ray_worker import Order, Worker, orders
from nncift.errors import ResourceError, UsageError
from nncift.storage.run_directory import RunDir
from nncift.teachers.abilities import WarmsUp

log = logging.getLogger(__name__)

PASSED_ON = ("HF_HUB_OFFLINE", "NUMBA_NUM_THREADS")
AHEAD = 2
"""Orders that a worker has at a time, so that it does not wait for the next."""
TRIES = 3
"""Workers that may be lost over one order before it is given up."""
PATIENCE = 300.0
"""Seconds to wait for a first or another worker while none is at work."""


@dataclass
class _Actor:
    """A worker: its actor, and the orders that it has, by the reference of their result."""

    handle: Any
    orders: dict[Any, Order] = field(default_factory=dict)


class RayExecutor(LocalExecutor):
    """Workers of a Ray cluster; they start with the first tasks and stay until the run ends.

    address: of an existing cluster (`auto`, `HOST:PORT`, `ray://...`); None = the one this process is connected to, else a local
    one of its own. workers: None = as many as CPUs, or as GPUs allow. gpus_per_worker: 0 = they compute on CPUs; None = one where
    the cluster has GPUs and the run's device is `auto` or a GPU. made_of: what a worker's process runs. lost: workers that were
    lost so far.
    """

    made_of: type[Worker] = Worker

    def __init__(
        self, address: str | None = None, workers: int | None = None, gpus_per_worker: float | None = None
    ) -> None:
        """Raise UsageError for numbers that cannot be, ResourceError where Ray is missing."""
        if workers is not None and workers < 1:
            raise UsageError(f"--workers is at least 1, not {workers}")
        if gpus_per_worker is not None and gpus_per_worker < 0:
            raise UsageError(f"--gpus-per-worker is 0 or more, not {gpus_per_worker}")
        if importlib.util.find_spec("ray") is None:
            raise ResourceError("--engine ray needs the package ray: pip install ray")
        super().__init__()
        self._address, self._workers, self._gpus_per_worker = address, workers, gpus_per_worker
        self._settings, self._workspace = RunSettings(), Path()
        self._ready: list[_Actor] = []
        self._starting: dict[Any, _Actor] = {}
        self._started = False
        self.lost = 0

    @contextmanager
    def open(self, out: Path, settings: RunSettings) -> Iterator[RunDir]:
        """Give the run directory, connected to the cluster. Raises ResourceError where that cannot be reached."""
        with super().open(out, settings) as directory:
            self._settings, self._workspace = settings, (out / "labels" / "teacher").resolve()
            self._connect()
            try:
                yield directory
            finally:
                self._disconnect()

    def _connect(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        if ray.is_initialized():
            return
        given = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
        try:
            if self._address is not None:
                ray.init(address=self._address, log_to_driver=False, logging_level=logging.ERROR)
            else:
                # A cluster of this process alone, which ends with it, writes no token into the home folder.
                os.environ.setdefault("RAY_AUTH_MODE", "disabled")
                ray.init(num_cpus=self._workers or os.cpu_count(), **given)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            where = self._address or "a local cluster"
            raise ResourceError(f"Ray cannot be started or reached ({where}): {error}") from error
        self._started = True

    def _disconnect(self) -> None:
        """Let the workers go, and the cluster where it was started here."""
        import ray

        for actor in (*self._ready, *self._starting.values()):
            ray.kill(actor.handle)
        self._ready.clear()
        self._starting.clear()
        if self._started:
            ray.shutdown()
            self._started = False

    def map(self, worker: ModelWorker | None, group: TaskGroup, tasks: Sequence[Task], keep: KeepResult) -> None:
        """Have tasks done by the workers; results are kept as they come.

        Raises ResourceError where no worker can be had or one order keeps losing them, UsageError where a worker reads another
        model than the run, and whatever a task raises.
        """
        if not tasks:
            return
        if group.calculation is not None and not pays(group.calculation):
            super().map(worker, group, tasks, keep)
            return
        # What precedes all rows, such as a warm-up, is done once: by the worker that has the first task, for all.
        alone = group.method == "measure" and worker is not None and isinstance(worker.teacher, WarmsUp)
        first, rest = (tasks[:1], tasks[1:]) if alone else ((), tasks)
        for part in (first, rest):
            if part:
                with closing(self._work(group, part)) as results:
                    for task, result in results:
                        keep(task, result)

    def processes(self) -> list[int]:
        """Return the process numbers of the workers that are there."""
        import ray

        return [int(ray.get(actor.handle.process.remote())) for actor in self._ready]

    def _work(self, group: TaskGroup, tasks: Sequence[Task]) -> Generator[tuple[Task, TaskResult], None, None]:
        import ray

        waiting = deque(orders(group, tasks, self._wanted()))
        lost: dict[str, int] = {}
        shared = None if group.calculation is None else ray.put(group.calculation.shared)
        self._start_workers(min(self._wanted(), len(waiting)))
        try:
            while waiting or any(actor.orders for actor in self._ready):
                self._give(waiting, shared)
                busy = {reference: actor for actor in self._ready for reference in actor.orders}
                done, _ = ray.wait([*busy, *self._starting], num_returns=1, timeout=None if busy else PATIENCE)
                if not done:
                    raise ResourceError(self._nobody())
                for reference in done:
                    if reference in self._starting:
                        self._welcome(reference)
                    elif reference in busy[reference].orders:
                        yield from self._take(reference, busy[reference], group, waiting, lost)
        finally:
            for actor in self._ready:
                for reference in actor.orders:
                    ray.cancel(reference)
                actor.orders.clear()

    def _give(self, waiting: deque[Order], shared: Any) -> None:
        """Give every worker its orders, in turn."""
        for ahead in range(1, AHEAD + 1):
            for actor in self._ready:
                if waiting and len(actor.orders) < ahead:
                    order = waiting.popleft()
                    actor.orders[actor.handle.do.remote(order, shared)] = order

    def _take(
        self, reference: Any, actor: _Actor, group: TaskGroup, waiting: deque[Order], lost: dict[str, int]
    ) -> Iterator[tuple[Task, TaskResult]]:
        """Yield the results of an order, or put back what a lost worker had."""
        import ray
        from ray.exceptions import RayActorError, RayTaskError, WorkerCrashedError

        try:
            key, results = ray.get(reference)
        except (RayActorError, WorkerCrashedError) as error:
            self._replace(actor, waiting, lost, error)
            return
        except RayTaskError as error:
            cause = error.cause
            raise (cause if isinstance(cause, Exception) else error) from error
        except ray.exceptions.ObjectLostError:
            # It was done, and the machine that kept the result is gone.
            waiting.appendleft(actor.orders.pop(reference))
            return
        order = actor.orders.pop(reference)
        if key != group.key:
            raise UsageError(
                f"a worker of the cluster reads another model, or has other versions, than this run ({group.stage}): are model "
                "files, device and precision the same on its machine (--dtype), and nncift, numpy and numba, and is the run "
                "directory on a file system that all share?"
            )
        yield from zip(order.tasks, results, strict=True)

    def _replace(self, actor: _Actor, waiting: deque[Order], lost: dict[str, int], error: Exception) -> None:
        """Put the orders of a lost worker back, and start another one. Raises ResourceError where one order keeps losing them."""
        self.lost += 1
        self._ready.remove(actor)
        for place, order in enumerate(actor.orders.values()):
            waiting.appendleft(order)
            # Only the one that it was at can be to blame.
            if not place:
                name = order.tasks[0].name
                lost[name] = lost.get(name, 0) + 1
                if lost[name] >= TRIES:
                    raise ResourceError(
                        f"{TRIES} workers were lost over the same {len(order.tasks)} tasks of {order.group.stage} (memory? see "
                        f"Ray's logs): {first_line(error)}"
                    ) from error
        actor.orders.clear()
        log.warning("a worker of the cluster was lost; what it was at is done by another one")
        self._start_workers(1)

    def _start_workers(self, count: int) -> None:
        """Ask for workers, until there are `count` more or as many as wanted."""
        import ray

        threads = os.environ.get("OMP_NUM_THREADS", "1")
        # No more than these: what is in a runtime environment, anyone on the cluster can read.
        kept = {name: value for name, value in os.environ.items() if name.startswith("NNCIFT_") or name in PASSED_ON}
        made = ray.remote(self.made_of).options(
            num_cpus=1,
            num_gpus=self._gpus(),
            max_restarts=0,
            runtime_env={"env_vars": {**kept, "OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}},
        )
        missing = self._wanted() - len(self._ready) - len(self._starting)
        for _ in range(min(count, missing)):
            actor = made.remote(self._settings, self._workspace, os.getcwd())
            self._starting[actor.process.remote()] = _Actor(actor)

    def _welcome(self, reference: Any) -> None:
        """Take in a worker that is there now. Raises ResourceError where it cannot start."""
        import ray
        from ray.exceptions import RayError

        actor = self._starting.pop(reference)
        try:
            ray.get(reference)
        except RayError as error:
            self.lost += 1
            if not self._ready and not self._starting:
                raise ResourceError(f"no worker of the cluster can start: {error}") from error
            return
        self._ready.append(actor)

    def _wanted(self) -> int:
        """Return how many workers there shall be."""
        import ray

        if self._workers is not None:
            return self._workers
        there: Mapping[str, float] = ray.cluster_resources()
        gpus = self._gpus()
        most = there.get("GPU", 0.0) / gpus if gpus else there.get("CPU", 1.0)
        if most < 1:
            raise ResourceError(
                f"--gpus-per-worker {gpus:g} was given, and the cluster has {there.get('GPU', 0):g} GPUs; leave it out for "
                "workers on CPUs"
            )
        return int(most)

    def _gpus(self) -> float:
        """Return the GPUs of a worker: from one without, Ray hides those of the machine.

        Raises UsageError where a model shall lie on several GPUs and nobody says on how many.
        """
        import ray

        settings, asked = self._settings, self._gpus_per_worker
        if asked is not None:
            return asked
        if not settings.device.startswith(("auto", "cuda")) or ray.cluster_resources().get("GPU", 0.0) < 1:
            return 0.0
        if settings.device_map is not None:
            raise UsageError(
                "--device-map lays the model over all GPUs of a worker; give their number: --gpus-per-worker 2"
            )
        return 1.0

    def _nobody(self) -> str:
        import ray

        asked = f"{self._gpus():g} GPUs and 1 CPU each"
        return (
            f"no worker could be had within {PATIENCE:.0f} s: {self._wanted()} with {asked} are wanted, and the cluster has "
            f"{dict(ray.cluster_resources())}"
        )
