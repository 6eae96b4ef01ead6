"""Which executor a run has: this process, or the workers of a cluster."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nncift.config import RunSettings
from nncift.core.tasks import Executor, LocalExecutor
from nncift.errors import UsageError

ENGINES = ("local", "ray")


@dataclass(frozen=True)
class ClusterSettings:
    """Where workers come from.

    address: of an existing cluster (`auto`, `HOST:PORT`, `ray://...`); None = the one this process is connected to, else a local
    one of its own. workers: None = as many as CPUs, or as GPUs allow. gpus_per_worker: 0 = they compute on CPUs; None = one where
    the cluster has GPUs and the run's device is `auto` or a GPU.
    """

    address: str | None = None
    workers: int | None = None
    gpus_per_worker: float | None = None

    def __post_init__(self) -> None:
        """Raise UsageError for numbers that cannot be."""
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"--workers is at least 1, not {self.workers}")
        if self.gpus_per_worker is not None and self.gpus_per_worker < 0:
            raise UsageError(f"--gpus-per-worker is 0 or more, not {self.gpus_per_worker}")

    @classmethod
    def of(cls, executor: str, shard: str | None, **given: Any) -> ClusterSettings | None:
        """Return the settings that flags stand for, None for a run in this process. Raises UsageError where they do not fit."""
        if executor not in ENGINES:
            raise UsageError(f"--engine is {' or '.join(ENGINES)}, not {executor!r}")
        named = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]
        if executor == "local":
            if named:
                raise UsageError(f"{named[0]} was given, which goes with --engine ray")
            return None
        if shard is not None:
            raise UsageError("--shard and --engine ray are two ways to share a run out; give one of them")
        return cls(**{name: value for name, value in given.items() if value is not None})


def executor_of(cluster: ClusterSettings | None, settings: RunSettings, run: Path) -> AbstractContextManager[Executor]:
    """Return an executor that works inside a `with` block. Raises ResourceError where Ray is missing."""
    if cluster is None:
        return nullcontext(LocalExecutor())
    from nncift.distributed.ray_cluster import RayExecutor

    return RayExecutor(settings, run, cluster)
