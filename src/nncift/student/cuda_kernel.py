"""The Triton kernel of cuda.py, in a module of its own since Triton reads its source when it is imported."""

import triton
import triton.language as tl


@triton.jit
def relu_tile(
    targets, negated, weights, offset, out, n, m, hidden, TILE_TARGETS: tl.constexpr, TILE_SOURCES: tl.constexpr
):
    """Write one tile of pairs. targets: `(hidden, n)`; negated sources: `(hidden, m)`; out: `(m, n)`, all contiguous."""
    i = tl.program_id(0) * TILE_TARGETS + tl.arange(0, TILE_TARGETS)
    j = tl.program_id(1) * TILE_SOURCES + tl.arange(0, TILE_SOURCES)
    total = tl.zeros((TILE_SOURCES, TILE_TARGETS), dtype=tl.float32)
    for k in range(hidden):
        a = tl.load(targets + k * n + i, mask=i < n, other=0.0)
        b = tl.load(negated + k * m + j, mask=j < m, other=0.0)
        total += tl.load(weights + k) * tl.maximum(a[None, :], b[:, None])
    total += tl.load(offset + j, mask=j < m, other=0.0)[:, None]
    place = j.to(tl.int64)[:, None] * n + i[None, :]
    tl.store(out + place, total, mask=(j[:, None] < m) & (i[None, :] < n))
