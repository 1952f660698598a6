"""Contact attention by Triton kernels: the same signature and results as the streamed operation, for a GPU.

Where the streamed operation works in float32, this one multiplies in the dtype of the layer's products (bfloat16 or
float16 under mixed precision) and adds up in float32, as fused attention does everywhere. float32 inputs are
multiplied as TF32 where ``torch.set_float32_matmul_precision("high")`` allows it. Nothing is added up in an order that
may change: the same inputs give the same bits.

On the CPU the kernels run in Triton's interpreter, if the environment says ``TRITON_INTERPRET=1`` before the first use.
"""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from contactlm.model.blocks import TokenLayout
from contactlm.model.operation import context_of, define
from contactlm.types import ModelError

if TYPE_CHECKING:
    from contactlm.model.contact_attention import Shares

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WIDEST = 128  # the widest head that the kernels were compiled for


def contact_attention_fused(
    query: Tensor, key: Tensor, value: Tensor | None, head_weight: Tensor, layout: TokenLayout
) -> Shares:
    """Do what :func:`~contactlm.model.contact_attention.contact_attention` does, in a GPU's kernels.

    Heads whose weight is 0 and not trained get column sums of 0: their margins count for nothing.
    """
    _check_inputs(query, value)
    dtype = _product_dtype(query)
    trained = torch.is_grad_enabled() and head_weight.requires_grad
    q, k, v = (None if x is None else _side_by_side(x.to(dtype)) for x in (query, key, value))
    context, weighted, margins, _, _ = _fused(
        q, k, v, head_weight.contiguous(), layout.residue, layout.key_bias, layout.spans, not trained
    )
    return context_of(context, query, key, value), weighted, margins


def _check_place(device: torch.device) -> None:
    if importlib.util.find_spec("triton") is None:
        raise ModelError(
            "attention: 'fused' needs Triton, which comes with PyTorch for CUDA on Linux; install it, or take "
            "'streamed'"
        )
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ModelError(
            "attention: 'fused' needs a GPU, but the tensors are on the CPU; take 'streamed', or, to check results, "
            "set TRITON_INTERPRET=1 in the environment"
        )


def _check_inputs(query: Tensor, value: Tensor | None) -> None:
    width = query.shape[-1]
    if query.dtype not in _DTYPES or width > WIDEST or (value is not None and value.shape != query.shape):
        raise ModelError(
            f"attention: 'fused' takes heads of at most {WIDEST}, values as wide as queries, and float32, bfloat16 or "
            f"float16; {query.dtype} (B, H, T, D) = {tuple(query.shape)} given; take 'streamed'"
        )


def _product_dtype(query: Tensor) -> torch.dtype:
    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
    # The interpreter multiplies bfloat16 as if its bits were whole numbers.
    return torch.float32 if kind == "cpu" and dtype == torch.bfloat16 else dtype


def _side_by_side(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _forward(
    query: Tensor, key: Tensor, value: Tensor | None, head_weight: Tensor, residue: Tensor, key_bias: Tensor,
    spans: Tensor, skip_idle: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    _check_place(query.device)
    from contactlm.model.fused import launch

    given = launch.Given(query, key, value, head_weight, residue, key_bias, spans)
    context, log_sums, inner = launch.attend(given)
    weighted, columns = launch.share(given, log_sums, skip_idle)
    nothing = query.new_empty(0) if context is None else context
    return nothing, weighted, columns.add_(inner), log_sums, inner


def _backward(
    d_context: Tensor | None, d_weighted: Tensor, d_margins: Tensor, query: Tensor, key: Tensor, value: Tensor | None,
    head_weight: Tensor, context: Tensor | None, residue: Tensor, key_bias: Tensor, spans: Tensor, log_sums: Tensor,
    inner: Tensor, needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    from contactlm.model.fused import launch

    need_query, need_key, need_value, need_weight = needs
    given = launch.Given(query, key, value, head_weight, residue, key_bias, spans)
    outer = launch.Outer(
        None if d_context is None else _side_by_side(d_context),
        d_weighted.contiguous(),
        (d_margins * residue[:, None]).contiguous(),
        log_sums,
    )
    u = dots = dq = dk = dv = None
    if need_query or need_key or need_weight:
        u, dots = launch.row_sums(given, outer, context, inner)
    if need_query and dots is not None:
        dq = launch.query_gradient(given, outer, dots)
    if need_key or need_value:
        dk, dv = launch.key_value_gradient(given, outer, dots if need_key else None, need_value)
    dw = None
    if need_weight and u is not None:
        dw = u.sum((0, 3)).mT.contiguous().view(head_weight.shape).to(head_weight.dtype)
    dq, dk, dv, dw = (query.new_empty(0) if x is None else x for x in (dq, dk, dv, dw))
    return dq, dk, dv, dw


_fused = define("fused_attention", _forward, _backward, fused=True)
