"""All-pairs arithmetic of factorised students on a GPU, in Triton; the same formula as kernels.py, accumulated in float32.

`sum_k v_k max(a_ik, -b_jk) + (sum_k v_k b_jk + c)`: both sides lie hidden-first, so that neighbouring threads read neighbouring
rows, and a program keeps a tile of pairs in registers while it walks through the hidden units once. Triton comes with torch's
CUDA builds; without a GPU, `TRITON_INTERPRET=1` runs the kernel in Python.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from nncift.errors import ResourceError

Floats = npt.NDArray[np.float32]
TILE_TARGETS, TILE_SOURCES = 128, 64


def available() -> bool:
    """Tell whether the kernel can run: Triton is there, and a CUDA device or Triton's interpreter."""
    try:
        import torch
        import triton  # noqa: F401 - whether it can be imported is the question
    except ImportError:
        return False
    return torch.cuda.is_available() or _interpreted()


def relu_block(targets: Floats, sources: Floats, weights: Floats, bias: float) -> Floats:
    """Return `(n_sources, n_targets)` float32: every pair's value; targets `(n, hidden)`, sources `(m, hidden)`.

    Raises ResourceError where the kernel cannot run.
    """
    if not available():
        raise ResourceError("scoring on a GPU needs a CUDA device and the package triton; use the CPU instead")
    import torch

    device = "cpu" if _interpreted() else "cuda"
    a, b, v = (
        torch.from_numpy(np.ascontiguousarray(part, np.float32)).to(device) for part in (targets, sources, weights)
    )
    block: Floats = relu_block_on_device(a, b, v, bias).cpu().numpy()
    return block


def relu_block_on_device(targets: Any, sources: Any, weights: Any, bias: float) -> Any:
    """Return the same as `relu_block` for float32 tensors that lie on the device, `(n_sources, n_targets)`, and stay there."""
    import torch
    import triton

    n, m, hidden = len(targets), len(sources), len(weights)
    out = torch.empty((m, n), dtype=torch.float32, device=targets.device)
    if n and m:
        offset = sources @ weights + bias
        grid = (triton.cdiv(n, TILE_TARGETS), triton.cdiv(m, TILE_SOURCES))
        _kernel()[grid](
            targets.T.contiguous(), (-sources.T).contiguous(), weights.contiguous(), offset, out, n, m, hidden,
            TILE_TARGETS=TILE_TARGETS, TILE_SOURCES=TILE_SOURCES,
        )  # fmt: skip
    return out


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _kernel() -> Any:
    """Return the compiled kernel; Triton is loaded only where it is used."""
    from nncift.student.cuda_kernel import relu_tile

    return relu_tile
