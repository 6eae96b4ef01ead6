"""Runs that are killed: what they do, where SIGKILL strikes, and whether going on gives the bytes of a run that nobody stopped.

A warm parent forks one child per attempt, so that a kill costs no import. A child counts the moments at which something changes
on disk (files opened for writing, renamed, removed, folders made, files and memory maps flushed, all below the run's folder) and
kills itself before the n-th; or the parent kills it after a random time. The product knows nothing of this. Clocks stand still in
children, so that every file of a run can be compared byte for byte, ledgers included.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

ROWS = 48
BEGIN = "begin"
ALIKE = {
    "shards": "delift, scatter",
    "joining shards": "delift, scatter",
    "Ray's driver": "delift, scatter",
    "shards, active, probe": "delift, active, probe",
    "shards, less": "less",
    "shards, calculating": "delift, on a graph",
}
"""Scenarios that have to leave the bytes that another one leaves, which is of one process."""


@dataclass(frozen=True)
class Scenario:
    """Something that is killed. ready: what must be finished before (uncounted). act: what is killed and goes on."""

    name: str
    act: Callable[[Path], object]
    ready: Callable[[Path], object] = field(default=lambda folder: None)


@dataclass(frozen=True)
class Kill:
    """One kill: how it came about (`write 17`, `time 0.31 s`), the stage at work, and what went wrong afterwards, or None."""

    scenario: str
    how: str
    stage: str
    wrong: str | None


def pool_of(folder: Path, rows: int = ROWS) -> Path:
    """Write the pool: rows of a generated world, some of them broken, so that there is something to reject."""
    from nncift.demo.world import make_world

    path = folder / "pool.jsonl"
    lines = [json.dumps(row) for row in make_world(rows, 3).pool]
    path.write_text("\n".join([*lines, '{"text": 1}', "not JSON"]) + "\n", encoding="utf-8")
    return path


def settings_of(folder: Path, **given: Any) -> Any:
    """Return settings of a small run in `folder/run`."""
    from nncift.config import resolve
    from nncift.demo import model_path

    usual: dict[str, Any] = {
        "labels": "25%",
        "budget": "25%",
        "encoder": "hash",
        "device": "cpu",
        "model": str(model_path()),
    }
    usual |= {"teacher": "delift", "features": "text"}
    own = {name: value for name, value in {**usual, **given}.items() if value is not None}
    return resolve({**own, "pool": [str(folder / "pool.jsonl")], "test_items": 8, "validation_items": 6})


def run(folder: Path, executor: Any = None, **given: Any) -> bool:
    """Run the pipeline as the command line does, or a shard of it; tell whether that has left nothing for others."""
    from nncift import pipeline
    from nncift.core.parallel import Incomplete
    from nncift.stages.request import Request

    request = Request.resolve(settings_of(folder, **given), out=folder / "run")
    try:
        pipeline.execute(request, folder / "run", executor=executor)
    except Incomplete as shard:
        return shard.report is not None and bool(shard.report.to_json()["finished"])
    return True


def shards(folder: Path, **given: Any) -> None:
    """Do both shards of the run, round by round, until nothing is left for them."""
    from nncift.distributed.shards import Shard, ShardExecutor
    from nncift.models import embedding_cache

    if given.get("features") != "probe":
        # So few rows would be one block. Embeddings by hash are the same in any, what a model says is not, to the bit.
        blocks: Any = embedding_cache
        blocks.BLOCK = 12
    # What the first has left may be what the second did then.
    while not [run(folder, ShardExecutor(Shard(number, 2)), **given) for number in (1, 2)][1]:
        pass


def shards_joined(folder: Path, **given: Any) -> None:
    """Do both shards, and join them."""
    shards(folder, **given)
    run(folder, **given)


def _share_everything() -> None:
    """Let calculations be worth sharing, however small."""
    from nncift.core import parallel as calculation

    shared: Any = calculation
    shared.WORTH, shared.BYTES_A_SECOND = 0.0, float("inf")


def shards_calculating(folder: Path) -> None:
    """Do both shards, calculations too, and join them."""
    _share_everything()
    shards_joined(folder, **ON_GRAPH)


def by_ray(folder: Path, **given: Any) -> None:
    """Run with two workers of a local cluster, whose clocks stand still too."""
    from nncift.distributed import ray_cluster as cluster
    from nncift.distributed.ray_worker import Worker

    class Still(Worker):
        """A worker without a clock."""

        def do(self, *order: Any) -> Any:
            """Do tasks."""
            time.perf_counter = lambda: 0.0
            return super().do(*order)

    class Cluster(cluster.RayExecutor):
        """A cluster of such workers."""

        made_of = Still

    _share_everything()
    run(folder, Cluster(workers=2), **given)


def select_again(folder: Path) -> None:
    """Choose again in place, and beside it."""
    from nncift.runs.select_again import reselect

    reselect(folder / "run", {"budget": "6"})
    if not (folder / "other").exists():
        reselect(folder / "run", {"budget": "9", "objective": "topk"}, folder / "other")


def score_and_export(folder: Path) -> None:
    """Score rows and export the selected ones."""
    from nncift.data import read
    from nncift.data.export import export
    from nncift.stages.finish import score_file

    score_file(read(folder / "pool.jsonl"), folder / "run", folder / "scores.parquet", device="cpu")
    for to in ("same", "trl", "llamafactory"):
        export(folder / "run", folder / "export" / f"{to}.jsonl", to=to)


def evaluate(folder: Path) -> None:
    """Judge the run by the full teacher."""
    from nncift.runs.evaluate import evaluate

    evaluate(folder / "run", full_teacher=True, device="cpu")


def demo(folder: Path) -> None:
    """Play the demo."""
    from nncift.demo.play import play

    play(folder / "demo", rows=50, labels="25%")


ON_GRAPH: Mapping[str, Any] = {"plan": "scatter", "neighbours": 8}
LESS = {"projection": 32, "epochs": 2, "warmup_share": 0.2, "rank": 4}
SCENARIOS: Mapping[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario("delift, scatter", lambda folder: run(folder, plan="scatter")),
        Scenario("delift, active, probe", lambda folder: run(folder, plan="active", features="probe")),
        Scenario("less", lambda folder: run(folder, teacher="less", option=LESS)),
        Scenario("loss", lambda folder: run(folder, teacher="loss")),
        Scenario("select", select_again, ready=lambda folder: run(folder, plan="scatter")),
        Scenario("score, export", score_and_export, ready=lambda folder: run(folder, plan="scatter")),
        Scenario("evaluate", evaluate, ready=lambda folder: run(folder, plan="scatter")),
        Scenario("demo", demo),
        Scenario("shards", partial(shards_joined, plan="scatter")),
        Scenario("shards, active, probe", partial(shards_joined, plan="active", features="probe")),
        Scenario("delift, on a graph", partial(run, **ON_GRAPH)),
        Scenario("shards, calculating", shards_calculating),
        Scenario("shards, less", partial(shards_joined, teacher="less", option=LESS)),
        Scenario("joining shards", partial(run, plan="scatter"), ready=partial(shards, plan="scatter")),
        Scenario("Ray's driver", partial(by_ray, plan="scatter")),
    )
}


class Harness:
    """Children of this process, in a folder of its own. Make one per process and use it for all that it is asked."""

    def __init__(self, base: Path, warm: Callable[[Path], object] | None = None) -> None:
        """Import and compile what children need: all of it, or what something needs that they do (`warm`)."""
        self.base = base
        self.work = base / "work"
        self._shared = mmap.mmap(-1, 4096)
        _warm(warm or _most)

    def child(self, act: Callable[[Path], object], *, kill_at: int | None = None, after: float | None = None) -> int:
        """Run in a child, killed before its n-th change on disk or after seconds; return its exit code, negative = killed."""
        child = self.start(act, kill_at)
        if after is not None:
            time.sleep(after)
            os.kill(child, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def start(self, act: Callable[[Path], object], kill_at: int | None = None) -> int:
        """Start a child and return its process id."""
        self._tell("0", BEGIN)
        child = os.fork()
        if child == 0:
            self._live(act, kill_at)
        return child

    def record(self) -> tuple[int, str]:
        """Return how many changes the last child made and which stage it was in."""
        changes, _, stage = bytes(self._shared[:]).split(b"\0")[0].decode().partition(" ")
        return int(changes), stage

    @property
    def said(self) -> str:
        """What the last child wrote to standard error."""
        return (self.base / "said.txt").read_text(encoding="utf-8", errors="replace")

    @cache  # noqa: B019 - lives as long as the process
    def reference(self, name: str) -> tuple[dict[str, bytes], int, float, Path]:
        """Run a scenario without a kill; return its files, how many changes it makes, its seconds, and where its start lies."""
        scenario, before = SCENARIOS[name], self.base / f"before {name}"
        self.clear()
        self.work.mkdir(parents=True)
        pool_of(self.work)
        self.must(scenario.ready)
        shutil.copytree(self.work, before)
        began = time.perf_counter()
        self.must(scenario.act)
        seconds = time.perf_counter() - began
        return files_of(self.work), self.record()[0], seconds, before

    def fresh(self, name: str) -> None:
        """Put the work folder where the scenario begins."""
        before = self.reference(name)[3]
        self.clear()
        shutil.copytree(before, self.work)

    def clear(self) -> None:
        """Remove the work folder."""
        shutil.rmtree(self.work, ignore_errors=True)

    def must(self, act: Callable[[Path], object]) -> None:
        """Run in a child that has to succeed."""
        if (code := self.child(act)) != 0:
            raise RuntimeError(f"exit code {code}: {self.said[-2000:]}")

    def kill(self, name: str, *, at: int | None = None, after: float | None = None) -> Kill:
        """Kill once, go on, and compare with the reference."""
        self.fresh(name)
        code = self.child(SCENARIOS[name].act, kill_at=at, after=after)
        how = f"write {at}" if after is None else f"time {after:.3f} s"
        stage = self.record()[1] if code == -signal.SIGKILL else "finished before the kill"
        if code not in (0, -signal.SIGKILL):
            return Kill(name, how, stage, f"exit code {code} before the kill: {self.said[-500:]}")
        return Kill(name, how, stage, self.goes_on(name))

    def kills_in_a_row(self, name: str, first: int, step: int = 7) -> list[Kill]:
        """Kill session after session, each a few changes later than the last, until one comes through; then compare."""
        self.fresh(name)
        kills: list[Kill] = []
        while (code := self.child(SCENARIOS[name].act, kill_at=first + step * len(kills))) == -signal.SIGKILL:
            how = f"write {first + step * len(kills)} of session {len(kills) + 1}"
            kills.append(Kill(name, how, self.record()[1], None))
        wrong = None if code == 0 else f"exit code {code}: {self.said[-500:]}"
        wrong = wrong or self.goes_on(name)
        return [Kill(kill.scenario, kill.how, kill.stage, wrong) for kill in kills]

    def goes_on(self, name: str) -> str | None:
        """Run the same again; return what is wrong with what it leaves, None where nothing is."""
        wanted = self.reference(ALIKE.get(name, name))[0]
        code = self.child(SCENARIOS[name].act)
        if code != 0:
            return f"exit code {code} on going on: {self.said[-1500:]}"
        return difference(wanted, files_of(self.work))

    def _tell(self, changes: str, stage: str) -> None:
        text = f"{changes} {stage}".encode()[:4000] + b"\0"
        self._shared[: len(text)] = text

    def _live(self, act: Callable[[Path], object], kill_at: int | None) -> None:
        code = 1
        try:
            errors = os.open(self.base / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(errors, 2)
            os.dup2(errors, 1)
            sys.stderr = os.fdopen(2, "w", buffering=1)
            logging.basicConfig(level=logging.WARNING, stream=sys.stderr, force=True, format="%(message)s")
            os.environ["NNCIFT_CACHE"] = str(self.work / "cache")
            self._count(kill_at)
            act(self.work)
            code = 0
        except BaseException as error:  # noqa: BLE001 - a child tells all and ends
            traceback.print_exc()
            code = getattr(error, "exit_code", 6 if isinstance(error, OSError) else 1)
        finally:
            sys.stderr.flush()
            os._exit(code)

    def _count(self, kill_at: int | None) -> None:
        """Count changes below the work folder, and die before the n-th; note the stage at work; stop all clocks."""
        from nncift.storage.ledger import Stopwatch
        from nncift.storage.run_directory import RunDir

        below = f"{self.work}/"
        state: dict[str, Any] = {"changes": 0, "stage": BEGIN}

        def change() -> None:
            state["changes"] += 1
            self._tell(str(state["changes"]), state["stage"])
            if state["changes"] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

        def hook(event: str, arguments: Any) -> None:
            if event == "open":
                writes = isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
                if writes and str(arguments[0]).startswith(below):
                    change()
            elif event in ("os.rename", "os.remove", "os.mkdir") and str(arguments[0]).startswith(below):
                change()

        measured, sync, flush = RunDir.measured, os.fsync, np.memmap.flush

        @contextmanager
        def noted(directory: RunDir, stage: str) -> Iterator[Any]:
            outer, state["stage"] = state["stage"], stage
            try:
                with measured(directory, stage) as cost:
                    yield cost
            finally:
                # Also where a shard leaves a stage to others.
                state["stage"] = f"after {stage}" if outer == BEGIN or outer.startswith("after") else outer

        def synced(handle: int) -> None:
            change()
            sync(handle)

        def flushed(array: Any) -> None:
            change()
            flush(array)

        directory: Any = RunDir
        directory.measured = noted
        system: Any = os
        system.fsync = synced
        mapped: Any = np.memmap
        mapped.flush = flushed
        time.perf_counter = lambda: 0.0
        monkey: Any = Stopwatch
        monkey.add_to = lambda watch, cost: None
        sys.addaudithook(hook)


def files_of(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder but locks and caches, whose names hold the process."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock" and path.relative_to(folder).parts[0] != "cache"
    }


def difference(wanted: Mapping[str, bytes], found: Mapping[str, bytes]) -> str | None:
    """Say how two sets of files differ, None where they do not."""
    lost, more = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    other = [name for name in sorted(wanted.keys() & found.keys()) if wanted[name] != found[name]]
    record = [
        f"{what}: {', '.join(names[:5])}"
        for what, names in (("lost", lost), ("left over", more), ("other bytes", other))
        if names
    ]
    return "; ".join(record) or None


def _most(folder: Path) -> None:
    """Do what uses most of the package."""
    run(folder, plan="active", features="probe")
    select_again(folder)


def _warm(act: Callable[[Path], object]) -> None:
    """Import and compile what children need, and keep the model, so that a child costs only its own work."""
    import torch

    from nncift.demo import model_path
    from nncift.models.causal_lm import CausalLM

    torch.set_num_threads(1)
    load = CausalLM.load
    if not hasattr(load, "cache_info"):
        kept: Any = CausalLM
        kept.load = lru_cache(load)
    CausalLM.load(str(model_path()), device="cpu", dtype="auto", context=None, trust_remote_code=False)
    # Kernels are compiled on first use, which every child would have to do for itself.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["NNCIFT_CACHE"] = str(folder / "cache")
        pool_of(folder)
        act(folder)
