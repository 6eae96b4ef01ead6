"""A run in one process, and the same by shards, on tiny models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from nncift import config, pipeline
from nncift.core.parallel import Incomplete
from nncift.distributed.start import executor_of
from nncift.stages import inputs
from nncift.stages.request import Request
from nncift.teachers import registry
from tests.hastened import hasten

Start = Callable[..., Any]


@pytest.fixture(autouse=True)
def hastened(monkeypatch: pytest.MonkeyPatch) -> None:
    hasten(monkeypatch)


def content(run: Path) -> dict[str, Any]:
    """Return what a run selected and learned from, to the byte where files are such, and its bill without seconds."""
    found: dict[str, Any] = {name: (run / name).read_bytes() for name in ("subset.jsonl", "embeddings.npy")}
    found["selection"] = pq.read_table(run / "selection.parquet").to_pylist()
    for file in sorted((run / "labels").rglob("*")):
        # The cost of chunks holds their seconds.
        if file.suffix in (".npy", ".parquet", ".safetensors") and not file.name.startswith("costs-"):
            found[str(file.relative_to(run))] = file.read_bytes()
    ledger = json.loads((run / "ledger.json").read_text())
    found["passes"] = ledger["teacher_passes"], ledger["full_teacher_passes"]
    found["stages"] = {name: (cost["model_tokens"], cost["model_passes"]) for name, cost in ledger["stages"].items()}
    found["fidelity"] = json.loads((run / "fidelity.json").read_text())
    return found


@pytest.fixture
def start(
    llama_folder: Path, write_pool: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Start:
    """Return a function that makes a run, or one shard of it, on 40 rows with a tiny language model."""
    pool = write_pool(40)

    def begin(out: str, shard: str | None = None, executor: Any = None, **more: Any) -> Any:
        given = {
            "pool": str(pool),
            "teacher": "delift",
            "model": str(llama_folder),
            "encoder": "hash",
            "labels": "40%",
            "budget": "20%",
            "template": "plain",
            "test_items": 4,
            "validation_items": 3,
            "features": "text",
            **more,
        }
        settings = config.resolve(given)
        # As in a process of its own: what is embedded is not known from elsewhere.
        monkeypatch.setenv("NNCIFT_CACHE", str(tmp_path / f"cache-{out}-{shard}".replace("/", "-")))
        path = tmp_path / out
        teacher = registry.create(settings, encoder=settings.encoder, workspace=inputs.workspace_of(path))
        request = Request.resolve(settings, teacher=teacher, out=path)
        try:
            done = pipeline.execute(request, path, executor=executor or executor_of(shard=shard))
        except Incomplete as incomplete:
            return incomplete.report.to_json() if incomplete.report else {}
        assert shard is None
        return done

    return begin
