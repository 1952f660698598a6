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

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from contactlm.model.blocks import Block, TokenLayout, plan_blocks

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
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor | None, head_weight: Tensor, layout: TokenLayout
    ) -> Shares:
        B, H, T, _ = query.shape
        context = None if value is None else torch.zeros_like(value)
        weighted, margins = query.new_zeros(B, T, T), query.new_zeros(B, H, T)
        residue = layout.residue.to(query)
        for block in plan_blocks(layout.lengths, H, query.device, query.element_size()):
            P, own = _probabilities(query, key, layout, block), residue[block.samples]
            if context is not None and value is not None:
                context[block.at_rows] = P @ value[block.at_keys]
            A = (head_weight @ P.transpose(0, 1).reshape(H, -1)).view(P.shape[0], *P.shape[2:])
            weighted[block.samples, block.rows, : block.keys] = A
            in_rows, in_columns = own[:, None, block.rows, None], own[:, None, : block.keys, None]
            margins[block.at_rows[:3]] += ((P @ in_columns) * in_rows).squeeze(-1)
            margins[block.at_keys[:3]] += ((P.transpose(2, 3) @ in_rows) * in_columns).squeeze(-1)
        ctx.save_for_backward(query, key, value, head_weight)
        ctx.layout = layout
        return context, weighted, margins

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_context: Tensor | None, d_weighted: Tensor, d_margins: Tensor) -> tuple[Any, ...]:
        query, key, value, head_weight = ctx.saved_tensors
        layout, (_, H, _, _) = ctx.layout, query.shape
        dq, dk, dw = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(head_weight)
        dv = None if value is None else torch.zeros_like(value)
        residue = layout.residue.to(query)
        d_margins = d_margins * residue[:, None]
        for block in plan_blocks(layout.lengths, H, query.device, query.element_size()):
            P, own = _probabilities(query, key, layout, block), residue[block.samples]
            dA = d_weighted[block.samples, None, block.rows, : block.keys]
            dP = head_weight[:, None, None] * dA
            dP += d_margins[block.at_rows[:3]].unsqueeze(-1) * own[:, None, None, : block.keys]
            dP += own[:, None, block.rows, None] * d_margins[block.at_keys[:3]].unsqueeze(-2)
            if value is not None and d_context is not None and dv is not None:
                dP += d_context[block.at_rows] @ value[block.at_keys].transpose(2, 3)
                dv[block.at_keys] += P.transpose(2, 3) @ d_context[block.at_rows]
            dw += (P * dA).sum((0, 2, 3))
            dS = torch._softmax_backward_data(dP, P, -1, P.dtype)
            dq[block.at_rows] = dS @ key[block.at_keys]
            dk[block.at_keys] += dS.transpose(2, 3) @ query[block.at_rows]
        return dq, dk, dv, dw, None


def _probabilities(query: Tensor, key: Tensor, layout: TokenLayout, block: Block) -> Tensor:
    """Rows of the attention maps: (samples, H, rows, keys)."""
    scores = query[block.at_rows] @ key[block.at_keys].transpose(2, 3)
    if block.biased or layout.holes:
        scores += layout.key_bias.to(scores)[block.samples, None, None, : block.keys]
    return scores.softmax(-1)


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
