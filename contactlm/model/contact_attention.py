"""Contact attention: what the contact head needs of a layer, exact, without storing the layer's attention maps.

The contact head of ESM2 is a logistic regression over all C attention maps P_c (Rao et al. 2021, "Transformer protein
language models are unsupervised structure learners"). With every map cut down to residue-residue entries, symmetrised,
S = P + P^T, and average-product corrected (Dunn et al. 2008), r = S 1, t = 1^T r,

    logit = sum_c w_c (S_c - r_c r_c^T / t_c) + b = A + A^T - R^T diag(w / t) R + b,    A = sum_c w_c P_c.

So a layer owes the head its share of A (T x T) and its margins r_c (H x T), no more. Both come out of the same blocks
of P that give the layer's context P V; the backward pass computes the blocks again. Memory is O(B T^2 + B H T).

Axis letters: B batch, T tokens, H heads, C layers x heads, D head width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from contactlm.model.blocks import Block, TokenLayout, plan_blocks

_LOG2_E = math.log2(math.e)
_SMALL_SCORE = 80.0  # of float32's 126 powers of two, some are left to sums and weights
Shares = tuple[Tensor | None, Tensor, Tensor]


def contact_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    head_weight: Tensor,
    layout: TokenLayout,
) -> Shares:
    """Attend, and hand over the layer's share of the contact logits; attention maps exist block by block only.

    Half-precision inputs are computed in float32. Not differentiable twice.

    Args:
        query: (B, H, T, D), already scaled and rotated; ``key`` alike.
        key: (B, H, T, D).
        value: (B, H, T, D'), or None when nobody reads the context (the last layer).
        head_weight: (H,), the contact head's weights of this layer's maps.
        layout: Which tokens are residues and which are padding.

    Returns:
        context (B, H, T, D') in value's dtype, or None; meaningless at padding tokens.
        weighted (B, T, T), sum over heads of head_weight * P, not symmetrised; meaningless outside residue pairs.
        margins (B, H, T), row sums plus column sums of P over residues; 0 at other tokens.
        The last two are float32 (float64 for float64 inputs).
    """
    q, k, v, w = (None if x is None else _at_least_float32(x) for x in (query, key, value, head_weight))
    with torch.autocast(query.device.type, enabled=False):
        context, weighted, margins = _ContactAttention.apply(q, k, v, w, layout)
    return None if value is None else context.to(value.dtype), weighted, margins


def contact_attention_plain(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    head_weight: Tensor,
    layout: TokenLayout,
) -> Shares:
    """Compute what :func:`contact_attention` does with this layer's maps stored (B, H, T, T): the oracle."""
    with torch.autocast(query.device.type, enabled=False):
        q, k, w = _at_least_float32(query), _at_least_float32(key), _at_least_float32(head_weight)
        P = (q @ k.transpose(2, 3) + layout.key_bias.to(q)[:, None, None]).softmax(-1)
        residue = layout.residue.to(q)
        rows, columns = torch.einsum("bhij,bj->bhi", P, residue), torch.einsum("bhij,bi->bhj", P, residue)
        context = None if value is None else (P @ value.to(P)).to(value.dtype)
        return context, torch.einsum("h,bhij->bij", w, P), (rows + columns) * residue[:, None]


def contact_logits(weighted: Tensor, margins: Tensor, head_weight: Tensor, bias: Tensor | None) -> Tensor:
    """Put the layers' shares together: symmetrise, subtract the average product, add the bias.

    Args:
        weighted: (B, L, L), sum over layers of their ``weighted``, residue tokens only.
        margins: (B, C, L), all layers' margins.
        head_weight: (C,).
        bias: Scalar or (1,), or None.

    Returns:
        (B, L, L) in the dtype of ``weighted``. A map without any residue-residue attention has no average product
        to subtract: its term and its gradient are 0.
    """
    with torch.autocast(weighted.device.type, enabled=False):
        totals = margins.sum(-1)
        empty = totals <= 0
        scale = (head_weight.to(totals) / totals.masked_fill(empty, 1)).masked_fill(empty, 0)
        product = (margins * scale.unsqueeze(-1)).transpose(1, 2) @ margins
        logits = weighted + weighted.transpose(1, 2) - product
        return logits if bias is None else logits + bias.to(logits)


class _ContactAttention(torch.autograd.Function):
    """Block by block: E = exp(scores) is used up while it lies in the cache, and P = E / row sums never stored."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor | None, head_weight: Tensor, layout: TokenLayout
    ) -> Shares:
        B, H, T, _ = query.shape
        query, key = query * _LOG2_E, key.contiguous()  # exp2 takes a third of the time of exp
        weighted, margins = query.new_zeros(B, T, T), query.new_zeros(B, H, T)
        context = None if value is None else value.new_zeros(B, T, H, value.shape[-1]).transpose(1, 2)
        log_sums, residue = query.new_zeros(B, H, T), layout.residue.to(query)
        scores = _Scores(query, key, layout)
        shift = not scores.small()
        for block in plan_blocks(layout.lengths, H, query.device, query.element_size()):
            samples, rows, keys = block.samples, block.rows, slice(0, block.keys)
            E = scores.of(block)
            top = E.amax(-1, keepdim=True) if shift else None
            E = (E if top is None else E.sub_(top)).exp2_()
            sums = E.sum(-1)
            log_sums[samples, :, rows] = sums.log2() if top is None else sums.log2() + top.squeeze(-1)
            flat, sums = E.flatten(0, 1), sums.reciprocal_()
            if value is not None and context is not None:
                out = torch.bmm(flat, value[samples, :, keys].flatten(0, 1)).view(*sums.shape, -1)
                torch.mul(out, sums.unsqueeze(-1), out=context[samples, :, rows])
            scale = (sums * head_weight[:, None]).transpose(1, 2).contiguous()
            for sample, maps, weights in zip(range(B)[samples], E, scale, strict=True):
                weighted[sample, rows, keys] = torch.bmm(weights.unsqueeze(1), maps.transpose(0, 1)).squeeze(1)
            own = residue[samples, None, :]
            sums *= own[..., rows]
            in_keys = own[..., keys].expand(-1, H, -1)
            margins[samples, :, rows] += _rows_dot(E, residue[samples, keys]) * sums
            columns = torch.bmm(sums.flatten(0, 1).unsqueeze(1), flat).view(in_keys.shape)
            margins[samples, :, keys] += columns * in_keys
        ctx.save_for_backward(query, key, value, head_weight, log_sums)
        ctx.layout = layout
        return context, weighted, margins

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_context: Tensor | None, d_weighted: Tensor, d_margins: Tensor) -> tuple[Any, ...]:
        query, key, value, head_weight, log_sums = ctx.saved_tensors
        layout, (B, H, T, _) = ctx.layout, query.shape
        need_q, need_k, need_v, need_w = ctx.needs_input_grad[:4]
        dq, dk = torch.zeros_like(query), torch.zeros_like(key)
        dv = query.new_zeros(value.shape) if need_v else None
        dw = torch.zeros_like(head_weight)
        residue = layout.residue.to(query)[:, None].expand(B, H, T)
        dm = d_margins * residue
        # dP = d_context value^T + dm_i residue_j + residue_i dm_j + w dA: all but the last in one product.
        left, right = torch.stack([dm, residue], -1), torch.stack([residue, dm], -1)
        if value is not None and d_context is not None:
            left, right = torch.cat([d_context, left], -1), torch.cat([value, right], -1)
        scores = _Scores(query, key, layout)
        gradient = torch.empty_like(scores.memory) if need_q or need_k else None
        for block in plan_blocks(layout.lengths, H, query.device, query.element_size()):
            samples, rows, keys = block.samples, block.rows, slice(0, block.keys)
            P = scores.of(block).sub_(log_sums[samples, :, rows].unsqueeze(-1)).exp2_()
            flat, dA = P.flatten(0, 1), d_weighted[samples, rows, keys]
            if dv is not None and d_context is not None:
                dv[samples, :, keys].flatten(0, 1).baddbmm_(
                    flat.transpose(1, 2), d_context[samples, :, rows].flatten(0, 1)
                )
            if need_w:
                dw += torch.bmm(P.flatten(2), dA.reshape(P.shape[0], -1, 1)).sum((0, 2))
            if gradient is None:
                continue
            dP = gradient[: P.numel()].view(P.shape)
            torch.mul(head_weight[:, None, None], dA.unsqueeze(1), out=dP)
            dS = dP.flatten(0, 1)
            dS.baddbmm_(left[samples, :, rows].flatten(0, 1), right[samples, :, keys].flatten(0, 1).transpose(1, 2))
            torch._softmax_backward_data(dS, flat, -1, dS.dtype, grad_input=dS)
            if need_q:
                dq[samples, :, rows] = torch.bmm(dS, key[samples, :, keys].flatten(0, 1)).view(*P.shape[:3], -1)
            if need_k:
                dk[samples, :, keys].flatten(0, 1).baddbmm_(
                    dS.transpose(1, 2), query[samples, :, rows].flatten(0, 1)
                )
        return dq, dk.mul_(1 / _LOG2_E), dv, dw, None


class _Scores:
    """Blocks of query key^T, each written over the last one."""

    def __init__(self, query: Tensor, key: Tensor, layout: TokenLayout) -> None:
        self.query, self.key, self.layout = query, key, layout
        heads = query.shape[1]
        blocks = plan_blocks(layout.lengths, heads, query.device, query.element_size())
        self.memory = query.new_empty(max(block.entries for block in blocks) * heads)
        self.bias = layout.key_bias.to(query)

    def of(self, block: Block) -> Tensor:
        """Return (samples, H, rows, keys); −inf at padding keys."""
        query = self.query[block.samples, :, block.rows]
        key = self.key[block.samples, :, : block.keys]
        shape = (*query.shape[:3], block.keys)
        scores = self.memory[: math.prod(shape)].view(shape)
        torch.bmm(query.flatten(0, 1), key.flatten(0, 1).transpose(1, 2), out=scores.flatten(0, 1))
        if block.biased or self.layout.holes:
            scores += self.bias[block.samples, None, None, : block.keys]
        return scores

    def small(self) -> bool:
        """Whether exp2 of any score and sums of them are far from overflow and underflow, whatever the tokens.

        By the Cauchy-Schwarz inequality. On an accelerator the answer would hold up the queue: there it is no.
        """
        if self.query.device.type != "cpu":
            return False
        bound = self.query.norm(dim=-1).amax(-1) * self.key.norm(dim=-1).amax(-1)
        return bool(bound.max() <= _SMALL_SCORE)


def _rows_dot(maps: Tensor, mask: Tensor) -> Tensor:
    """(S, H, R, K) times (S, K) -> (S, H, R)."""
    S, H, R, K = maps.shape
    return torch.bmm(maps.view(S, H * R, K), mask.unsqueeze(-1)).view(S, H, R)


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
