"""What Ray costs and gives: `python benchmarks/ray_scale.py --model FOLDER --data FILE [--rows 60] [--rounds 3] [--json]`.

The same labels are made by this process, by one local Ray worker and by two, one thread each, in turn, several times. The workers
have loaded their model before the clock starts; how long that takes is told apart. Labels of all three are compared to the byte.
Beside seconds on the clock stand seconds of CPU time of every process, which other work on the machine does not stretch: where
cores are shared, only these tell what Ray adds, and how evenly workers share the work (the busiest process bounds the time).

`--waiting 0.005`: workers wait so many seconds for every pass and compute nothing, as a driver sees workers on GPUs: then seconds
on the clock tell how far driver and Ray keep up, also on cores that are busy.
"""

from __future__ import annotations

import os

# Before torch is loaded, and for the workers, which inherit it.
os.environ["OMP_NUM_THREADS"] = os.environ["NUMBA_NUM_THREADS"] = "1"

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nncift import config
from nncift.config import RunSettings
from nncift.core.fingerprints import fingerprint
from nncift.core.parallel import Executor, KeepResult, Task, TaskGroup, TaskResult
from nncift.data import Examples, read
from nncift.distributed.local import LocalExecutor
from nncift.distributed.model_worker import ModelWorker
from nncift.distributed.ray_cluster import RayExecutor
from nncift.distributed.ray_worker import Order, Worker
from nncift.labels import LabelBudget, LabelPlan
from nncift.stages.check import usable_rows
from nncift.stages.context import RunContext
from nncift.stages.label import label, plan_labels
from nncift.stages.request import Request
from nncift.teachers import registry


@dataclass(frozen=True)
class Measured:
    """Seconds until all workers have their model, and of labelling: on the clock, and CPU time of driver and workers."""

    ready: float
    seconds: float
    driver: float
    workers: tuple[float, ...]
    labels: bytes

    @property
    def busiest(self) -> float:
        """CPU seconds of the busiest process."""
        return max(self.driver, *self.workers) if self.workers else self.driver

    @property
    def together(self) -> float:
        """CPU seconds of all processes."""
        return self.driver + sum(self.workers)


def waited(task: Task) -> TaskResult:
    """Wait for as long as a task shall take, and give zeros."""
    time.sleep(float(os.environ["NNCIFT_WAIT"]) * task.size)
    arrays: dict[str, np.ndarray] = {"values": np.zeros((task.size, 1), np.float32), "figures": np.zeros(1)}
    return TaskResult(arrays, 0, task.size)


class Waiter(Worker):
    """A worker that computes nothing."""

    def do(self, order: Order, shared: Any = None) -> tuple[str, list[TaskResult]]:
        """Wait."""
        return order.group.key, [waited(task) for task in order.tasks]


class Waiters(RayExecutor):
    """A cluster that computes nothing."""

    made_of = Waiter


class WaitingHere(LocalExecutor):
    """A run in this process that computes nothing."""

    def map(self, worker: ModelWorker | None, group: TaskGroup, tasks: Sequence[Task], keep: KeepResult) -> None:
        """Wait."""
        for task in tasks:
            keep(task, waited(task))


def cpu_seconds(process: int) -> float:
    """Return the CPU time of a process so far, all threads (Linux)."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(settings: RunSettings, pool: Examples, executor: Executor, workers: int) -> Measured:
    """Label and measure."""
    teacher = registry.create(settings, "cpu")
    with tempfile.TemporaryDirectory() as folder, executor.open(Path(folder) / "run", settings) as directory:
        work = RunContext(directory, settings, teacher, executor=executor)
        axes, _ = usable_rows(work, pool)
        budget = LabelBudget.of(settings)
        plan = plan_labels(work, axes, budget)
        assert isinstance(plan, LabelPlan)
        group = TaskGroup("label", "label", fingerprint(dict(teacher.describe())), "", axes.rows)
        chunks = [chunk.task for chunk in plan.chunks_of(0) if chunk.source is not None][: 4 * workers]
        first = [
            Task(str(chunk.index), place, chunk, len(chunk.targets), (*chunk.targets, str(chunk.source)))
            for place, chunk in enumerate(chunks)
        ]
        began = time.perf_counter()
        # Until all workers are there, and then once more, so that each has done something.
        there = 0
        while there < workers:
            there = len(executor.processes()) if isinstance(executor, RayExecutor) else workers
            executor.map(work.worker, group, first, lambda task, result: None)
        processes = [os.getpid(), *(executor.processes() if isinstance(executor, RayExecutor) else [])]
        ready, before = time.perf_counter(), [cpu_seconds(process) for process in processes]
        label(work, axes, plan, budget, None)
        seconds = time.perf_counter() - ready
        spent = [cpu_seconds(process) - was for process, was in zip(processes, before, strict=True)]
        labels = (directory.path / "labels" / "values-000.npy").read_bytes()
        return Measured(ready - began, seconds, spent[0], tuple(spent[1:]), labels)


def made(workers: int, *, waiting: bool) -> Executor:
    """Return an executor: this process for 0 workers, else a local cluster of its own."""
    if not workers:
        return WaitingHere() if waiting else LocalExecutor()
    return Waiters(workers=workers) if waiting else RayExecutor(workers=workers)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--labels", default="50%")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--waiting", type=float, help="Seconds that a pass takes without computing anything.")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    os.environ["NNCIFT_WAIT"] = str(given.waiting or 0)
    settings = config.resolve(
        {"teacher": "delift", "model": given.model, "labels": given.labels, "encoder": "hash", "device": "cpu"}
    )
    pool = read(given.data, limit=given.rows)
    settings = Request.resolve(settings, pool=pool).settings
    found: dict[int, list[Measured]] = {}
    for _ in range(given.rounds):
        for workers in (0, 1, given.workers):
            executor = made(workers, waiting=given.waiting is not None)
            found.setdefault(workers, []).append(measure(settings, pool, executor, max(1, workers)))
    none, one, more = found[0], found[1], found[given.workers]
    ratios = {
        "overhead_of_one_worker_clock": [b.seconds / a.seconds - 1 for a, b in zip(none, one, strict=True)],
        "overhead_of_one_worker_cpu": [b.together / a.together - 1 for a, b in zip(none, one, strict=True)],
        "speedup_clock": [b.seconds / c.seconds for b, c in zip(one, more, strict=True)],
        "speedup_busiest_process_cpu": [b.busiest / c.busiest for b, c in zip(one, more, strict=True)],
    }
    record: dict[str, Any] = {
        "rows": len(pool),
        "workers": given.workers,
        "waiting": given.waiting,
        "rounds": given.rounds,
        "machine": {"cores": os.cpu_count(), "load": os.getloadavg(), "python": platform.python_version()},
        "same_labels": len({run.labels for runs in found.values() for run in runs}) == 1,
        "runs": {
            ("no Ray" if not workers else f"{workers} workers"): [
                {name: value for name, value in asdict(run).items() if name != "labels"} for run in runs
            ]
            for workers, runs in found.items()
        },
        **{name: {"median": statistics.median(each), "each": each} for name, each in ratios.items()},
    }
    print(json.dumps(record, indent=None if given.json else 2))


if __name__ == "__main__":
    main()
