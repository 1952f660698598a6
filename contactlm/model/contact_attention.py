"""Contact attention: what the contact head needs of a layer, exact, without storing the layer's attention maps.

The contact head of ESM2 is a logistic regression over all C attention maps P_c (Rao et al. 2021, "Transformer protein
language models are unsupervised structure learners"). With every map cut down to residue-residue entries, symmetrised,
S = P + P^T, and average-product corrected (Dunn et al. 2008), r = S 1, t = 1^T r,

    logit = sum_c w_c (S_c - r_c r_c^T / t_c) + b = A + A^T - R^T diag(w / t) R + b,    A = sum_c w_c P_c.

So a layer owes the head its share of A (T x T) and its margins r_c (H x T), no more. Both come out of the same blocks
of P that give the layer's context P V; the backward pass computes the blocks again. Memory is O(B T^2 + B H T). A head
that reads K combinations of all maps, with weights (K, C), has K such A and the same margins: O(B K T^2 + B H T).

Axis letters: B batch, T tokens, H heads, C layers x heads, D head width, K read-outs.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from contactlm.model.blocks import Block, TokenLayout, plan_blocks
from contactlm.model.operation import context_of, define

_LOG2_E = math.log2(math.e)
_EMPTY = 1e-30
_SAFE_LOG_SUM = 90.0  # float32 reaches from 2^-126 to 2^127; products with the sums need some of it
Shares = tuple[Tensor | None, Tensor, Tensor]


def contact_attention(
    query: Tensor, key: Tensor, value: Tensor | None, head_weight: Tensor, layout: TokenLayout
) -> Shares:
    """Attend, and hand over the layer's share of the contact logits; attention maps exist block by block only.

    Half-precision inputs are computed in float32. Not differentiable twice.

    Args:
        query: (B, H, T, D), already scaled and rotated; ``key`` alike.
        key: (B, H, T, D).
        value: (B, H, T, D'), or None when nobody reads the context (the last layer).
        head_weight: (H,), the contact head's weights of this layer's maps; or (K, H), those of K read-outs.
        layout: Which tokens are residues and which are padding.

    Returns:
        context (B, H, T, D') in value's dtype, or None; meaningless at padding tokens.
        weighted (B, T, T), or (B, K, T, T), sum over heads of head_weight * P, not symmetrised; meaningless outside
        residue pairs.
        margins (B, H, T), row sums plus column sums of P over residues; 0 at other tokens.
        The last two are float32 (float64 for float64 inputs).
    """
    q, v, w = (None if x is None else _at_least_float32(x) for x in (query, value, head_weight))
    k = _at_least_float32(key).contiguous()  # once for both passes
    context, weighted, margins, _, _ = _streamed(
        q, k, v, w, layout.residue, layout.key_bias, layout.spans_at_hand, False
    )
    return context_of(context, query, key, value), weighted, margins


def contact_attention_plain(
    query: Tensor, key: Tensor, value: Tensor | None, head_weight: Tensor, layout: TokenLayout
) -> Shares:
    """Compute what :func:`contact_attention` does with this layer's maps stored (B, H, T, T): the oracle."""
    with torch.autocast(query.device.type, enabled=False):
        q, k, w = _at_least_float32(query), _at_least_float32(key), _at_least_float32(head_weight)
        P = (q @ k.transpose(2, 3) + layout.key_bias.to(q)[:, None, None]).softmax(-1)
        residue = layout.residue.to(q)
        rows, columns = torch.einsum("bhij,bj->bhi", P, residue), torch.einsum("bhij,bi->bhj", P, residue)
        context = None if value is None else (P @ value.to(P)).to(value.dtype)
        terms = "h,bhij->bij" if w.ndim == 1 else "kh,bhij->bkij"
        return context, torch.einsum(terms, w, P), (rows + columns) * residue[:, None]


def contact_logits(weighted: Tensor, margins: Tensor, head_weight: Tensor, bias: Tensor | None) -> Tensor:
    """Put the layers' shares together: symmetrise, subtract the average product, add the bias (scalar or (1,)).

    Of ``weighted`` (B, L, L), summed over layers, residue tokens only, all layers' ``margins`` (B, C, L) and
    ``head_weight`` (C,), logits (B, L, L) in the dtype of ``weighted``. A map without any residue-residue attention
    has no average product to subtract: its term and its gradient are 0.
    """
    with torch.autocast(weighted.device.type, enabled=False):
        totals = margins.sum(-1, keepdim=True)
        # Below this a map's average product, at most t itself, is nothing, and its gradient could overflow.
        empty = totals < _EMPTY
        shares = (margins / totals.masked_fill(empty, 1)).masked_fill(empty, 0)
        product = (shares * (0.5 * head_weight.to(totals))[:, None]).mT @ margins
        half = weighted - product  # halves, so that the sum of both is symmetric to the last bit
        logits = half + half.mT
        return logits if bias is None else logits + bias.to(logits)


def read_outs(weighted: Tensor, margins: Tensor, head_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Put the layers' shares of K read-outs together, as :func:`contact_logits` does for one, without a bias.

    Of ``weighted`` (B, K, L, L), ``margins`` (B, C, L) and ``head_weight`` (K, C), symmetric (B, K, L, L), and a
    copy (B, L, L) of the first, whose gradient is added to that of all in one pass.
    """
    with torch.autocast(weighted.device.type, enabled=False):
        B, K, L, _ = weighted.shape
        totals = margins.sum(-1, keepdim=True)
        empty = totals < _EMPTY
        shares = (margins / totals.masked_fill(empty, 1)).masked_fill(empty, 0)
        left = shares.mT.unsqueeze(1) * (0.5 * head_weight.to(totals))[:, None]  # (B, K, L, C)
        half = torch.baddbmm(weighted.reshape(B, K * L, L), left.flatten(1, 2), margins, alpha=-1).view(B, K, L, L)
        both: tuple[Tensor, Tensor] = _Symmetric.apply(half)
        return both


class _Symmetric(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, half: Tensor) -> tuple[Tensor, Tensor]:
        whole = half + half.mT
        return whole, whole[:, 0].clone()

    @staticmethod
    def backward(ctx: Any, d_whole: Tensor, d_first: Tensor) -> Tensor:
        total = d_whole + d_whole.mT
        total[:, 0] += d_first + d_first.mT
        return total


def _forward(
    query: Tensor, key: Tensor, value: Tensor | None, head_weight: Tensor, residue: Tensor, key_bias: Tensor,
    spans: Tensor, skip_idle: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The streamed operation; query, key, value and head_weight of one dtype, at least float32; spans on the CPU."""
    layout = TokenLayout(residue, key_bias, spans)
    query = query * _LOG2_E  # exp2 takes a third of the time of exp
    # An accelerator would have to wait for the answer to whether the sums are safe.
    unshifted = query.device.type == "cpu"
    with torch.autocast(query.device.type, enabled=False):
        results = _attend(query, key, value, head_weight, layout, shift=not unshifted)
        if unshifted and not bool((results[-1].abs() <= _SAFE_LOG_SUM).all()):
            results = _attend(query, key, value, head_weight, layout, shift=True)
    context, weighted, margins, log_sums = results
    nothing = query.new_empty(0)
    kept = _without_padding_rows(log_sums, layout)
    return nothing if context is None else context, weighted, margins, kept, nothing.clone()


def _backward(
    d_context: Tensor | None, d_weighted: Tensor, d_margins: Tensor, query: Tensor, key: Tensor, value: Tensor | None,
    head_weight: Tensor, context: Tensor | None, residue: Tensor, key_bias: Tensor, spans: Tensor, log_sums: Tensor,
    inner: Tensor, needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradient of the streamed operation: the same blocks of maps again."""
    layout = TokenLayout(residue, key_bias, spans)
    query = query * _LOG2_E
    several = head_weight.ndim == 2
    # What is summed sample by sample: dq, dk, dv (B, H, T, .) and dw (B, H, 1), or (B, H, K).
    of_weight = (*query.shape[:2], len(head_weight) if several else 1)
    shapes = (query.shape, key.shape, None if value is None else value.shape, of_weight)
    made = [
        query.new_zeros(shape) if need and shape is not None else None
        for shape, need in zip(shapes, needs, strict=True)
    ]
    dq, dk, dv, dw = made
    with torch.autocast(query.device.type, enabled=False):
        left, right = _factors(d_context, value, d_margins, layout.residue.to(query))
        scores = _Scores(query, key, layout, 2, head_weight)
        gradient = torch.empty_like(scores.memory)
        for block in scores.blocks:
            P = scores.of(block).sub_(log_sums[block.queries].unsqueeze(-1)).exp2_()
            flat, dA = P.flatten(0, 1), d_weighted[block.samples, ..., block.rows, : block.keys]
            if dv is not None and d_context is not None:
                _add_product(dv[block.columns].flatten(0, 1), flat.mT, d_context[block.queries].flatten(0, 1))
            if dw is not None:
                of_pairs = dA.flatten(-2).mT if several else dA.reshape(P.shape[0], -1, 1)
                _add_product(dw[block.samples, block.heads], P.flatten(2), of_pairs)
            if dq is None and dk is None:
                continue
            dS = gradient[: P.numel()].view(P.shape)
            if several:
                for own, pairs in zip(dS, dA, strict=True):
                    torch.mm(head_weight.mT, pairs.flatten(1), out=own.flatten(1))
            else:
                torch.mul(head_weight[block.heads, None, None], dA.unsqueeze(1), out=dS)
            dS = dS.flatten(0, 1)
            _add_product(dS, left[block.queries].flatten(0, 1), right[block.columns].flatten(0, 1).mT)
            torch._softmax_backward_data(dS, flat, -1, dS.dtype, grad_input=dS)
            if dq is not None:
                torch.bmm(dS, key[block.columns].flatten(0, 1), out=dq[block.queries].flatten(0, 1))
            if dk is not None:
                _add_product(dk[block.columns].flatten(0, 1), dS.mT, query[block.queries].flatten(0, 1))
    # The query at hand is the given one times log2(e).
    dk = None if dk is None else dk.mul_(1 / _LOG2_E)
    dw = None if dw is None else dw.sum(0).mT.contiguous() if several else dw.sum((0, 2))
    dq, dk, dv, dw = (query.new_empty(0) if x is None else x for x in (dq, dk, dv, dw))
    return dq, dk, dv, dw


_streamed = define("streamed_attention", _forward, _backward, fused=False)


def _attend(
    query: Tensor, key: Tensor, value: Tensor | None, head_weight: Tensor, layout: TokenLayout, shift: bool
) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    """Return context, weighted, margins and log2 of the row sums of E = exp2(query key^T), the last (B, H, T).

    P = E / row sums is never written: the row sums go into what E is multiplied with. ``shift`` takes every row's
    maximum off first, which only scores beyond float32's range of exponents need.
    """
    B, H, T, _ = query.shape
    written = head_weight.ndim == 2 and min(layout.lengths) == T  # whole, not added to
    weighted = (query.new_empty if written else query.new_zeros)(B, *head_weight.shape[:-1], T, T)
    columns = query.new_zeros(B, H, T)
    sums, inner, tops = query.new_ones(B, H, T), query.new_zeros(B, H, T), query.new_zeros(B, H, T)
    raw = None if value is None else value.new_zeros(value.shape)
    residue = layout.residue.to(query)
    scores = _Scores(query, key, layout, 1, head_weight)
    for block in scores.blocks:
        E = scores.of(block)
        if shift:
            tops[block.queries] = E.amax(-1)
            E.sub_(tops[block.queries].unsqueeze(-1))
        flat = E.exp2_().flatten(0, 1)
        _sum_rows(E, block, layout, residue, sums[block.queries], inner[block.queries])
        if value is not None and raw is not None:
            torch.bmm(flat, value[block.columns].flatten(0, 1), out=raw[block.queries].flatten(0, 1))
        scale = sums[block.queries].reciprocal()
        if head_weight.ndim == 2:  # one product for all pairs, once P is there
            E.mul_(scale.unsqueeze(-1))
            scale.fill_(1)
            for sample, maps in zip(range(B)[block.samples], E, strict=True):
                own = weighted[sample, :, block.rows, : block.keys]
                if block.keys == T:
                    torch.mm(head_weight, maps.flatten(1), out=own.flatten(1))
                else:
                    own.copy_((head_weight @ maps.flatten(1)).view(own.shape))
        else:
            weights = (scale * head_weight[block.heads, None]).transpose(1, 2).contiguous().unsqueeze(2)
            for sample, maps, weight in zip(range(B)[block.samples], E, weights, strict=True):
                share = weighted[sample, block.rows, : block.keys].unsqueeze(1)
                _add_product(share, weight, maps.transpose(0, 1))
        scale *= residue[block.samples, None, block.rows]
        _add_product(columns[block.columns].flatten(0, 1).unsqueeze(1), scale.flatten(0, 1).unsqueeze(1), flat)
    margins = inner.div_(sums).add_(columns).mul_(residue.unsqueeze(1))
    context = None
    if raw is not None:  # laid out (B, T, H, D'), as the layer reads it next
        context = raw.new_empty(B, T, H, raw.shape[-1]).transpose(1, 2)
        torch.div(raw, sums.unsqueeze(-1), out=context)
    return context, weighted, margins, sums.log2_().add_(tops)


def _without_padding_rows(log_sums: Tensor, layout: TokenLayout) -> Tensor:
    """Make P = 0 where a query is padding: the backward pass cuts other blocks, with rows that had no sum here."""
    lengths = torch.tensor(layout.lengths, device=log_sums.device)
    padding = torch.arange(log_sums.shape[-1], device=log_sums.device) >= lengths[:, None]
    return log_sums.masked_fill_(padding[:, None], torch.inf)


class _Scores:
    """Blocks of query key^T, each written over the last one; the work needs so many ``arrays`` of a block's size.

    Query and key are (B, H, T, D); the key is contiguous, so that no block of it is copied. Where there are several
    read-outs, a block has all heads, so that each is written once, and their pairs lie in the caches as well.
    """

    def __init__(self, query: Tensor, key: Tensor, layout: TokenLayout, arrays: int, head_weight: Tensor) -> None:
        self.query, self.key, self.holes = query, key, layout.holes
        heads, entry, several = query.shape[1], arrays * query.element_size(), head_weight.ndim == 2
        if several:
            entry += -(-len(head_weight) * query.element_size() // heads)
        self.blocks = plan_blocks(layout.lengths, heads, query.device, entry, all_heads=several)
        self.memory = query.new_empty(max(math.prod(block.shape) for block in self.blocks))
        self.bias = layout.key_bias.to(query)

    def of(self, block: Block) -> Tensor:
        """Return (samples, heads, rows, keys); −inf at padding keys."""
        scores = self.memory[: math.prod(block.shape)].view(block.shape)
        query, key = self.query[block.queries].flatten(0, 1), self.key[block.columns].flatten(0, 1)
        torch.bmm(query, key.mT, out=scores.flatten(0, 1))
        if block.biased or self.holes:
            scores += self.bias[block.samples, None, None, : block.keys]
        return scores


def _sum_rows(E: Tensor, block: Block, layout: TokenLayout, residue: Tensor, sums: Tensor, inner: Tensor) -> None:
    """Write the sums of E (S, H, R, K) over all keys and over residue keys to two tensors (S, H, R)."""
    if layout.regular and not block.biased:
        torch.sum(E[..., 1:-1], -1, out=inner)
        torch.add(E[..., 0], E[..., -1], out=sums)
        sums += inner
        return
    S, H, R, K = E.shape
    inner.copy_(torch.bmm(E.view(S, H * R, K), residue[block.samples, :K].unsqueeze(-1)).view(S, H, R))
    torch.sum(E, -1, out=sums)


def _factors(
    d_context: Tensor | None, value: Tensor | None, d_margins: Tensor, residue: Tensor
) -> tuple[Tensor, Tensor]:
    """Return left and right (B, H, T, D' + 2) with dP = left right^T + head_weight dA.

    Row i's margin holds the sum of P_ij over residues j, column j's the sum over residues i, hence
    left right^T = d_context value^T + dm_i residue_j + residue_i dm_j.
    """
    mask = residue.unsqueeze(1).expand_as(d_margins)
    dm = d_margins * mask
    left, right = torch.stack([dm, mask], -1), torch.stack([mask, dm], -1)
    if value is None or d_context is None:
        return left, right
    return torch.cat([d_context, left], -1), torch.cat([value, right], -1)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add a batched product in place."""
    torch.baddbmm(total, left, right, out=total)


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
