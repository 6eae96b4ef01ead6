"""Which executor a run has, by the flags of the command line."""

from __future__ import annotations

from typing import Any

from nncift.core.parallel import Executor
from nncift.distributed.local import LocalExecutor
from nncift.distributed.shards import Shard, ShardExecutor
from nncift.errors import UsageError

ENGINES = ("local", "ray")


def executor_of(engine: str = "local", shard: str | None = None, **of_ray: Any) -> Executor:
    """Return the executor that flags stand for. of_ray: address, workers and gpus_per_worker, None where they were not given.

    Raises UsageError where flags do not fit, ResourceError where Ray is missing.
    """
    if engine not in ENGINES:
        raise UsageError(f"--engine is {' or '.join(ENGINES)}, not {engine!r}")
    given = {name: value for name, value in of_ray.items() if value is not None}
    if engine == "ray":
        from nncift.distributed.ray_cluster import RayExecutor

        if shard is not None:
            raise UsageError("--shard and --engine ray are two ways to share a run out; give one of them")
        return RayExecutor(**given)
    for name in given:
        raise UsageError(f"--{name.replace('_', '-')} was given, which goes with --engine ray")
    return LocalExecutor() if shard is None else ShardExecutor(Shard.parse(shard))
