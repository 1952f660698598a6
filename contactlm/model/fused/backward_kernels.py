"""Triton kernels of the backward pass: a pre-pass for row sums, then the gradients of queries, and of keys and values.

With dA the gradient of ``weighted`` (one for all heads), dm the margins' and dc the context's, ρ telling residues:

    dP_ij = dc_i·v_j + w dA_ij + ρ_i ρ_j (dm_i + dm_j),    dS = P ∘ (dP − D),    D_i = Σ_j P_ij dP_ij.

The pre-pass gives u_i = Σ_j P_ij dA_ij (its sum over rows is the head weight's gradient) and t_i = Σ_j P_ij dm_j, hence
D_i = dc_i·c_i + w u_i + dm_i r_i + ρ_i t_i with the context c and the residues' row sums r of the forward pass.
Heads are the fastest axis of every grid: those of one tile of dA run together and find it in the cache. dA counts at
residue pairs only, and dm is 0 at other tokens. Of K read-outs (K > 1) w dA is Σ_k w_k dA_k, and w u is Σ_k w_k u_k.

Axis letters as in :mod:`contactlm.model.fused.forward_kernels`.
"""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

from contactlm.model.fused.forward_kernels import load_rows, maps, store_rows


@triton.jit
def load_pairs(start, rows, columns, of_rows, of_columns, T):
    """Load a tile of a (T, T) array; 0 outside residue pairs."""
    return tl.load(start + rows[:, None] * T + columns[None, :], mask=of_rows[:, None] & of_columns[None, :], other=0.0)


@triton.jit
def pull(start, head_weight, weight, h, rows, columns, of_rows, of_columns, H, T, K: tl.constexpr):
    """A tile of the read-outs' share of dP; ``weight`` is the head's in the first of them."""
    total = weight * load_pairs(start, rows, columns, of_rows, of_columns, T)
    for k in range(1, K):
        own = tl.load(head_weight + k * H + h).to(tl.float32)
        total += own * load_pairs(start + k * T * T, rows, columns, of_rows, of_columns, T)
    return total


@triton.jit
def row_sums(
    q, k, context, d_context, d_weighted, dm, head_weight, bias, residue, spans, log_sums, inner, u, dots,
    q_b, q_h, q_t, k_b, k_h, k_t, c_b, c_h, c_t, g_b, g_h, g_t, H, T,
    K: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    WITH_VALUE: tl.constexpr, KP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Row sums u (B, H, K, T) and D (B, H, T) of BM rows of one head."""
    h, b = tl.program_id(0), tl.program_id(2)
    rows = tl.program_id(1) * BM + tl.arange(0, BM)
    end = tl.load(spans + 2 * b)
    stop = tl.where(tl.program_id(1) * BM < end, end, 0)
    line = (b * H + h) * T
    of_rows = tl.load(residue + b * T + rows, mask=rows < T, other=0) != 0
    log_sum = tl.load(log_sums + line + rows, mask=rows < T, other=float("inf"))
    query = load_rows(q + b * q_b + h * q_h, rows, q_t, T, D, BD)
    pairs = d_weighted + b.to(tl.int64) * K * T * T
    if K == 1:
        summed = tl.zeros([BM], tl.float32)
    else:
        others = tl.arange(0, KP)
        summed = tl.zeros([BM, KP], tl.float32)
    margin = tl.zeros([BM], tl.float32)
    for start in range(0, stop, BN):
        columns = start + tl.arange(0, BN)
        key = load_rows(k + b * k_b + h * k_h, columns, k_t, T, D, BD)
        offset = tl.load(bias + b * T + columns, mask=columns < T, other=float("-inf"))
        of_columns = tl.load(residue + b * T + columns, mask=columns < T, other=0) != 0
        P = maps(query, key, offset, log_sum, PRECISION)
        if K == 1:
            summed += tl.sum(P * load_pairs(pairs, rows, columns, of_rows, of_columns, T), 1)
        else:
            for k_th in range(0, K):
                own = tl.sum(P * load_pairs(pairs + k_th * T * T, rows, columns, of_rows, of_columns, T), 1)
                summed += tl.where(others == k_th, 1.0, 0.0)[None, :] * own[:, None]
        margin += tl.sum(P * tl.load(dm + line + columns, mask=columns < T, other=0.0)[None, :], 1)
    if K == 1:
        tl.store(u + line + rows, summed, mask=rows < T)
        pulled = tl.load(head_weight + h).to(tl.float32) * summed
    else:
        place = u + (line * K + others[None, :] * T) + rows[:, None]
        tl.store(place, summed, mask=(rows < T)[:, None] & (others < K)[None, :])
        weights = tl.load(head_weight + others * H + h, mask=others < K, other=0.0).to(tl.float32)
        pulled = tl.sum(weights[None, :] * summed, 1)
    own = tl.load(dm + line + rows, mask=rows < T, other=0.0) * tl.load(inner + line + rows, mask=rows < T, other=0.0)
    dot = pulled + own + tl.where(of_rows, margin, 0.0)
    if WITH_VALUE:
        of_context = load_rows(context + b * c_b + h * c_h, rows, c_t, T, D, BD).to(tl.float32)
        dot += tl.sum(of_context * load_rows(d_context + b * g_b + h * g_h, rows, g_t, T, D, BD).to(tl.float32), 1)
    tl.store(dots + line + rows, dot, mask=rows < T)


@triton.jit
def query_gradient(
    q, k, v, d_context, d_weighted, dm, head_weight, bias, residue, spans, log_sums, dots, dq,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, g_b, g_h, g_t, o_b, o_h, o_t, H, T,
    K: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    WITH_VALUE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient dq of BM rows of one head."""
    h, b = tl.program_id(0), tl.program_id(2)
    rows = tl.program_id(1) * BM + tl.arange(0, BM)
    end = tl.load(spans + 2 * b)
    stop = tl.where(tl.program_id(1) * BM < end, end, 0)
    line = (b * H + h) * T
    of_rows = tl.load(residue + b * T + rows, mask=rows < T, other=0) != 0
    log_sum = tl.load(log_sums + line + rows, mask=rows < T, other=float("inf"))
    dot = tl.load(dots + line + rows, mask=rows < T, other=0.0)
    own = tl.load(dm + line + rows, mask=rows < T, other=0.0)
    weight = tl.load(head_weight + h).to(tl.float32)
    query = load_rows(q + b * q_b + h * q_h, rows, q_t, T, D, BD)
    if WITH_VALUE:
        outer = load_rows(d_context + b * g_b + h * g_h, rows, g_t, T, D, BD)
    pairs = d_weighted + b.to(tl.int64) * K * T * T
    gradient = tl.zeros([BM, BD], tl.float32)
    for start in range(0, stop, BN):
        columns = start + tl.arange(0, BN)
        key = load_rows(k + b * k_b + h * k_h, columns, k_t, T, D, BD)
        offset = tl.load(bias + b * T + columns, mask=columns < T, other=float("-inf"))
        of_columns = tl.load(residue + b * T + columns, mask=columns < T, other=0) != 0
        other = tl.load(dm + line + columns, mask=columns < T, other=0.0)
        P = maps(query, key, offset, log_sum, PRECISION)
        dS = pull(pairs, head_weight, weight, h, rows, columns, of_rows, of_columns, H, T, K) - dot[:, None]
        dS += own[:, None] * of_columns.to(tl.float32)[None, :] + of_rows.to(tl.float32)[:, None] * other[None, :]
        if WITH_VALUE:
            value = load_rows(v + b * v_b + h * v_h, columns, v_t, T, D, BD)
            dS = tl.dot(outer, tl.trans(value), dS, input_precision=PRECISION)
        gradient = tl.dot((P * dS).to(key.dtype), key, gradient, input_precision=PRECISION)
    store_rows(dq + b * o_b + h * o_h, rows, o_t, gradient, T, D, BD)


@triton.jit
def key_value_gradient(
    q, k, v, d_context, d_weighted, dm, head_weight, bias, residue, spans, log_sums, dots, dk, dv,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, g_b, g_h, g_t, o_b, o_h, o_t, p_b, p_h, p_t, H, T,
    K: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    WITH_VALUE: tl.constexpr, NEED_KEY: tl.constexpr, NEED_VALUE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients dk and dv of BN columns of one head."""
    h, b = tl.program_id(0), tl.program_id(2)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    end = tl.load(spans + 2 * b)
    stop = tl.where(tl.program_id(1) * BN < end, end, 0)
    line = (b * H + h) * T
    of_columns = tl.load(residue + b * T + columns, mask=columns < T, other=0) != 0
    offset = tl.load(bias + b * T + columns, mask=columns < T, other=float("-inf"))
    other = tl.load(dm + line + columns, mask=columns < T, other=0.0)
    weight = tl.load(head_weight + h).to(tl.float32)
    key = load_rows(k + b * k_b + h * k_h, columns, k_t, T, D, BD)
    if WITH_VALUE:
        value = load_rows(v + b * v_b + h * v_h, columns, v_t, T, D, BD)
    pairs = d_weighted + b.to(tl.int64) * K * T * T
    d_key = tl.zeros([BN, BD], tl.float32)
    d_value = tl.zeros([BN, BD], tl.float32)
    for start in range(0, stop, BM):
        rows = start + tl.arange(0, BM)
        query = load_rows(q + b * q_b + h * q_h, rows, q_t, T, D, BD)
        log_sum = tl.load(log_sums + line + rows, mask=rows < T, other=float("inf"))
        P = maps(query, key, offset, log_sum, PRECISION)
        if WITH_VALUE:
            outer = load_rows(d_context + b * g_b + h * g_h, rows, g_t, T, D, BD)
        if NEED_VALUE:
            d_value = tl.dot(tl.trans(P.to(outer.dtype)), outer, d_value, input_precision=PRECISION)
        if NEED_KEY:
            of_rows = tl.load(residue + b * T + rows, mask=rows < T, other=0) != 0
            dot = tl.load(dots + line + rows, mask=rows < T, other=0.0)
            own = tl.load(dm + line + rows, mask=rows < T, other=0.0)
            dS = pull(pairs, head_weight, weight, h, rows, columns, of_rows, of_columns, H, T, K) - dot[:, None]
            dS += own[:, None] * of_columns.to(tl.float32)[None, :] + of_rows.to(tl.float32)[:, None] * other[None, :]
            if WITH_VALUE:
                dS = tl.dot(outer, tl.trans(value), dS, input_precision=PRECISION)
            d_key = tl.dot(tl.trans((P * dS).to(query.dtype)), query, d_key, input_precision=PRECISION)
    if NEED_KEY:
        store_rows(dk + b * o_b + h * o_h, columns, o_t, d_key, T, D, BD)
    if NEED_VALUE:
        store_rows(dv + b * p_b + h * p_h, columns, p_t, d_value, T, D, BD)
