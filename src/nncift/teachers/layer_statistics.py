"""Statistics of layers on disk, and the roots that are taken of them."""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from nncift.errors import DataError
from nncift.models.checkpoints import read_json
from nncift.storage.atomic import digest, reporting_full_disk, write_sealed

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
FILE, ABOUT = "statistics.safetensors", "statistics.json"

Statistics = Mapping[str, Mapping[str, "torch.Tensor"]]
"""By layer and by name of the statistic."""


def keep_statistics(folder: Path | None, key: str, found: Statistics) -> Statistics:
    """Write statistics into a folder that appears whole or not at all, and return them; nothing is written without one.

    Where another process has written the same meanwhile, its are returned: eigenvectors are not the same to the last bit, and
    what is made of rows must rest on one set of them.
    """
    if folder is None:
        return found
    from safetensors.torch import save_file

    part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    with reporting_full_disk(folder):
        flat = {f"{name}|{of}": value.cpu().contiguous() for name, own in found.items() for of, value in own.items()}
        save_file(flat, part / FILE)
    write_sealed(part / ABOUT, {"key": key, "digest": digest(part / FILE)})
    try:
        part.rename(folder)
    except OSError:
        # Something stands there: of an earlier state of the teacher, or another process was faster.
        if (theirs := kept_statistics(folder, key)) is not None:
            shutil.rmtree(part, ignore_errors=True)
            return theirs
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    return found


def kept_statistics(folder: Path | None, key: str) -> Statistics | None:
    """Read statistics; None where there are none, they are others', or they are damaged, which the log says."""
    from safetensors.torch import load_file

    if folder is None:
        return None
    try:
        about = read_json(folder / ABOUT)
        if about is None or about["key"] != key:
            return None
        if digest(folder / FILE) != about["digest"]:
            raise ValueError("its checksum does not match")
    except (DataError, OSError, ValueError, KeyError) as error:
        log.warning("the statistics in %s are damaged (%s); they are taken again", folder, error)
        return None
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in load_file(folder / FILE).items():
        layer, _, of = name.rpartition("|")
        found.setdefault(layer, {})[of] = value
    return found


def inverse_root(matrix: torch.Tensor, damping: float) -> torch.Tensor | None:
    """Return `(M + damping * mean diag M * I)^-1/2` of a symmetric matrix `(n, n)`, None where M is 0; no numbers stay none."""
    import torch

    whole = matrix.double()
    mean = float(whole.diagonal().mean())
    if not math.isfinite(mean):
        return torch.full_like(matrix, math.nan)
    if mean <= 0:
        return None
    values, vectors = torch.linalg.eigh(whole)
    roots = (values.clamp(min=0) + damping * mean).rsqrt()
    found: torch.Tensor = ((vectors * roots) @ vectors.T).float()
    return found
