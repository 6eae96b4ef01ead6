"""Scoring all pairs: the package's kernel, a hand-tuned C loop (yardstick.c), batched concatenation, and one pair per call."""

from __future__ import annotations

import ctypes
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nncift.student.network_kernels import relu_block

Floats = npt.NDArray[np.float32]
DIM, HIDDEN = 1024, 100


def turns(actions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Return the median seconds of actions that take turns, after one warm-up of each."""
    found: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(repeats + 1):
        for name, action in actions.items():
            began = time.perf_counter()
            action()
            if turn:
                found[name].append(time.perf_counter() - began)
    return {name: statistics.median(times) for name, times in found.items()}


def compare(repeats: int, size: int = 4096) -> dict[str, Any]:
    """Score `size` x `size` pairs in each way."""
    random = np.random.default_rng(0)
    a, b = (random.normal(size=(size, HIDDEN)).astype(np.float32) for _ in range(2))
    weights = random.normal(size=HIDDEN).astype(np.float32)
    actions: dict[str, Callable[[], Any]] = {"fused": lambda: relu_block(a, b, weights, 0.0)}
    with tempfile.TemporaryDirectory() as folder:
        yardstick = c_loop(Path(folder), a, b, weights)
        if yardstick is not None:
            actions["c"] = yardstick
        seconds = turns(actions, repeats)
    fused = seconds["fused"] / size**2
    plain, single = naive(repeats)
    wide, narrow = (random.normal(size=(n, HIDDEN)).astype(np.float32) for n in (15_000, 5_000))
    record: dict[str, Any] = {
        "fused_pairs_per_second": 1 / fused,
        "fused_billion_pair_hidden_steps_per_second": HIDDEN / fused / 1e9,
        "times_faster_than_batched_concatenation": plain / fused,
        "times_faster_than_one_pair_per_call": single / fused,
        "microseconds_of_one_pair_per_call": 1e6 * single,
        "seconds_of_15000_x_5000_pairs": turns({"big": lambda: relu_block(narrow, wide, weights, 0.0)}, repeats)["big"],
    }
    if "c" in seconds:
        record["c_billion_pair_hidden_steps_per_second"] = HIDDEN * size**2 / seconds["c"] / 1e9
        record["seconds_over_those_of_c"] = seconds["fused"] / seconds["c"]
    return record


def naive(repeats: int) -> tuple[float, float]:
    """Return the seconds of a pair by batches of concatenated embeddings, and one by one, through torch."""
    import torch

    network = torch.nn.Sequential(torch.nn.Linear(2 * DIM, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, 1))
    vectors = torch.randn(256, DIM)
    batch = torch.cat([vectors, vectors.flip(0)], dim=1)

    def concatenated() -> None:
        with torch.inference_mode():
            for row in vectors[:16]:
                network(torch.cat([row.expand(256, DIM), vectors], dim=1))

    def one_by_one() -> None:
        with torch.inference_mode():
            for row in batch:
                network(row)

    found = turns({"plain": concatenated, "single": one_by_one}, repeats)
    return found["plain"] / (16 * 256), found["single"] / 256


def c_loop(folder: Path, a: Floats, b: Floats, weights: Floats) -> Callable[[], Any] | None:
    """Compile the yardstick and return a call that scores all pairs, checked against the package; None without gcc."""
    if shutil.which("gcc") is None:
        return None
    library = folder / "yardstick.so"
    source = Path(__file__).with_name("yardstick.c")
    flags = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"]
    subprocess.run(["gcc", *flags, str(source), "-o", str(library)], check=True)
    call = ctypes.CDLL(str(library)).all_pairs
    n, m = len(a), len(b)
    strips = np.ascontiguousarray(a.reshape(n // 16, 16, HIDDEN).transpose(0, 2, 1))
    negated, offset = np.ascontiguousarray(-b), b @ weights

    def filled() -> Floats:
        # New memory every time, as the package takes: the system hands it out page by page, which is a part of the work.
        out = np.empty((m, n), np.float32)
        arrays = [ctypes.c_void_p(array.ctypes.data) for array in (strips, negated, weights, offset, out)]
        call(*arrays, ctypes.c_long(n), ctypes.c_long(m), ctypes.c_long(HIDDEN))
        return out

    if not np.allclose(filled(), relu_block(a, b, weights, 0.0), atol=1e-3):
        raise RuntimeError("the C loop and the package give other values for the same pairs")
    return filled
