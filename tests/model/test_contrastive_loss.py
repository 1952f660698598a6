"""The contrastive objective against explicit loops, closed forms and the invariants of what is drawn."""

import math

import pytest
import torch
from torch import Tensor

from contactlm.model.losses import (
    Partners,
    contrastive_loss,
    cosine_logits,
    cosine_similarities,
    draw_partners,
)


def made_labels(seed: int, lengths: list[int], contact: float = 0.1) -> Tensor:
    """Symmetric labels (B, L, L) with unresolved residues, and padding behind each protein's length."""
    generator = torch.Generator().manual_seed(seed)
    L = max(lengths)
    labels = torch.full((len(lengths), L, L), -1, dtype=torch.int8)
    for own, n in zip(labels, lengths, strict=True):
        touching = torch.rand(n, n, generator=generator).triu(1) > 1 - contact
        own[:n, :n] = (touching | touching.mT).to(torch.int8)
        unresolved = torch.rand(n, generator=generator) < 0.1
        own[:n][unresolved] = -1
        own[:, :n][:, unresolved] = -1
    labels.diagonal(dim1=-2, dim2=-1).fill_(-1)
    return labels


def loop_loss(cosine: Tensor, positives: Partners, negatives: Partners, temperature: float) -> float:
    """Residue by residue, in Python floats."""
    proteins = []
    for b in range(len(cosine)):
        anchors = []
        for i in range(cosine.shape[1]):
            near = [float(cosine[b, i, j]) for j in positives.index[b, i][positives.drawn[b, i]]]
            far = [float(cosine[b, i, k]) for k in negatives.index[b, i][negatives.drawn[b, i]]]
            if not near or not far:
                continue
            terms = []
            for one in near:
                top = math.exp(one / temperature)
                terms.append(-math.log(top / (top + sum(math.exp(other / temperature) for other in far))))
            anchors.append(sum(terms) / len(terms))
        if anchors:
            proteins.append(sum(anchors) / len(anchors))
    return sum(proteins) / len(proteins)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("temperature", "min_separation"), [(0.1, 6), (1.0, 1)])
def test_loss_is_that_of_a_loop_over_residues(seed: int, temperature: float, min_separation: int) -> None:
    labels = made_labels(seed, [24, 17, 9])
    labels[2, labels[2] == 1] = 0  # a protein without a contact has no anchor
    states = torch.randn(3, 24, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    cosine = cosine_similarities(states, torch.ones(3, 24, dtype=torch.bool))
    drawn = draw_partners(labels, positives=2, negatives=5, min_separation=min_separation)
    loss = contrastive_loss(cosine, *drawn, temperature)
    assert float(loss) == pytest.approx(loop_loss(cosine, *drawn, temperature), rel=1e-12)


@pytest.mark.parametrize("seed", range(30))
def test_partners_are_what_they_are_called(seed: int) -> None:
    torch.manual_seed(seed)
    lengths = [31, 20, 5]
    labels = made_labels(seed, lengths)
    labels[0, 3, labels[0, 3] == 0] = 1  # a residue that touches all it is known to: no negative
    positives, negatives = draw_partners(labels, positives=3, negatives=8, min_separation=6)
    residue = torch.arange(31)
    far = (residue[:, None] - residue).abs() >= 6
    for partners, label, most in ((positives, 1, 3), (negatives, 0, 8)):
        index = partners.index
        assert (labels.gather(-1, index)[partners.drawn] == label).all()
        assert far.expand(3, 31, 31).gather(-1, index)[partners.drawn].all()
        for b, n in enumerate(lengths):
            assert not partners.drawn[b, n:].any()  # padding is no anchor
            assert (index[b][partners.drawn[b]] < n).all()  # and nobody's partner
        known = (labels >= 0).any(-1)
        assert not partners.drawn[~known].any()  # an unresolved residue is no anchor
        available = ((labels == label) & far).sum(-1)
        assert torch.equal(partners.drawn.sum(-1), available.clamp(max=most))
        for own, drawn in zip(index.flatten(0, 1), partners.drawn.flatten(0, 1), strict=True):
            assert len(set(own[drawn].tolist())) == int(drawn.sum())  # without repetition


def test_every_candidate_is_drawn_equally_often() -> None:
    labels = torch.zeros(4000, 12, 12, dtype=torch.int8)
    labels[:, 0, 8:] = labels[:, 8:, 0] = 1
    labels.diagonal(dim1=-2, dim2=-1).fill_(-1)
    torch.manual_seed(0)
    positives, negatives = draw_partners(labels, positives=2, negatives=3)
    for partners, candidates, n in ((positives, range(8, 12), 2), (negatives, range(1, 8), 3)):
        counts = partners.index[:, 0].flatten().bincount(minlength=12)
        expected = 4000 * n / len(candidates)
        assert set(counts.nonzero().flatten().tolist()) == set(candidates)
        assert (counts[list(candidates)] - expected).abs().max() < 5 * math.sqrt(expected)


def test_draws_follow_the_global_generator_and_nothing_else() -> None:
    labels = made_labels(0, [40])
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = draw_partners(labels, 2, 4)
    second = draw_partners(labels, 2, 4)
    assert not torch.equal(first[1].index, second[1].index)
    torch.set_rng_state(state)
    again = draw_partners(labels, 2, 4)
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.index, other.index) and torch.equal(one.drawn, other.drawn)


def two_clusters(L: int) -> Tensor:
    """Labels of a protein in which residues touch those of their own half, and no others."""
    half = torch.arange(L) < L // 2
    labels = (half[:, None] == half).to(torch.int8)[None].clone()
    labels.diagonal(dim1=-2, dim2=-1).fill_(-1)
    return labels


def test_planted_embeddings_have_no_loss_and_equal_ones_that_of_guessing() -> None:
    labels = two_clusters(24)
    drawn = draw_partners(labels, positives=3, negatives=9)
    resolved = torch.ones(1, 24, dtype=torch.bool)
    planted = torch.eye(2)[(torch.arange(24) >= 12).long()][None]
    assert float(contrastive_loss(cosine_similarities(planted, resolved), *drawn, 0.05)) < 1e-6
    same = cosine_similarities(torch.ones(1, 24, 4), resolved)
    assert float(contrastive_loss(same, *drawn, 0.05)) == pytest.approx(math.log(1 + 9), rel=1e-5)
    # high-dimensional random directions are nearly orthogonal: all similarities nearly 0
    random = torch.randn(1, 24, 100_000, generator=torch.Generator().manual_seed(0))
    guess = float(contrastive_loss(cosine_similarities(random, resolved), *drawn, 1.0))
    assert guess == pytest.approx(math.log(1 + 9), abs=0.01)


@pytest.mark.parametrize("value", [-1, 0, 1])
def test_without_an_anchor_the_loss_is_zero_and_so_are_its_gradients(value: int) -> None:
    labels = torch.full((2, 10, 10), value, dtype=torch.int8)
    labels.diagonal(dim1=-2, dim2=-1).fill_(-1)
    states = torch.randn(2, 10, 4, requires_grad=True)
    cosine = cosine_similarities(states, torch.ones(2, 10, dtype=torch.bool))
    loss = contrastive_loss(cosine, *draw_partners(labels, 2, 3), 0.1)
    loss.backward()
    assert loss.item() == 0 and states.grad is not None and torch.equal(states.grad, torch.zeros_like(states))


def test_gradients_are_exact_and_finite_with_few_partners() -> None:
    labels = made_labels(3, [12, 7], contact=0.2)
    drawn = draw_partners(labels, positives=50, negatives=50)
    assert not drawn[0].drawn.all() and not drawn[1].drawn.all()
    states = torch.randn(2, 12, 5, dtype=torch.float64, requires_grad=True)
    residue = torch.ones(2, 12, dtype=torch.bool)
    assert torch.autograd.gradcheck(lambda x: contrastive_loss(cosine_similarities(x, residue), *drawn, 0.3), (states,))


def test_similarities_are_those_of_pytorch_and_symmetric_to_the_last_bit() -> None:
    states = torch.randn(2, 50, 33, generator=torch.Generator().manual_seed(0))
    residue = torch.ones(2, 50, dtype=torch.bool)
    residue[1, 40:] = False
    cosine = cosine_similarities(states, residue)
    stock = torch.nn.functional.cosine_similarity(states[:, :, None], states[:, None], dim=-1)
    torch.testing.assert_close(cosine[0], stock[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(cosine[1, :40, :40], stock[1, :40, :40], atol=1e-6, rtol=0)
    assert torch.equal(cosine, cosine.mT)
    assert not cosine[1, 40:].any() and not cosine[1, :, 40:].any()


def test_the_sigmoid_of_the_logits_is_the_rescaled_similarity() -> None:
    cosine = torch.cat([torch.linspace(-1, 1, 20_001), torch.tensor([-1.0000002, 1.0000002, 0.0, 0.9999999])])
    logits = cosine_logits(cosine)
    assert logits.dtype == torch.float32 and logits.isfinite().all() and float(logits.abs().max()) < 14.6
    expected = (1 + cosine.double().clamp(-1, 1)) / 2
    assert float((torch.sigmoid(logits).double() - expected).abs().max()) < 1e-6
