"""The streamed operation against the stored maps: values, gradients, blocks, degenerate cases."""

from __future__ import annotations

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from contactlm.model import blocks
from contactlm.model.blocks import TokenLayout, plan_blocks
from contactlm.model.contact_attention import contact_attention, contact_attention_plain, contact_logits, read_outs


def make_layout(lengths, tokens=None, hole=False):
    T = tokens or max(lengths)
    batch = torch.full((len(lengths), T), 5)
    for sample, n in enumerate(lengths):
        batch[sample, 0], batch[sample, n - 1], batch[sample, n:] = 0, 2, 1
    mask = batch != 1
    if hole:
        mask[0, 2] = False
    return TokenLayout.of(batch, mask), mask


class Transfers(TorchFunctionMode):
    """Counts how often values are asked for, which an accelerator has to be waited for."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        asking = (torch.Tensor.tolist, torch.Tensor.item, torch.Tensor.cpu, torch.Tensor.__bool__, torch.Tensor.__int__)
        self.count += function in asking
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("rows", "regular"),
    [
        ([[0, 5, 5, 5, 2], [0, 5, 2, 1, 1]], True),
        ([[0, 5, 5, 5, 2], [0, 5, 5, 1, 1]], False),  # as many residues as tokens but one: no <eos>
        ([[0, 5, 2, 5, 2], [0, 5, 2, 1, 1]], False),
        ([[0, 5, 2, 5, 1], [0, 5, 2, 1, 1]], False),  # <eos> inside, a residue at the end
        ([[1, 1, 1, 1, 1], [0, 5, 2, 1, 1]], False),
    ],
)
def test_a_layout_is_made_without_a_transfer_and_read_in_one(rows, regular):
    batch = torch.tensor(rows)
    with Transfers() as making:
        layout = TokenLayout.of(batch, batch != 1)
    with Transfers() as reading:
        assert layout.regular == regular and not layout.holes and len(layout.lengths) == 2
    assert (making.count, reading.count) == (0, 2)  # a copy, and the numbers in the copy
    with Transfers() as again:
        assert layout.unpadded == (min(layout.lengths) == batch.shape[1])
    assert again.count == 0


def make_inputs(lengths, heads, width, dtype=torch.float64, scale=1.0, seed=0, K=None):
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), heads, max(lengths), width)
    qkv = [torch.randn(shape, generator=generator, dtype=dtype) * scale for _ in range(3)]
    weight = torch.randn(heads if K is None else (K, heads), generator=generator, dtype=dtype)
    return [x.requires_grad_() for x in (*qkv, weight)]


def meaningful(shares, layout, mask):
    context, weighted, margins = shares
    residue = layout.residue.to(margins)
    pairs = residue[:, :, None] * residue[:, None, :]
    kept = [weighted * (pairs if weighted.ndim == 3 else pairs.unsqueeze(1)), margins]
    return kept if context is None else [context * mask[:, None, :, None], *kept]


def worst_difference(lengths, heads, width, with_value=True, hole=False, scale=1.0, K=None, dtype=torch.float64):
    layout, mask = make_layout(lengths, hole=hole)
    q, k, v, w = make_inputs(lengths, heads, width, dtype, scale=scale, K=K)
    value = v if with_value else None
    ours = meaningful(contact_attention(q, k, value, w, layout), layout, mask)
    plain = meaningful(contact_attention_plain(q, k, value, w, layout), layout, mask)
    inputs = [q, k, v, w] if with_value else [q, k, w]
    outer = [torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1)) for x in plain]
    gradients = [torch.autograd.grad(out, inputs, outer) for out in (ours, plain)]
    pairs = [*zip(ours, plain, strict=True), *zip(*gradients, strict=True)]
    assert any(float(a.detach().abs().max()) > 1e-3 for a, _ in pairs)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


@pytest.mark.parametrize("size", [1, 300, 5_000, 1 << 22])
@pytest.mark.parametrize("with_value", [True, False])
@pytest.mark.parametrize(
    ("lengths", "heads", "width"),
    [
        ([3], 1, 2),
        ([4, 3, 3], 2, 4),
        ([13, 7, 3, 20], 3, 4),
        ([53, 61, 3], 21, 4),
        ([29] * 5, 5, 6),
        ([37, 36], 20, 16),
    ],
)
def test_streamed_equals_plain_in_any_blocks(monkeypatch, lengths, heads, width, with_value, size):
    monkeypatch.setattr(blocks, "CPU_BYTES_PER_THREAD", size)
    assert worst_difference(lengths, heads, width, with_value) < 1e-10


@pytest.mark.parametrize("size", [1, 5_000, 1 << 22])
@pytest.mark.parametrize("K", [1, 3, 16])
@pytest.mark.parametrize(("lengths", "heads", "width"), [([3], 1, 2), ([13, 7, 3, 20], 3, 4), ([37, 36], 20, 16)])
def test_several_read_outs_equal_plain_in_any_blocks(monkeypatch, lengths, heads, width, K, size):
    monkeypatch.setattr(blocks, "CPU_BYTES_PER_THREAD", size)
    for with_value in (True, False):
        assert worst_difference(lengths, heads, width, with_value, hole=size == 5_000, K=K) < 1e-10
    assert worst_difference(lengths, heads, width, scale=width**-0.5, K=K, dtype=torch.float32) < 1e-4


@pytest.mark.parametrize("size", [300, 1 << 22])
def test_holes_in_the_mask(monkeypatch, size):
    monkeypatch.setattr(blocks, "CPU_BYTES_PER_THREAD", size)
    assert worst_difference([13, 7, 20], 3, 4, hole=True) < 1e-10


def test_scores_beyond_the_range_of_exponents():
    """Scores of several thousand: exp of them overflows even in float64 unless a row's maximum is taken off."""
    layout, mask = make_layout([17, 9])
    q, k, v, w = make_inputs([17, 9], 3, 4, scale=40.0)
    assert float((q @ k.mT).detach().max()) > 2000
    ours = meaningful(contact_attention(q, k, v, w, layout), layout, mask)
    plain = meaningful(contact_attention_plain(q, k, v, w, layout), layout, mask)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    single = [x.detach().float() for x in (q, k, v, w)]
    assert all(bool(x.isfinite().all()) for x in contact_attention(*single, layout))


def test_scores_of_padding_queries_reach_no_gradient(monkeypatch):
    # The passes group samples differently, so that a row of padding may be computed in one of them only: here the
    # fourth sample's last two, with the first three in the forward pass, with the fifth in the backward pass.
    for limit in ("CPU_BYTES_PER_THREAD", "CPU_MAX_BYTES"):
        monkeypatch.setattr(blocks, limit, 1600)
    lengths = [8, 8, 8, 3, 10]
    plans = [plan_blocks(lengths, 1, torch.device("cpu"), 4 * arrays) for arrays in (1, 2)]
    assert [[block.samples for block in plan] for plan in plans] == [
        [slice(0, 4), slice(4, 5)],
        [slice(0, 3), slice(3, 5)],
    ]
    layout, mask = make_layout(lengths)
    query, key, value, weight = make_inputs(lengths, 1, 4, dtype=torch.float32)
    with torch.no_grad():
        query[~mask[:, None].expand(query.shape[:3])] *= 1e4
    gradients = []
    for operation in (contact_attention, contact_attention_plain):
        context, weighted, margins = operation(query, key, value, weight, layout)
        real = mask[:, None, :, None]
        pairs = layout.residue[:, :, None] & layout.residue[:, None]
        total = (context * real).square().sum() + (weighted * pairs).sum() + margins.square().sum()
        gradients.append(torch.autograd.grad(total, (query, key, value, weight)))
    for ours, plain in zip(*gradients, strict=True):
        assert torch.isfinite(ours).all()
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("lengths", [[6, 4], [3, 5]])
def test_gradcheck(monkeypatch, lengths):
    monkeypatch.setattr(blocks, "CPU_BYTES_PER_THREAD", 200)
    layout, mask = make_layout(lengths)
    inputs = make_inputs(lengths, 2, 2)
    assert torch.autograd.gradcheck(
        lambda q, k, v, w: tuple(meaningful(contact_attention(q, k, v, w, layout), layout, mask)), inputs
    )


@pytest.mark.parametrize("K", [None, 2])
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (3,), (0, 1), (0, 3), (1, 2)])
def test_gradients_nobody_asks_for_change_no_other(wanted, K):
    layout, _ = make_layout([11, 8])
    inputs = make_inputs([11, 8], 3, 4, K=K)

    def gradients(asked):
        leaves = [x.detach().clone().requires_grad_(i in asked) for i, x in enumerate(inputs)]
        context, weighted, margins = contact_attention(*leaves, layout)
        (context[:, :, :8].sin().sum() + weighted[..., 1:7, 1:7].sin().sum() + margins.sin().sum()).backward()
        return [x.grad for x in leaves]

    some, everything = gradients(wanted), gradients((0, 1, 2, 3))
    for i in range(4):
        if i in wanted:
            torch.testing.assert_close(some[i], everything[i], rtol=0, atol=1e-14)
        else:
            assert some[i] is None


def test_blocks_cover_every_entry_once():
    lengths, heads = [5, 9, 9, 40, 3, 3, 3], 7
    for size in (1, 100, 1_000, 20_000, 1 << 20):
        seen = torch.zeros(len(lengths), heads, 40, 40)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(blocks, "CPU_BYTES_PER_THREAD", size)
            for block in plan_blocks(lengths, heads, torch.device("cpu"), 4):
                seen[block.samples, block.heads, block.rows, : block.keys] += 1
                assert block.biased == (min(lengths[block.samples]) < block.keys)
        assert seen.max() == 1
        for sample, n in enumerate(lengths):
            assert bool((seen[sample, :, :n, :n] == 1).all())


def test_an_empty_map_has_no_average_product():
    weighted = torch.zeros(1, 4, 4, requires_grad=True)
    margins = torch.rand(1, 3, 4)
    margins[0, 1], margins[0, 2] = 0, 1e-38
    margins.requires_grad_()
    weight = torch.ones(3, requires_grad=True)
    logits = contact_logits(weighted, margins, weight, torch.tensor([0.5]))
    logits.square().sum().backward()
    r = margins.detach()[0, 0]
    torch.testing.assert_close(logits.detach()[0], 0.5 - torch.outer(r, r) / r.sum())
    assert all(bool(x.grad.isfinite().all()) for x in (weighted, margins, weight))


def test_logits_are_the_regression_over_corrected_maps():
    """The formula term by term: symmetrise, average product correction, logistic regression's linear part."""
    maps = torch.rand(2, 5, 7, 7, dtype=torch.float64)
    weight = torch.randn(5, dtype=torch.float64)
    S = maps + maps.mT
    corrected = S - S.sum(-1, keepdim=True) * S.sum(-2, keepdim=True) / S.sum((-1, -2), keepdim=True)
    expected = torch.einsum("c,bcij->bij", weight, corrected) + 0.3
    logits = contact_logits(
        torch.einsum("c,bcij->bij", weight, maps),
        maps.sum(-1) + maps.sum(-2),
        weight,
        torch.tensor(0.3, dtype=torch.float64),
    )
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)


def test_each_read_out_is_a_regression_of_its_own():
    maps = torch.rand(2, 5, 7, 7, dtype=torch.float64)
    weight = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    margins = (maps.sum(-1) + maps.sum(-2)).requires_grad_()
    weighted = torch.einsum("kc,bcij->bkij", weight.detach(), maps).requires_grad_()
    together, first = read_outs(weighted, margins, weight)
    assert torch.equal(first, together[:, 0])
    alone = torch.stack([contact_logits(weighted[:, k], margins, weight[k], None) for k in range(3)], 1)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)
    assert torch.equal(together, together.mT)
    wish = torch.randn(together.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    leaves = (weighted, margins, weight)
    for ours, theirs in zip(
        torch.autograd.grad((together * wish).sum(), leaves),
        torch.autograd.grad((alone * wish).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_half_precision_is_computed_in_float32():
    layout, mask = make_layout([33, 20])
    rounded = [x.detach().bfloat16() for x in make_inputs([33, 20], 4, 8, dtype=torch.float32)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        context, weighted, margins = contact_attention(*rounded, layout)
    exact = contact_attention_plain(*(x.double() for x in rounded), layout)
    assert (context.dtype, weighted.dtype, margins.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    for a, b in zip(
        meaningful((None, weighted, margins), layout, mask), meaningful((None, *exact[1:]), layout, mask), strict=True
    ):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=1e-5)


def test_flop_counter_sees_recomputation():
    """Forward: QK^T, PV and three products with vectors; backward: QK^T again, dP, dV, dQ, dK, dw."""
    B, H, T, D = 1, 4, 64, 16
    layout, _ = make_layout([T])
    inputs = make_inputs([T], H, D, dtype=torch.float32)
    with FlopCounterMode(display=False) as counter:
        context, weighted, margins = contact_attention(*inputs, layout)
        forward = counter.get_total_flops()
        (context.sum() + weighted.sum() + margins.sum()).backward()
    unit = 2 * B * H * T * T
    assert 2 * D * unit <= forward <= (2 * D + 4) * unit
    assert 5 * D * unit <= counter.get_total_flops() - forward <= (5 * D + 4) * unit
