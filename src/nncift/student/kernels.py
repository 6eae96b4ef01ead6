"""All-pairs arithmetic of factorised students, compiled for the CPU.

`sum_k v_k relu(a_ik + b_jk) + c` for all i, j, with a and b projected once per example. Since
`relu(a + b) = max(a, -b) + b`, it is `sum_k v_k max(a_ik, -b_jk) + (sum_k v_k b_jk + c)`: two vector steps a pair
instead of three. Registers hold four targets by two sources, which halves the loads. Sums are in float32; every pair is
summed in the same order whatever the number of threads.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit, prange

Floats = npt.NDArray[np.float32]

LANES = 8
_MATH = {"reassoc", "contract", "nsz", "nnan"}


@njit(cache=True, fastmath=_MATH)
def _one(a: Floats, b: Floats, v: Floats) -> np.float32:
    total = np.float32(0)
    for k in range(v.shape[0]):
        total += v[k] * (a[k] if a[k] > b[k] else b[k])
    return total


@njit(cache=True, fastmath=_MATH, parallel=True)
def _block(a: Floats, negated: Floats, v: Floats, offset: Floats, out: Floats) -> None:
    n, m, hidden = a.shape[0], negated.shape[0], v.shape[0]
    for pair in prange((m + 1) // 2):
        j = 2 * pair
        if j + 1 == m:
            for i in range(n):
                out[j, i] = _one(a[i], negated[j], v) + offset[j]
            continue
        # Row views, not double indices: numba vectorises the loop over k only then.
        x, y = negated[j], negated[j + 1]
        for quad in range(n // 4):
            i = 4 * quad
            r0, r1, r2, r3 = a[i], a[i + 1], a[i + 2], a[i + 3]
            s00 = s10 = s20 = s30 = np.float32(0)
            s01 = s11 = s21 = s31 = np.float32(0)
            for k in range(hidden):
                w, b0, b1 = v[k], x[k], y[k]
                a0, a1, a2, a3 = r0[k], r1[k], r2[k], r3[k]
                s00 += w * (a0 if a0 > b0 else b0)
                s10 += w * (a1 if a1 > b0 else b0)
                s20 += w * (a2 if a2 > b0 else b0)
                s30 += w * (a3 if a3 > b0 else b0)
                s01 += w * (a0 if a0 > b1 else b1)
                s11 += w * (a1 if a1 > b1 else b1)
                s21 += w * (a2 if a2 > b1 else b1)
                s31 += w * (a3 if a3 > b1 else b1)
            o0, o1 = offset[j], offset[j + 1]
            out[j, i], out[j, i + 1], out[j, i + 2], out[j, i + 3] = s00 + o0, s10 + o0, s20 + o0, s30 + o0
            out[j + 1, i], out[j + 1, i + 1], out[j + 1, i + 2], out[j + 1, i + 3] = (
                s01 + o1,
                s11 + o1,
                s21 + o1,
                s31 + o1,
            )
        for i in range(n - n % 4, n):
            out[j, i] = _one(a[i], negated[j], v) + offset[j]
            out[j + 1, i] = _one(a[i], negated[j + 1], v) + offset[j + 1]


@njit(cache=True, fastmath=_MATH, parallel=True)
def _pairs(a: Floats, negated: Floats, i: npt.NDArray[np.int32], j: npt.NDArray[np.int32], v: Floats) -> Floats:
    out = np.empty(len(i), np.float32)
    for pair in prange(len(i)):
        out[pair] = _one(a[i[pair]], negated[j[pair]], v)
    return out


def relu_block(targets: Floats, sources: Floats, weights: Floats, bias: float) -> Floats:
    """Return `(n_sources, n_targets)` float32: every pair's value; targets `(n, hidden)`, sources `(m, hidden)`."""
    a, negated, v, offset = _prepared(targets, sources, weights, bias)
    out = np.empty((len(sources), len(targets)), np.float32)
    _block(a, negated, v, offset, out)
    return out


def relu_pairs(
    targets: Floats, sources: Floats, target: npt.NDArray[np.int32], source: npt.NDArray[np.int32], weights: Floats,
    bias: float,
) -> Floats:  # fmt: skip
    """Return `(n_pairs,)` float32 for pairs given by codes into targets and sources."""
    a, negated, v, offset = _prepared(targets, sources, weights, bias)
    values: Floats = _pairs(a, negated, target, source, v) + offset[source]
    return values


def _prepared(targets: Floats, sources: Floats, weights: Floats, bias: float) -> tuple[Floats, Floats, Floats, Floats]:
    """Pad hidden to whole vectors and negate the sources."""
    offset = np.asarray(sources @ weights + np.float32(bias), np.float32)
    pad = ((0, 0), (0, -len(weights) % LANES))
    a = np.pad(np.asarray(targets, np.float32), pad)
    negated = np.pad(-np.asarray(sources, np.float32), pad)
    return a, negated, np.pad(np.asarray(weights, np.float32), pad[1]), offset
