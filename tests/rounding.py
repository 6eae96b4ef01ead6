"""Kernels that round otherwise for every shape of their inputs, as a plugin of pytest: `-p tests.rounding`.

Which kernel a library takes, and in which order it adds, depends on the processor and on the shapes. So the same row in another
batch may have other last bits, though it has none here. Under this plugin torch's float32 sums and functions get an error of up
to SIZE roundings, drawn by operation and shapes: always the same for the same shapes, another one for others. A test that fails
under it holds results to more than the arithmetic promises. Whole numbers stay: their sums are exact in any order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

SIZE = 4 * 2.0**-24
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")
OTHERS = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "sum",
    "mean",
    "_softmax",
    "_log_softmax",
    "native_layer_norm",
    "silu",
    "gelu",
    "rsqrt",
    "exp",
    "tanh",
    "logsumexp",
    "linalg_vector_norm",
    "_fused_rms_norm",
)


class Rounding(TorchDispatchMode):
    """Inside, operations round in a way of their own."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        first = found[0] if isinstance(found, tuple) else found
        plain = type(first) is torch.Tensor and first.dtype == torch.float32 and first.device.type == "cpu"
        if plain and first.numel() and name in (*PRODUCTS, *OTHERS):
            shapes = [tuple(given.shape) for given in args if isinstance(given, torch.Tensor)]
            numbers = torch.where(torch.isfinite(first) & (first != first.round()), first, 0.0)
            # What is added may be larger than its sum: as large as other sums of the same row.
            size = numbers.square().mean(-1, keepdim=True).sqrt() if name in PRODUCTS else numbers
            first.add_(torch.where(numbers == 0, numbers, size * drawn(name, shapes, first.shape)))
        return found


def drawn(name: str, shapes: Any, shape: torch.Size) -> torch.Tensor:
    """Return relative errors of this shape."""
    seed = hashlib.blake2b(repr((name, shapes)).encode(), digest_size=7).digest()
    random = torch.Generator().manual_seed(int.from_bytes(seed, "big"))
    return torch.rand(shape, generator=random).mul_(2 * SIZE).sub_(SIZE)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    """Run a test, its fixtures included, inside."""
    with Rounding():  # type: ignore[no-untyped-call]
        return (yield)
