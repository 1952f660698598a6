"""The decoder and the template bias, against their formulas written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from contactlm.model.blocks import TokenLayout
from contactlm.model.contact_attention import contact_attention, contact_attention_plain
from contactlm.model.decoder import ContactDecoder
from contactlm.model.evidence import SCALE, Evidence, TemplateBias
from contactlm.model.trunk import Attention
from contactlm.types import ModelError
from tests.model.made import make_tokens

E = 24
SCALE_OF_MAPS = 10.0


def made_evidence(B: int, L: int, K: int = 3, S: int = 16, seed: int = 0) -> Evidence:
    """Evidence with segments here and there; the last query has none."""
    g = torch.Generator().manual_seed(seed)
    evidence = Evidence.none(B, L, E, K, S)
    for b in range(B - 1):
        for k in range(K):
            evidence.cb[b, k] = torch.randn(L, 3, generator=g).cumsum(0) * 2
            evidence.cb[b, k, torch.rand(L, generator=g) < 0.2] = torch.nan
        for s in range(9):
            k, length = s % K, 3 + s % 4
            start = int(torch.randint(0, L - length, (1,), generator=g))
            evidence.hit_of[b, s], evidence.strand[b, s], evidence.least[b, s] = k, s % 2 == 0, 2
            evidence.segment_of[b, k, start : start + length] = s
        near = torch.rand(S, S, generator=g) < 0.4
        evidence.touching[b] = near | near.T
        evidence.similarity[b] = torch.rand(K, 2, generator=g)
    evidence.states.normal_(generator=g)
    return evidence


def made_decoder(layers: int = 2, width: int = 48) -> ContactDecoder:
    """A decoder whose head is not zero and whose attention is not flat."""
    decoder = ContactDecoder(E, layers, width).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        decoder.head_weight.normal_(generator=generator)
        each: Any = decoder.layers
        for layer in each:
            for linear in (layer.query, layer.key, layer.ask, layer.offer):
                linear.weight.mul_(4)
    return decoder


def turned(x: Tensor, positions: Tensor) -> Tensor:
    """Rotate (B, T, H, 16) pair by pair, as complex numbers."""
    frequencies = 10_000.0 ** (-torch.arange(8, dtype=torch.float32) / 8)
    angle = (positions.float()[..., None] * frequencies).double().unsqueeze(2)
    z = torch.complex(x[..., :8], x[..., 8:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([z.real, z.imag], -1).transpose(1, 2)


def heads_of(x: Tensor) -> Tensor:
    return x.view(*x.shape[:2], -1, 16)


def attend(query: Tensor, key: Tensor, keep: Tensor) -> Tensor:
    scores = query @ key.mT / math.sqrt(query.shape[-1])
    return scores.masked_fill(~keep, -torch.inf).softmax(-1)


def written_out(decoder: ContactDecoder, states: Tensor, positions: Tensor, evidence: Evidence, mask: Tensor) -> Tensor:
    """The decoder's logits with all maps at hand, in float64."""
    B, T, _ = states.shape
    own = decoder.segments
    tokens, centres, there = [], [], []
    for b in range(B):
        rows, where, found = [], [], []
        for s in range(evidence.strand.shape[1]):
            residues = (evidence.segment_of[b] == s).nonzero()[:, 1].tolist()
            found.append(len(residues) >= int(evidence.least[b, s]))
            where.append(sum(float(positions[b, i + 1]) for i in residues) / len(residues) if found[-1] else 0.0)
            similarity = evidence.similarity[b, evidence.hit_of[b, s]].tolist()
            numbers = torch.tensor([*similarity, math.log(len(residues)) if found[-1] else 0.0]).double()
            kind = own.kind[int(evidence.strand[b, s])]
            rows.append(own.states(evidence.states[b, s].double()) + kind + own.numbers(numbers))
        tokens.append(own.norm(torch.stack([*rows, own.nothing])))
        centres.append(torch.tensor([*where, 0.0]))
        there.append(torch.tensor([*found, not any(found)]))
    segments, centre, keep = torch.stack(tokens), torch.stack(centres), torch.stack(there)
    residue = torch.zeros(B, T, dtype=torch.bool)
    for b, length in enumerate(mask.sum(1).tolist()):
        residue[b, 1 : length - 1] = True
    both = residue[:, :, None] & residue[:, None, :]
    hidden, logits = decoder.enter(states), torch.zeros(B, T, T, dtype=torch.float64)
    layers: Any = decoder.layers
    for layer, weights in zip(layers, SCALE_OF_MAPS * decoder.head_weight, strict=True):
        key, value = (heads_of(part) for part in layer.offer(segments).chunk(2, -1))
        P = attend(
            turned(heads_of(layer.ask(layer.norm_cross(hidden))), positions), turned(key, centre), keep[:, None, None]
        )
        hidden = hidden + layer.take((P @ value.transpose(1, 2)).transpose(1, 2).flatten(2))
        normed = layer.norm_self(hidden)
        query, key = turned(heads_of(layer.query(normed)), positions), turned(heads_of(layer.key(normed)), positions)
        P = attend(query, key, mask[:, None, None])
        for h, w in enumerate(weights):
            S = P[:, h].masked_fill(~both, 0)
            S = S + S.mT
            r = S.sum(-1)
            logits = logits + w * (S - r[:, :, None] * r[:, None, :] / r.sum(-1)[:, None, None])
        if not layer.last:
            hidden = hidden + layer.output(
                (P @ heads_of(layer.value(normed)).transpose(1, 2)).transpose(1, 2).flatten(2)
            )
            hidden = hidden + layer.feed_forward(hidden)
    return logits[:, 1:-1, 1:-1].masked_fill(~both[:, 1:-1, 1:-1], 0)


def run(
    decoder: ContactDecoder,
    lengths: list[int],
    evidence: Evidence,
    positions: Tensor | None = None,
    attention: Attention = contact_attention,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    tokens = make_tokens(lengths)
    mask = tokens != 1
    layout = TokenLayout.of(tokens, mask)
    generator = torch.Generator().manual_seed(5)
    states = torch.randn(*tokens.shape, E, generator=generator, dtype=torch.float64)
    positions = torch.arange(tokens.shape[1]).expand(tokens.shape) if positions is None else positions
    logits = decoder(states, positions, evidence, layout, attention)
    inside = layout.residue[:, 1:-1]
    return logits.masked_fill(~(inside[:, :, None] & inside[:, None]), 0), states, positions, mask


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_logits_are_those_of_the_formula_with_all_maps_at_hand(layers: int) -> None:
    decoder, evidence = made_decoder(layers), made_evidence(3, 30)
    logits, states, positions, mask = run(decoder, [30, 21, 17], evidence)
    expected = written_out(decoder, states, positions, evidence, mask)
    assert float(expected.detach().std()) > 0.05
    torch.testing.assert_close(
        logits, expected, atol=1e-4 * float(expected.detach().abs().max()), rtol=0
    )  # angles are float32
    plain, *_ = run(decoder, [30, 21, 17], evidence, attention=contact_attention_plain)
    torch.testing.assert_close(logits, plain, atol=1e-9, rtol=1e-9)


def test_it_is_silent_at_first_and_its_first_weights_follow_from_the_seed() -> None:
    decoder, same, other = (ContactDecoder(E, 2, 32, seed) for seed in (0, 0, 1))
    logits, *_ = run(decoder.double(), [20, 15], made_evidence(2, 20))
    assert not logits.any()
    assert torch.equal(decoder.enter.weight.float(), same.enter.weight)
    assert not torch.equal(same.enter.weight, other.enter.weight)


def test_a_constant_offset_changes_nothing_and_a_jump_does() -> None:
    decoder, evidence = made_decoder(), made_evidence(2, 24)
    positions = torch.arange(26).expand(2, 26)
    start, *_ = run(decoder, [24, 24], evidence, positions)
    offset, *_ = run(decoder, [24, 24], evidence, positions + 300)
    jump, *_ = run(decoder, [24, 24], evidence, positions + 40 * (positions > 12))
    torch.testing.assert_close(offset, start, atol=2e-3, rtol=0)
    assert float((jump - start).detach().abs().max()) > 0.05


def test_segments_matter_and_padding_does_not() -> None:
    decoder, evidence = made_decoder(), made_evidence(3, 24)
    whole, *_ = run(decoder, [24, 24, 24], evidence)
    fewer = evidence._replace(least=torch.where(torch.arange(16) == 3, 99, evidence.least))
    changed = (run(decoder, [24, 24, 24], fewer)[0] - whole).abs().amax((1, 2))
    assert changed[0] > 1e-3 and changed[1] > 1e-3 and changed[2] == 0
    padded = Evidence.none(3, 24, E, 3, 32)
    for part, given in zip(padded, evidence, strict=True):
        part[tuple(slice(0, n) for n in given.shape)] = given
    torch.testing.assert_close(run(decoder, [24, 24, 24], padded)[0], whole, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("with_hits", [True, False])
def test_every_weight_gets_a_gradient(with_hits: bool) -> None:
    decoder, template = made_decoder(), TemplateBias()
    evidence = made_evidence(2, 24) if with_hits else Evidence.none(2, 24, E)
    logits, *_ = run(decoder, [24, 20], evidence)
    (logits.square().sum() + template(evidence).sum()).backward()
    reached = {name for name, p in decoder.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert all(p.grad is not None for p in (*decoder.parameters(), *template.parameters()))
    if with_hits:
        assert reached == {name for name, _ in decoder.named_parameters()}
        assert template.weight.grad is not None and bool((template.weight.grad != 0).any(0).all())


@pytest.mark.parametrize("options", [{"layers": 0}, {"width": 40}, {"width": 0}])
def test_a_decoder_that_makes_no_sense_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(ModelError, match="multiple of 16"):
        ContactDecoder(E, **options)


def test_template_bias_pair_by_pair() -> None:
    evidence, template = made_evidence(2, 14), TemplateBias()
    with torch.no_grad():
        template.weight.normal_(generator=torch.Generator().manual_seed(2))
    bias = template(evidence).detach()
    torch.testing.assert_close(bias, bias.mT)
    assert not bias[1].any()
    for i in range(14):
        for j in range(14):
            shares, weights = [], []
            for k in range(3):
                distance = float((evidence.cb[0, k, i] - evidence.cb[0, k, j]).norm())
                if math.isnan(distance):
                    continue
                identity = float(evidence.similarity[0, k, 0])
                row = template.weight[(identity >= 0.3) + (identity >= 0.5)].tolist()
                s, t = (int(evidence.segment_of[0, k, at]) for at in (i, j))
                touch = s >= 0 and t >= 0 and bool(evidence.touching[0, s, t])
                strands = touch and bool(evidence.strand[0, s] & evidence.strand[0, t])
                told = [1, 1 / (1 + math.exp(distance - 8)), touch, strands]
                shares.append(identity * sum(w * f for w, f in zip(row, told, strict=True)))
                weights.append(identity)
            expected = SCALE * sum(shares) / sum(weights) if weights else 0.0
            assert float(bias[0, i, j]) == pytest.approx(expected, abs=1e-4)


def test_long_chains_are_told_again_in_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    evidence, gradients = made_evidence(2, 20), []
    weights = torch.randn(2, 20, 20, generator=torch.Generator().manual_seed(0))
    for limit in (512, 10):
        monkeypatch.setattr("contactlm.model.evidence._RECOMPUTE_FROM", limit)
        template = TemplateBias()
        F.mse_loss(template(evidence), weights).backward()
        gradients.append(template.weight.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("most", [1 << 30, 3 * 4 * 24 * 5, 1])
def test_samples_of_a_batch_do_not_meet(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All at once, or some rows of all at a time: what each one gives alone."""
    evidence, template = made_evidence(4, 24), TemplateBias()
    with torch.no_grad():
        template.weight.normal_(generator=torch.Generator().manual_seed(2))
    alone = torch.cat([template(Evidence(*(part[b : b + 1] for part in evidence))) for b in range(4)])
    monkeypatch.setattr("contactlm.model.evidence._MOST_IN_CACHES", most)
    together = template(evidence)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    weights = torch.randn(4, 24, 24, generator=torch.Generator().manual_seed(0))
    gradients = [torch.autograd.grad((each * weights).sum(), template.weight)[0] for each in (alone, together)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
