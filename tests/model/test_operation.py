"""The operations as PyTorch sees them: shapes without data, gradient, cost, one graph."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from contactlm.model.contact_attention import contact_attention
from contactlm.model.fused.op import contact_attention_fused

from .test_contact_attention import make_inputs, make_layout


def arguments(layout, with_value, dtype, transposed, K):
    q, k, v, w = (x.detach().to(dtype) for x in make_inputs([9, 6], 2, 16, K=K))
    if transposed:  # as a layer hands them over
        q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    leaves = [x.requires_grad_() for x in (q, k, v, w)]
    value = leaves[2] if with_value else None
    return leaves[0], leaves[1], value, leaves[3], layout.residue, layout.key_bias, layout.spans, False


@pytest.mark.slow
@pytest.mark.parametrize("K", [None, 3])
@pytest.mark.parametrize("with_value", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("name", ["streamed_attention", "fused_attention"])
def test_pytorch_finds_no_fault_in_the_operation(name, with_value, transposed, K):
    if name == "fused_attention":
        pytest.importorskip("triton")
    layout, _ = make_layout([9, 6])
    operation = getattr(torch.ops.contactlm, name).default
    dtype = torch.float32 if name == "fused_attention" else torch.float64
    given = arguments(layout, with_value, dtype, transposed, K)
    torch.library.opcheck(operation, given, test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))
    # The gradient's shapes and strides as well, which opcheck compares under symbolic tracing only.
    results = operation(*given)
    wanted = [x for x in given[:4] if x is not None]
    with torch.no_grad():
        backward = getattr(torch.ops.contactlm, f"{name}_backward").default
        outer = [torch.ones_like(x) for x in results[:3]]
        kept = results[0] if with_value and name == "fused_attention" else None
        of_backward = (outer[0] if with_value else None, *outer[1:], *given[:4], kept, *given[4:7], *results[3:])
        torch.library.opcheck(backward, (*of_backward, [True] * 4), test_utils=("test_schema", "test_faketensor"))
    assert len(torch.autograd.grad(sum(x.sum() for x in results[:3]), wanted)) == len(wanted)


@pytest.mark.parametrize(
    ("fused", "asked", "wide", "single"),
    [
        # Scores again, dv, the maps' gradient, dq, dk; the head's weights and the margins' two.
        (False, (True, True, True, True), 5, 3),
        (False, (True, True, False, False), 4, 2),
        (False, (False, False, True, False), 2, 0),
        # The pre-pass, 3 products for dq and 3 for dk, each with the scores again, and dv; sums and margins.
        (True, (True, True, True, True), 8, 6),
        (True, (True, True, False, False), 7, 6),
        (True, (False, False, True, False), 2, 0),
    ],
)
def test_cost_is_that_of_the_products(fused, asked, wide, single):
    """Of the backward pass: products of (T, T) with D columns, and with single columns."""
    if fused:
        pytest.importorskip("triton")
    T, D, H = 12, 16, 3
    layout, _ = make_layout([T])
    leaves = [x.detach().float().requires_grad_(need) for x, need in zip(make_inputs([T], H, D), asked, strict=True)]
    with FlopCounterMode(display=False) as counter:
        shares = (contact_attention_fused if fused else contact_attention)(*leaves, layout)
        forward = counter.get_total_flops()
        sum(x.sum() for x in shares).backward()
    unit = 2 * T * T * H
    assert forward == unit * ((3 if fused else 2) * D + 2)  # scores (twice), context; weighted sum and column sums
    assert counter.get_total_flops() - forward == unit * (wide * D + single)


def test_read_outs_cost_three_products_each():
    """Each a product in the forward pass; with dP and dw two more in the backward pass."""
    T, D, H, K = 12, 16, 3, 4
    layout, _ = make_layout([T])
    with FlopCounterMode(display=False) as counter:
        shares = contact_attention(*(x.float() for x in make_inputs([T], H, D, K=K)), layout)
        forward = counter.get_total_flops()
        sum(x.sum() for x in shares).backward()
    unit = 2 * T * T * H
    assert forward == unit * (2 * D + K + 1)
    assert counter.get_total_flops() - forward == unit * (5 * D + 2 + 2 * K)


@pytest.mark.slow
def test_a_compiled_model_is_one_graph_and_gives_the_same():
    from contactlm.model.backbone import ContactBackbone

    from .made import make_tokens, tiny_esm

    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    model = ContactBackbone(tiny_esm()).train()
    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
    for lengths in ([17, 30, 9], [12, 25], [40, 8, 31, 5]):
        found = []
        for run in (model, compiled):
            model.zero_grad()
            logits = run(make_tokens(lengths))
            logits.square().mean().backward()
            found.append([logits.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert len(graphs) == 1
    assert sum("streamed_attention" in str(node.target) for node in graphs[0].graph.nodes) == 3
