"""The fused operation against the plain one in float64: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import os

import pytest
import torch

from contactlm.model.contact_attention import contact_attention_plain
from contactlm.model.fused.op import contact_attention_fused
from contactlm.types import ModelError

from .test_contact_attention import make_inputs, make_layout, meaningful

pytest.importorskip("triton")
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
if not GPU and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("there is a GPU, but PyTorch cannot use it", allow_module_level=True)
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 4e-2, torch.float16: 5e-3}


def both(
    lengths, heads, width, dtype=torch.float32, with_value=True, hole=False, scale=1.0, asked=(0, 1, 2, 3), K=None
):
    """Results and gradients of the fused operation and of the plain one, in float64 on the same rounded inputs."""
    layout, mask = make_layout(lengths, hole=hole)
    given = [x.detach().to(dtype) for x in make_inputs(lengths, heads, width, scale=scale, K=K)]
    given[3] = given[3].float()
    found = []
    runs = ((contact_attention_fused, None, DEVICE), (contact_attention_plain, torch.double, "cpu"))
    for operation, kind, device in runs:
        leaves = [x.to(device, kind, copy=True).requires_grad_(i in asked) for i, x in enumerate(given)]
        where = type(layout)(*(getattr(layout, name).to(device) for name in ("residue", "key_bias", "spans")))
        value = leaves[2] if with_value else None
        shares = operation(leaves[0], leaves[1], value, leaves[3], where)
        results = meaningful(shares, where, mask.to(device))
        generator = torch.Generator().manual_seed(1)
        outer = [torch.randn(x.shape, generator=generator, dtype=torch.double) for x in results]
        wanted = [x for i, x in enumerate(leaves) if i in asked and (with_value or i != 2)]
        total = sum((x * y.to(x)).sum() for x, y in zip(results, outer, strict=True))
        gradients = torch.autograd.grad(total, wanted)
        found.append([x.detach().cpu().double() for x in (*results, *gradients)])
    return found


def assert_close(found, tolerance):
    for ours, plain in zip(*found, strict=True):
        assert float(plain.abs().max()) > 1e-3
        assert float((ours - plain).abs().max()) <= tolerance * max(1.0, float(plain.abs().max()))


@pytest.mark.parametrize("with_value", [True, False])
@pytest.mark.parametrize(
    ("lengths", "heads", "width"),
    [([3], 1, 16), ([40, 33], 2, 16), ([70, 5], 1, 24), ([33], 1, 32), ([65], 1, 64), ([20, 35], 1, 128), ([34], 2, 2)],
)
def test_values_and_all_gradients_are_those_of_the_plain_operation(lengths, heads, width, with_value):
    assert_close(both(lengths, heads, width, with_value=with_value, scale=width**-0.25), TOLERANCE[torch.float32])


@pytest.mark.parametrize("with_value", [True, False])
@pytest.mark.parametrize(("lengths", "heads", "width", "K"), [([40, 33], 2, 16, 3), ([35], 1, 24, 9), ([20], 3, 16, 1)])
def test_several_read_outs(lengths, heads, width, K, with_value):
    found = both(lengths, heads, width, with_value=with_value, scale=width**-0.25, K=K)
    assert_close(found, TOLERANCE[torch.float32])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_several_read_outs_in_half_precision(dtype):
    assert_close(both([40, 30], 1, 16, dtype, scale=0.5, K=3), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("with_value", [True, False])
def test_half_precision(dtype, with_value):
    assert_close(both([66, 30], 1, 16, dtype, with_value, scale=0.5), TOLERANCE[dtype])


def test_holes_in_the_mask():
    assert_close(both([36, 20], 1, 16, hole=True), TOLERANCE[torch.float32])


def test_scores_beyond_the_range_of_exponents():
    assert_close(both([17, 9], 2, 16, scale=8.0), 2e-3)


@pytest.mark.parametrize("K", [None, 2])
@pytest.mark.parametrize("asked", [(0,), (1,), (2,), (3,), (0, 3), (1, 2)])
def test_gradients_nobody_asks_for(asked, K):
    assert_close(both([34, 20], 1, 16, asked=asked, K=K), TOLERANCE[torch.float32])


def test_idle_heads_are_skipped_where_nobody_trains_their_weight():
    layout, mask = make_layout([36, 20])
    q, k, v, w = (x.detach().float() for x in make_inputs([36, 20], 3, 16))
    w[1] = 0
    ours = meaningful(contact_attention_fused(q, k, v, w, layout), layout, mask)
    plain = meaningful(contact_attention_plain(q, k, v, w, layout), layout, mask)
    torch.testing.assert_close(ours[:2], plain[:2], rtol=0, atol=1e-5)
    torch.testing.assert_close(ours[2][:, ::2], plain[2][:, ::2], rtol=0, atol=1e-5)
    assert float(ours[2][:, 1].max()) <= 1 < float(plain[2][:, 1].max())  # rows only: no tile was computed


def test_the_same_inputs_give_the_same_bits():
    first, second = (both([36, 20], 1, 16)[0] for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_what_the_kernels_cannot_take_is_refused():
    layout, _ = make_layout([5])
    q, k, v, w = make_inputs([5], 1, 8)
    with pytest.raises(ModelError, match="float64"):
        contact_attention_fused(q, k, v, w, layout)
    wide = [x.float() for x in make_inputs([5], 1, 130)]
    with pytest.raises(ModelError, match=r"at most 128.*130"):
        contact_attention_fused(*wide, layout)


@pytest.mark.skipif(GPU, reason="there is a GPU")
def test_a_processor_alone_is_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    layout, _ = make_layout([5])
    with pytest.raises(ModelError, match=r"needs a GPU.*TRITON_INTERPRET=1"):
        contact_attention_fused(*(x.float() for x in make_inputs([5], 1, 8)), layout)
