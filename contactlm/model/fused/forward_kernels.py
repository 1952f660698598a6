"""Triton kernels of the forward pass: context and log-sums row by row, contact shares tile by tile.

No array of heads × tokens × tokens is read or written. :func:`attend` is flash attention (Dao et al. 2022) that also
hands over every row's log-sum and its sum over residues. :func:`share` owns one tile of ``weighted``, loops over the
heads with the tile in registers, and writes it once.

Scores are in base 2: P_ij = 2^(s_ij log2(e) − l_i). A key that is padding has a bias of −inf, a query that is padding
a log-sum of +inf, and so both have P = 0.

Axis letters: T tokens, H heads, D head width, K read-outs; BM rows and BN columns of a tile, BD ≥ D a power of two.
"""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-1.0e30)  # −inf would make (−inf) − (−inf) where a whole tile is padding


@triton.jit
def load_rows(start, tokens, stride, T, D: tl.constexpr, BD: tl.constexpr):
    """Load (rows, BD) of a head; 0 beyond T and D."""
    width = tl.arange(0, BD)
    inside = (tokens < T)[:, None]
    if D != BD:
        inside = inside & (width < D)[None, :]
    return tl.load(start + tokens[:, None] * stride + width[None, :], mask=inside, other=0.0)


@triton.jit
def store_rows(start, tokens, stride, rows, T, D: tl.constexpr, BD: tl.constexpr):
    """Store (rows, BD) of a head, rounded to what is kept there."""
    width = tl.arange(0, BD)
    inside = (tokens < T)[:, None]
    if D != BD:
        inside = inside & (width < D)[None, :]
    tl.store(start + tokens[:, None] * stride + width[None, :], rows.to(start.dtype.element_ty), mask=inside)


@triton.jit
def maps(query, key, offset, log_sums, PRECISION: tl.constexpr):
    """P of some queries (rows, BD) and keys (columns, BD), whose bias is ``offset``."""
    scores = tl.dot(query, tl.trans(key), input_precision=PRECISION) * LOG2_E + offset[None, :]
    return tl.exp2(scores - log_sums[:, None])


@triton.jit
def one_column(query, key, stride, token, bias, log_sums, D: tl.constexpr, BD: tl.constexpr):
    """P of some queries (rows, BD) at one key token."""
    width = tl.arange(0, BD)
    other = tl.load(key + token * stride + width, mask=width < D, other=0.0).to(tl.float32)
    scores = tl.sum(query.to(tl.float32) * other[None, :], 1)
    return tl.exp2(scores * LOG2_E + tl.load(bias + token) - log_sums)


@triton.jit
def attend(
    q, k, v, bias, residue, spans, context, log_sums, inner,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, c_b, c_h, c_t, H, T,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    WITH_VALUE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Context (B, T, H, D), log-sums and sums over residues (B, H, T) of BM rows of one head."""
    b, h = tl.program_id(1) // H, tl.program_id(1) % H
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    end = tl.load(spans + 2 * b)
    stop = tl.where(tl.program_id(0) * BM < end, end, 0)
    k_head, v_head = k + b * k_b + h * k_h, v + b * v_b + h * v_h
    query = load_rows(q + b * q_b + h * q_h, rows, q_t, T, D, BD)
    top = tl.full([BM], LOWEST, tl.float32)
    total = tl.zeros([BM], tl.float32)
    sums = tl.zeros([BM, BD], tl.float32)
    for start in range(0, stop, BN):
        columns = start + tl.arange(0, BN)
        key = load_rows(k_head, columns, k_t, T, D, BD)
        offset = tl.load(bias + b * T + columns, mask=columns < T, other=float("-inf"))
        scores = tl.dot(query, tl.trans(key), input_precision=PRECISION) * LOG2_E + offset[None, :]
        higher = tl.maximum(top, tl.max(scores, 1))
        scale = tl.exp2(top - higher)
        weights = tl.exp2(scores - higher[:, None])
        total = total * scale + tl.sum(weights, 1)
        if WITH_VALUE:
            value = load_rows(v_head, columns, v_t, T, D, BD)
            sums = tl.dot(weights.to(value.dtype), value, sums * scale[:, None], input_precision=PRECISION)
        top = higher
    here = rows < end
    total = tl.where(here, total, 1.0)
    log_sum = tl.where(here, top + tl.log2(total), float("inf"))
    tl.store(log_sums + tl.program_id(1) * T + rows, log_sum, mask=rows < T)
    if WITH_VALUE:
        sums = tl.where(here[:, None], sums / total[:, None], 0.0)
        store_rows(context + b * c_b + h * c_h, rows, c_t, sums, T, D, BD)
    within = tl.zeros([BM], tl.float32)
    if tl.load(spans + 2 * b + 1) == 0:  # all attended tokens but the first and the last are residues
        first = one_column(query, k_head, k_t, 0, bias + b * T, log_sum, D, BD)
        last = one_column(query, k_head, k_t, end - 1, bias + b * T, log_sum, D, BD)
        within += tl.maximum(1.0 - first - last, 0.0)  # rounding may not make a margin negative
    else:
        for start in range(0, stop, BN):
            columns = start + tl.arange(0, BN)
            key = load_rows(k_head, columns, k_t, T, D, BD)
            counted = tl.load(residue + b * T + columns, mask=columns < T, other=0).to(tl.float32)
            offset = tl.load(bias + b * T + columns, mask=columns < T, other=float("-inf"))
            within += tl.sum(maps(query, key, offset, log_sum, PRECISION) * counted[None, :], 1)
    of_residue = tl.load(residue + b * T + rows, mask=rows < T, other=0).to(tl.float32)
    tl.store(inner + tl.program_id(1) * T + rows, tl.where(of_residue > 0, within, 0.0), mask=rows < T)


@triton.jit
def share(
    q, k, head_weight, residue, spans, log_sums, weighted, columns_of,
    q_b, q_h, q_t, k_b, k_h, k_t, H, T, TILES,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    SKIP_IDLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of ``weighted`` (B, T, T), 0 outside residue pairs, and its column sums in (B, H, TILES, T)."""
    b = tl.program_id(2)
    row_tile, column_tile = tl.program_id(0), tl.program_id(1)
    rows, columns = row_tile * BM + tl.arange(0, BM), column_tile * BN + tl.arange(0, BN)
    end = tl.load(spans + 2 * b)
    heads = tl.where((row_tile * BM < end) & (column_tile * BN < end), H, 0)
    of_rows = tl.load(residue + b * T + rows, mask=rows < T, other=0) != 0
    of_columns = tl.load(residue + b * T + columns, mask=columns < T, other=0) != 0
    offset = tl.where(of_columns, 0.0, float("-inf"))
    tile = tl.zeros([BM, BN], tl.float32)
    for h in range(0, heads):
        weight = tl.load(head_weight + h).to(tl.float32)
        if not SKIP_IDLE or weight != 0:
            log_sum = tl.load(log_sums + (b * H + h) * T + rows, mask=of_rows, other=float("inf"))
            query = load_rows(q + b * q_b + h * q_h, rows, q_t, T, D, BD)
            key = load_rows(k + b * k_b + h * k_h, columns, k_t, T, D, BD)
            P = maps(query, key, offset, log_sum, PRECISION)
            tile += weight * P
            tl.store(columns_of + ((b * H + h) * TILES + row_tile) * T + columns, tl.sum(P, 0), mask=columns < T)
    place = weighted + b.to(tl.int64) * T * T + rows[:, None] * T + columns[None, :]
    tl.store(place, tile, mask=(rows < T)[:, None] & (columns < T)[None, :])


@triton.jit
def share_many(
    q, k, head_weight, residue, spans, log_sums, weighted, columns_of,
    q_b, q_h, q_t, k_b, k_h, k_t, H, T, TILES, K,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, AT_ONCE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """As :func:`share`: one tile of some read-outs in ``weighted`` (B, K, T, T); the first ones' gives column sums."""
    parts = tl.cdiv(K, AT_ONCE)
    b, first = tl.program_id(2) // parts, (tl.program_id(2) % parts) * AT_ONCE
    row_tile, column_tile = tl.program_id(0), tl.program_id(1)
    rows, columns = row_tile * BM + tl.arange(0, BM), column_tile * BN + tl.arange(0, BN)
    end = tl.load(spans + 2 * b)
    heads = tl.where((row_tile * BM < end) & (column_tile * BN < end), H, 0)
    of_rows = tl.load(residue + b * T + rows, mask=rows < T, other=0) != 0
    of_columns = tl.load(residue + b * T + columns, mask=columns < T, other=0) != 0
    offset = tl.where(of_columns, 0.0, float("-inf"))
    some = first + tl.arange(0, AT_ONCE)
    tile = tl.zeros([AT_ONCE, BM, BN], tl.float32)
    for h in range(0, heads):
        weight = tl.load(head_weight + some * H + h, mask=some < K, other=0.0).to(tl.float32)
        log_sum = tl.load(log_sums + (b * H + h) * T + rows, mask=of_rows, other=float("inf"))
        query = load_rows(q + b * q_b + h * q_h, rows, q_t, T, D, BD)
        key = load_rows(k + b * k_b + h * k_h, columns, k_t, T, D, BD)
        P = maps(query, key, offset, log_sum, PRECISION)
        tile += weight[:, None, None] * P[None, :, :]
        if first == 0:
            tl.store(columns_of + ((b * H + h) * TILES + row_tile) * T + columns, tl.sum(P, 0), mask=columns < T)
    place = (b * K + some[:, None, None]).to(tl.int64) * T * T + rows[None, :, None] * T + columns[None, None, :]
    inside = (some < K)[:, None, None] & (rows < T)[None, :, None] & (columns < T)[None, None, :]
    tl.store(weighted + place, tile, mask=inside)
