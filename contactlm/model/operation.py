"""Contact attention as an operation that PyTorch knows: its results' shapes, its gradient and its cost.

An operation registered with ``torch.library`` is one node to ``torch.compile``, runs on tensors without data
(``FakeTensorMode``) and is counted by ``torch.utils.flop_counter``, whatever its insides are made of: blocks worked off
in PyTorch (:mod:`contactlm.model.contact_attention`) or Triton kernels (:mod:`contactlm.model.fused`).

Axis letters: B batch, T tokens, H heads, D head width, K read-outs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

# value (B, H, T, D') or none; head_weight (H,) or (K, H); residue bool and key_bias float (B, T); spans int32 (B, 2).
# The first result is empty where there is no value; the last, sums over residues (B, H, T), where it is not kept.
_FORWARD = """{}(Tensor query, Tensor key, Tensor? value, Tensor head_weight, Tensor residue, Tensor key_bias,
    Tensor spans, bool skip_idle) -> (Tensor context, Tensor weighted, Tensor margins, Tensor log_sums, Tensor inner)"""
# needs: of query, key, value and head_weight; gradients that nobody needs are empty.
_BACKWARD = """{}_backward(Tensor? d_context, Tensor d_weighted, Tensor d_margins, Tensor query, Tensor key,
    Tensor? value, Tensor head_weight, Tensor? context, Tensor residue, Tensor key_bias, Tensor spans, Tensor log_sums,
    Tensor inner, bool[4] needs) -> (Tensor dq, Tensor dk, Tensor dv, Tensor dw)"""
_LIBRARY = torch.library.Library("contactlm", "FRAGMENT")

Shape = Sequence[int]
Forward = Callable[..., tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]
Backward = Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]


def define(name: str, forward: Forward, backward: Backward, fused: bool) -> Forward:
    """Register ``contactlm::name`` and ``contactlm::name_backward``, computed on any device by what is given.

    Args:
        name: Of the operation, which is returned.
        forward: Takes and returns what ``_FORWARD`` says.
        backward: Takes and returns what ``_BACKWARD`` says.
        fused: Whether the operation keeps its context and its sums over residues for the gradient, and computes its
            scores twice in the forward pass and three times in the backward pass, not once in each.
    """
    for schema, implementation, fake, flops, which in (
        (_FORWARD, forward, _forward_results(fused), forward_flops(fused), name),
        (_BACKWARD, backward, _backward_results(fused), backward_flops(fused), f"{name}_backward"),
    ):
        _LIBRARY.define(" ".join(schema.format(name).split()), tags=torch.Tag.pt2_compliant_tag)
        _LIBRARY.impl(which, implementation, "CompositeExplicitAutograd")
        torch.library.register_fake(f"contactlm::{which}", fake, lib=_LIBRARY)
        register_flop_formula(getattr(torch.ops.contactlm, which))(flops)
    gradient = getattr(torch.ops.contactlm, f"{name}_backward").default
    torch.library.register_autograd(
        f"contactlm::{name}", _differentiate(gradient), setup_context=_keep(fused), lib=_LIBRARY
    )
    return getattr(torch.ops.contactlm, name).default


def context_of(made: Tensor, query: Tensor, key: Tensor, value: Tensor | None) -> Tensor | None:
    """The context, in value's dtype, of what the operation made; None where there is no value.

    The heads' weights do not decide it: where they alone learn, what comes after is no matter of gradients.
    """
    if value is None:
        return None
    learns = query.requires_grad or key.requires_grad or value.requires_grad
    return (made if learns else made.detach()).to(value.dtype)


def empty_context(value: Tensor) -> Tensor:
    """Make (B, H, T, D') that lies in memory as (B, T, H, D'), as the layer reads it next."""
    B, H, T, D = value.shape
    return value.new_empty(B, T, H, D).transpose(1, 2)


def _forward_results(fused: bool) -> Forward:
    def results(
        query: Tensor, key: Tensor, value: Tensor | None, head_weight: Tensor, residue: Tensor, *_: Any
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        B, H, T, _D = query.shape
        kept = torch.promote_types(query.dtype, torch.float32)
        context = query.new_empty(0) if value is None else empty_context(value)
        weighted = query.new_empty(B, *head_weight.shape[:-1], T, T, dtype=kept)
        margins, log_sums = (query.new_empty(B, H, T, dtype=kept) for _ in range(2))
        inner = query.new_empty((B, H, T) if fused else (0,), dtype=kept)
        return context, weighted, margins, log_sums, inner

    return results


def _backward_results(fused: bool) -> Backward:
    def results(
        d_context: Any, d_weighted: Any, d_margins: Any, query: Tensor, key: Tensor, value: Any, w: Tensor, *rest: Any
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        given = (query, key, value, w)
        dq, dk, dv, dw = (
            (torch.empty_like(x) if fused else x.new_empty(x.shape)) if need and x is not None else query.new_empty(0)
            for x, need in zip(given, rest[-1], strict=True)
        )
        return dq, dk, dv, dw

    return results


def _keep(fused: bool) -> Callable[..., None]:
    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        query, key, value, head_weight, residue, key_bias, spans, _ = inputs
        context, _, _, log_sums, inner = output
        ctx.mark_non_differentiable(log_sums, inner)
        if not any(ctx.needs_input_grad[:3]):
            value = None  # the heads' weights alone learn, from queries and keys
        kept = context if fused and value is not None else None
        ctx.save_for_backward(query, key, value, head_weight, kept, residue, key_bias, spans, log_sums, inner)

    return keep


def _differentiate(gradient: Backward) -> Callable[..., tuple[Any, ...]]:
    def differentiate(ctx: Any, d_context: Tensor, d_weighted: Tensor, d_margins: Tensor, *_: Any) -> tuple[Any, ...]:
        kept, needs = ctx.saved_tensors, list(ctx.needs_input_grad[:4])  # checkpointing lets them be asked for once
        outer = None if kept[2] is None else d_context
        made = gradient(outer, d_weighted, d_margins, *kept, needs)
        given = [x if need else None for x, need in zip(made, needs, strict=True)]
        return (*given, None, None, None, None)

    return differentiate


def forward_flops(fused: bool) -> Callable[..., int]:
    """What the operation costs, from the shapes of its arguments."""

    def flops(query: Shape, key: Shape, value: Shape | None, head_weight: Shape, *_: Any, **__: Any) -> int:
        """Scores, context, the heads' weighted sums of maps, and column sums."""
        entries, D, K = _entries(query), query[-1], _read_outs(head_weight)
        return 2 * entries * ((2 if fused else 1) * D + _width(value) + K + 1)

    return flops


def backward_flops(fused: bool) -> Callable[..., int]:
    """What its gradient costs, from shapes and ``needs``."""

    def flops(
        d_context: Shape | None, d_weighted: Shape, d_margins: Shape, query: Shape, key: Shape, value: Shape | None,
        head_weight: Shape, *rest: Any, **_: Any,
    ) -> int:  # fmt: skip
        """Scores again; dv; dw; the maps' gradient from context, margins and read-outs; dq and dk."""
        of_query, of_key, of_value, of_weight = rest[-1]
        D, width, scores, K = query[-1], _width(value), of_query or of_key, _read_outs(head_weight)
        several = K if len(head_weight) == 2 else 0  # one weight is no product
        if not fused:
            products = D + of_value * width + of_weight * K + scores * (width + 2 + several) + (of_query + of_key) * D
            return 2 * _entries(query) * products
        sums = (scores or of_weight) * (D + K + 1)
        of_rows = of_query * (2 * D + width + 2 + several)
        of_columns = of_key * (2 * D + width + 2 + several) + of_value * (width if of_key else D + width)
        return 2 * _entries(query) * (sums + of_rows + of_columns)

    return flops


def _entries(query: Shape) -> int:
    """Of all attention maps."""
    B, H, T, _ = query
    return B * H * T * T


def _width(value: Shape | None) -> int:
    return 0 if value is None else value[-1]


def _read_outs(head_weight: Shape) -> int:
    return head_weight[0] if len(head_weight) == 2 else 1
