"""All-pairs arithmetic of factorised students, compiled for the CPU.

`sum_k v_k relu(a_ik + b_jk) + c` for all i, j, with a and b projected once per example. Since
`relu(a + b) = max(a, -b) + b`, it is `sum_k v_k max(a_ik, -b_jk) + (sum_k v_k b_jk + c)`: two vector steps a pair
instead of three. Sums are in float32; every pair is summed in the same order whatever the number of threads.

The inner loop is written in LLVM's vector types, through numba: its own vectoriser reaches half of that, since it takes sums
across lanes. A vector holds eight targets, so no sum crosses lanes; two vectors by four sources stay in registers, and strips
of sixteen targets, packed, stay in the first cache for a whole panel of sources. On hardware with other vectors LLVM splits
or joins them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from nncift.core.arrays import Codes, Floats
from nncift.core.threads import in_threads

LANES = 8
STRIP = 2 * LANES
ROWS = 4
PANEL = 32
"""Sources that a strip of targets meets before the next strip comes: with it they fill half of a usual first cache."""

_MATH = {"reassoc", "contract", "nsz", "nnan"}


def _at(builder: Any, address: Any, index: Any, kind: Any) -> Any:
    here = builder.add(address, builder.mul(index, ir.Constant(index.type, 4)))
    return builder.inttoptr(here, kind.as_pointer())


def _read(builder: Any, address: Any, index: Any, kind: Any) -> Any:
    found = builder.load(_at(builder, address, index, kind))
    found.align = 4
    return found


def _spread(builder: Any, value: Any, vector: Any) -> Any:
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), zeros)


def _fused(builder: Any, one: Any, other: Any, total: Any) -> Any:
    # One step where the hardware has it, two where it has not.
    return builder.fadd(builder.fmul(one, other, flags=("contract",)), total, flags=("contract",))


@intrinsic
def _tile(typing_context: Any, numbers: Any) -> Any:
    """Write `ROWS` sources by `STRIP` targets.

    numbers: eight integers, the addresses of strip, first source, weights, offsets and output, floats from one source to the
    next, floats from one output row to the next, and hidden.
    """
    signature = types.void(types.UniTuple(types.intp, 8))  # type: ignore[no-untyped-call]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        strip, source, weights, offset, out, source_step, out_step, hidden = (
            builder.extract_value(arguments[0], place) for place in range(8)
        )
        number, integer = ir.FloatType(), hidden.type
        vector = ir.VectorType(number, LANES)
        rows = [builder.add(source, builder.mul(source_step, ir.Constant(integer, 4 * r))) for r in range(ROWS)]
        before = builder.block
        loop, after = builder.append_basic_block("steps"), builder.append_basic_block("sums")
        builder.branch(loop)
        builder.position_at_end(loop)
        step = builder.phi(integer)
        sums = [[builder.phi(vector) for _ in range(STRIP // LANES)] for _ in range(ROWS)]
        place = builder.mul(step, ir.Constant(integer, STRIP))
        targets = [
            _read(builder, strip, builder.add(place, ir.Constant(integer, half * LANES)), vector)
            for half in range(STRIP // LANES)
        ]
        weight = _spread(builder, _read(builder, weights, step, number), vector)
        added = []
        for row, sums_of_row in zip(rows, sums, strict=True):
            other = _spread(builder, _read(builder, row, step, number), vector)
            highest = [builder.select(builder.fcmp_ordered(">", x, other), x, other) for x in targets]
            added.append([_fused(builder, weight, h, s) for h, s in zip(highest, sums_of_row, strict=True)])
        following = builder.add(step, ir.Constant(integer, 1))
        builder.cbranch(builder.icmp_signed("<", following, hidden), loop, after)
        step.add_incoming(ir.Constant(integer, 0), before)
        step.add_incoming(following, loop)
        for old, new in zip(sums, added, strict=True):
            for phi, value in zip(old, new, strict=True):
                phi.add_incoming(ir.Constant(vector, [0.0] * LANES), before)
                phi.add_incoming(value, loop)
        builder.position_at_end(after)
        for r, of_row in enumerate(added):
            constant = _spread(builder, _read(builder, offset, ir.Constant(integer, r), number), vector)
            for half, total in enumerate(of_row):
                index = builder.add(builder.mul(out_step, ir.Constant(integer, r)), ir.Constant(integer, half * LANES))
                builder.store(builder.fadd(total, constant), _at(builder, out, index, vector)).align = 4
        return context.get_dummy_value()

    return signature, generate


@njit(cache=True, nogil=True)
def _panels(strips: Floats, negated: Floats, v: Floats, offset: Floats, out: Floats, start: int, stop: int) -> None:
    """Write the panels of sources from start to stop.

    strips: `(n_strips, hidden, STRIP)`; negated: `(m_padded, hidden)`; out: `(m, n)`.
    """
    m, n = out.shape
    hidden = v.shape[0]
    edge = np.empty((ROWS, STRIP), np.float32)
    for panel in range(start, stop):
        for strip in range(strips.shape[0]):
            i = strip * STRIP
            for j in range(panel * PANEL, min((panel + 1) * PANEL, m), ROWS):
                whole = i + STRIP <= n and j + ROWS <= m
                into = out[j, i:].ctypes.data if whole else edge.ctypes.data
                numbers = (
                    strips[strip].ctypes.data,
                    negated[j].ctypes.data,
                    v.ctypes.data,
                    offset[j:].ctypes.data,
                    into,
                    hidden,
                    n if whole else STRIP,
                    hidden,
                )
                _tile(numbers)  # type: ignore[call-arg]  # numba passes the typing context
                if not whole:
                    for r in range(min(ROWS, m - j)):
                        for t in range(min(STRIP, n - i)):
                            out[j + r, i + t] = edge[r, t]


@njit(cache=True, nogil=True, fastmath=_MATH)
def _pairs(
    sides: tuple[Floats, Floats],
    codes: tuple[Codes, Codes],
    v: Floats,
    offset: Floats,
    out: Floats,
    start: int,
    stop: int,
) -> None:
    """Write the values of some pairs. sides: projections of targets, and of sources negated; codes: of both into these."""
    (a, negated), (i, j) = sides, codes
    for pair in range(start, stop):
        # Row views, not double indices: numba vectorises the loop over k only then.
        x, y = a[i[pair]], negated[j[pair]]
        total = np.float32(0)
        for k in range(v.shape[0]):
            total += v[k] * (x[k] if x[k] > y[k] else y[k])
        out[pair] = total + offset[j[pair]]


def relu_block(targets: Floats, sources: Floats, weights: Floats, bias: float) -> Floats:
    """Return `(n_sources, n_targets)` float32: every pair's value; targets `(n, hidden)`, sources `(m, hidden)`."""
    n, m, hidden = len(targets), len(sources), len(weights)
    out = np.empty((m, n), np.float32)
    if not (n and m):
        return out
    strips = np.zeros((-(-n // STRIP) * STRIP, hidden), np.float32)
    strips[:n] = targets
    strips = np.ascontiguousarray(strips.reshape(-1, STRIP, hidden).transpose(0, 2, 1))
    negated, offset = np.zeros((m + ROWS, hidden), np.float32), np.zeros(m + ROWS, np.float32)
    np.negative(sources, out=negated[:m])
    offset[:m] = sources @ weights + np.float32(bias)
    v = np.ascontiguousarray(weights, np.float32)
    in_threads(lambda a, b: _panels(strips, negated, v, offset, out, a, b), -(-m // PANEL), least=1)
    return out


def relu_pairs(targets: Floats, sources: Floats, target: Codes, source: Codes, weights: Floats, bias: float) -> Floats:
    """Return `(n_pairs,)` float32 for pairs given by codes into targets and sources."""
    offset = np.asarray(sources @ weights + np.float32(bias), np.float32)
    pad = ((0, 0), (0, -len(weights) % LANES))
    a, negated = np.pad(np.asarray(targets, np.float32), pad), np.pad(-np.asarray(sources, np.float32), pad)
    v, out = np.pad(np.asarray(weights, np.float32), pad[1]), np.empty(len(target), np.float32)
    in_threads(lambda p, q: _pairs((a, negated), (target, source), v, offset, out, p, q), len(out), least=10_000)
    return out
