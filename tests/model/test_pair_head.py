"""The pair head against one that stores everything, and what must not change its values."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from contactlm.model import pair_head
from contactlm.model.backbone import ContactBackbone
from contactlm.model.bins import bin_logits, pair_loss
from contactlm.model.pair_head import PairHead, PairOptions
from contactlm.model.trunk import checkpoint_layers
from contactlm.structure.contacts import contact_labels
from contactlm.structure.distances import BINS, NEAR_BINS, bin_centres, contacts_of_bins, distance_bins, distance_map
from contactlm.types import ModelError

from .families import ARCHITECTURES, family_tokens, small_model

SMALL = PairOptions(read_outs=4, blocks=3, channels=5)


def made_head(options=SMALL, maps=6, hidden=8, more=0):
    """A head whose every part counts."""
    head = PairHead(maps, hidden, options, seed=1, more=more).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            if "correct" in name or name.endswith("bias"):
                parameter.normal_(0, 0.3, generator=generator)
    return head


def given(lengths, K=4, seed=0, E=8):
    L, generator = max(lengths), torch.Generator().manual_seed(seed)
    maps = torch.randn(len(lengths), K, L, L, dtype=torch.float64, generator=generator)
    maps, states = maps + maps.mT, torch.randn(len(lengths), L, E, dtype=torch.float64, generator=generator)
    residue = torch.arange(L) < torch.tensor(lengths)[:, None]
    positions = torch.arange(L).expand(len(lengths), L).clone()
    return maps.requires_grad_(), residue, positions, states.requires_grad_()


def run(head, maps, residue, positions, states, wanted="distances"):
    return head(maps, maps[:, 0], residue, positions, states, wanted)


def stored(head, maps, positions, states, parts):
    """Corrections, and expected distances of contacts and of others, of one sample; every part an image of its own."""
    L, options = maps.shape[1], head.options
    scale = torch.full((options.read_outs,), L / 4, dtype=maps.dtype)
    scale[0] = 1
    d = (positions[:, None] - positions).abs().to(maps.dtype)
    told = torch.stack([d.log1p() / 5, 1 / (1 + d), d.clamp(max=24) / 24])
    narrow = [] if head.narrow is None else [torch.einsum("ic,jc->cij", *[head.narrow(states)] * 2)]
    x = torch.cat([maps * scale[:, None, None], told, *narrow])
    x = torch.einsum("ck,kij->cij", head.enter.weight, x) + head.enter.bias[:, None, None]
    whole = torch.zeros_like(x)
    for rows in parts:
        for columns in parts:
            image = x[:, rows, columns][None]
            for block in head.blocks:
                unit = image * (image.square().mean(1, keepdim=True) + 1e-5).rsqrt()
                dilation = block.dilation
                image = image + F.conv2d(unit.relu(), block.weight, block.bias, padding=dilation, dilation=dilation)
            whole[:, rows, columns] = image[0]
    channels = (whole * (whole.square().mean(0) + 1e-5).rsqrt()).relu().permute(1, 2, 0)
    near, far = (each(channels).softmax(-1) for each in (head.near, head.far))
    centres = bin_centres(near)
    parts = [head.correct(channels)[..., 0], near @ centres[:NEAR_BINS], far @ centres[NEAR_BINS:]]
    upper = torch.stack(parts).triu(1)
    return upper + upper.mT


@pytest.mark.parametrize("rows", [8, 96])
@pytest.mark.parametrize("options", [SMALL, PairOptions(4, 0, 5), PairOptions(4, 5, 5, states=2)])
@pytest.mark.parametrize("cuts", [[], [9], [9, 12]])
def test_strips_and_gaps_give_what_images_of_their_own_give(monkeypatch, rows, options, cuts):
    monkeypatch.setattr(pair_head, "_ROWS", rows)
    L, head = 31, made_head(options)
    maps, residue, positions, states = given([L, L])
    for cut in cuts:
        positions[1, cut:] += 20
    found = run(head, maps, residue, positions, states)
    edges = [0, *cuts, L]
    parts = [[slice(0, L)], [slice(a, b) for a, b in pairwise(edges)]]
    expected = torch.stack(
        [stored(head, *each, own) for *each, own in zip(maps, positions, states, parts, strict=True)]
    )
    contact = maps[:, 0] + expected[:, 0]
    distance = torch.lerp(expected[:, 2], expected[:, 1], contact.sigmoid())
    expected = torch.stack([contact, distance], 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert torch.equal(found, found.mT) and expected[:, 0].std() > 0.1
    wish = torch.randn(found.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wish = wish + wish.mT
    leaves = [maps, *([states] if options.states else []), *head.parameters()]
    leaves = [leaf for leaf in leaves if leaf is not head.read]
    ours, theirs = (torch.autograd.grad((x * wish).sum(), leaves) for x in (found, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        torch.testing.assert_close(run(head, maps, residue, positions, states), found, rtol=0, atol=1e-12)


def test_nothing_beyond_a_seam_or_further_than_it_sees_changes_a_pair():
    head = made_head()
    maps, residue, positions, states = given([60])
    positions[:, 25:] += 100
    before = run(head, maps, residue, positions, states)
    other = maps.detach().clone()
    other[:, :, 25:] += 1.0
    other[:, :, :, 25:] += 1.0
    torch.testing.assert_close(run(head, other, residue, positions, states)[..., :25, :25], before[..., :25, :25])
    other = maps.detach().clone()
    reach = head.options.reach
    assert reach == 7
    other[:, :, 40, 50], other[:, :, 50, 40] = 9.0, 9.0
    changed = (run(head, other, residue, positions, states) - before)[0, 0].abs() > 1e-12
    i, j = changed.triu().nonzero().T
    assert len(i) and (i - 40).abs().max() <= reach and (j - 50).abs().max() <= reach


def test_padding_changes_nothing():
    head = made_head()
    maps, residue, positions, states = given([40, 23])
    together = run(head, maps, residue, positions, states)
    alone = run(head, maps[1:, :, :23, :23], residue[1:, :23], positions[1:, :23], states[1:, :23])
    torch.testing.assert_close(together[1:, :, :23, :23], alone, rtol=0, atol=1e-12)


def pair_backbone(name, attention="streamed", options=SMALL, double=True):
    esm = small_model(name)
    config = esm.config
    head = PairHead(esm.contact_head.regression.in_features, config.hidden_size, options, seed=3)
    backbone = ContactBackbone(esm, attention, pair=head).train()
    return backbone.double() if double else backbone


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_untrained_it_predicts_what_the_contact_head_does_and_stored_maps_give_the_same(name):
    tokens = family_tokens(name, [19, 6])
    plain = ContactBackbone(small_model(name)).double()(tokens)
    wish = torch.randn(plain.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = []
    for attention in ("streamed", "plain"):
        backbone = pair_backbone(name, attention)
        torch.testing.assert_close(backbone(tokens), plain, rtol=0, atol=1e-10)
        with torch.no_grad():
            backbone.pair.correct.weight.fill_(0.1)
        logits = backbone(tokens)
        assert (logits - plain).abs().max() > 0.01
        (logits * wish).sum().backward()
        found.append([logits.detach(), *(p.grad for p in backbone.parameters() if p.grad is not None)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    single = pair_backbone(name, double=False)(tokens)
    torch.testing.assert_close(single.double(), plain, rtol=0, atol=2e-5)


def test_checkpointing_gives_the_same_gradients():
    found = []
    for checkpointed in (False, True):
        backbone = pair_backbone("ESM2", options=PairOptions(4, 1, 5, states=2))
        if checkpointed:
            checkpoint_layers(backbone.family.layers(backbone.esm))
        scores = backbone(family_tokens("ESM2", [30, 12]), wanted="bins")
        pair_loss(scores, bins_of([30, 12]), 1, 1.0).backward()
        found.append([p.grad for p in backbone.parameters() if p.grad is not None])
    assert len(found[0]) > 30
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def coordinates(lengths, seed=0):
    steps = torch.randn(len(lengths), max(lengths), 3, generator=torch.Generator().manual_seed(seed))
    cb = (3 * steps).cumsum(1)
    for row, length in zip(cb, lengths, strict=True):
        row[length:] = torch.nan
        row[3] = torch.nan
    return cb


def bins_of(lengths):
    return distance_bins(coordinates(lengths))


@pytest.mark.parametrize("cut", [None, 11])
def test_the_loss_is_the_cross_entropy_of_all_bins(cut):
    head, lengths = made_head(), [30, 20]
    maps, residue, positions, states = given(lengths)
    if cut:
        positions[0, cut:] += 50
    scores, bins = run(head, maps, residue, positions, states, "bins"), bins_of(lengths)
    found = pair_loss(scores, bins, 6, 1.0)
    expected = []
    for b in range(2):
        log_p = torch.full((30, 30, BINS), torch.nan, dtype=torch.float64)
        where, top = scores.residue_at[b], 0
        for strip in scores.strips:
            logits = bin_logits(strip, scores.bins).T.view(*strip.shape[:-1], BINS)
            log_bins = torch.cat([part.log_softmax(-1) for part in logits.tensor_split([NEAR_BINS], -1)], -1)
            for row, values in enumerate(log_bins[b]):
                i, columns = where[top + row], where[top:]
                if i >= 0:
                    log_p[i, columns[columns >= 0]] = values[columns >= 0]
            top += strip.shape[1]
        touching = scores.contact[b, ..., None]
        both = torch.cat(
            [
                F.logsigmoid(touching).expand(-1, -1, NEAR_BINS),
                F.logsigmoid(-touching).expand(-1, -1, BINS - NEAR_BINS),
            ],
            -1,
        )
        log_p = log_p + both
        i, j = torch.triu_indices(30, 30, 6)
        known = bins[b, i, j] >= 0
        of_pairs = log_p[i, j][known]
        torch.testing.assert_close(of_pairs.exp().sum(-1), torch.ones(len(of_pairs), dtype=torch.float64))
        torch.testing.assert_close(of_pairs[:, :NEAR_BINS].exp().sum(-1), scores.contact[b, i, j][known].sigmoid())
        expected.append(F.nll_loss(of_pairs, bins[b, i, j][known].long()))
    mean = torch.stack(expected).mean()
    torch.testing.assert_close(found, mean)
    leaves = [maps, *(weight for name, weight in head.named_parameters() if name != "read")]
    both = [torch.autograd.grad(x, leaves, retain_graph=True) for x in (found, mean)]
    for ours, theirs in zip(*both, strict=True):
        if ours.shape == maps.shape:  # one counts a pair once, the other each way by half
            ours, theirs = ours + ours.mT, theirs + theirs.mT
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_bins_tell_contacts_to_the_last_pair():
    cb = coordinates([50, 50], seed=3)
    cb[0, :2] = torch.tensor([[0.0, 0, 0], [8, 0, 0]])  # no contact: the distance is not below 8
    bins = distance_bins(cb)
    assert torch.equal(contacts_of_bins(bins), contact_labels(cb))
    distance = distance_map(cb)
    inside = (bins >= 0) & (bins < BINS - 1)
    assert bool(((distance[inside] - (bins[inside] + 2.5)).abs() <= 0.5 + 1e-9)[distance[inside] > 2].all())
    assert bool((distance[bins == BINS - 1] >= 22).all())


def test_sizes_that_make_no_sense_are_refused():
    with pytest.raises(ModelError, match=r"pair\.read_outs is 0"):
        PairOptions(read_outs=0)
