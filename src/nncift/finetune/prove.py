"""`run --prove`: whether what a run selected trains better than what costs nothing, judged by the rows that it set aside."""

from __future__ import annotations

from pathlib import Path

from nncift.core.permissions import NOTHING, Permissions
from nncift.core.progress import Progress, silent
from nncift.core.result_types import JsonObject
from nncift.finetune.experiment import tune

ARMS = ("selected", "random", "embedding", "none")


def prove(run: Path, progress: Progress = silent, *, allowed: Permissions = NOTHING) -> JsonObject:
    """Tune on a finished run with its `--holdout`, arms `selected`, `random`, `embedding` and `none`, in the folder `tune`.

    What is finished there is not computed again. allowed: what may be done with the run's model. Raises the errors of `tune`.
    """
    return tune(run, {"arms": ARMS}, progress=progress, allowed=allowed)


def brief(record: JsonObject) -> list[JsonObject]:
    """Return the comparisons of what was selected with the other arms, way by way and metric by metric."""
    return [
        {"how": group["how"], **comparison}
        for group in record["results"]
        for comparison in group["comparisons"]
        if "selected" in (comparison["arm"], comparison["against"])
    ]
