"""Passes of a small random ESM2, by the attention maps of transformers and by the package's backbone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import EsmConfig, EsmModel

from contactlm.alphabet import CLS, EOS, LETTERS, PAD, encode
from contactlm.maps.full_map import LogitsFn, full_maps
from contactlm.maps.windows import WindowOptions, plan_passes
from contactlm.model.backbone import ContactBackbone
from tests.maps.made import full_map


class StockContacts:
    """Contact logits of a small random ESM2 from the attention maps of transformers.

    The head is the regression of the ESM paper over symmetrised, average-product corrected maps, with rows and
    columns of special and unattended tokens taken as 0.
    """

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        config = EsmConfig(
            vocab_size=33,
            hidden_size=40,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            position_embedding_type="rotary",
            token_dropout=True,
            mask_token_id=32,
            pad_token_id=PAD,
            attn_implementation="eager",
            emb_layer_norm_before=False,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self.model = EsmModel(config, add_pooling_layer=False).eval()
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if "query" in name or "key" in name:
                    parameter.mul_(12)  # attention far from uniform, so that positions matter
            self.model.contact_head.regression.weight.mul_(30)

    def __call__(self, tokens: Tensor, attention_mask: Tensor, positions: Tensor | None) -> Tensor:
        output = self.model(tokens, attention_mask=attention_mask, position_ids=positions, output_attentions=True)
        maps = torch.cat(output.attentions, dim=1)  # (B, C, T, T)
        residue = (attention_mask.bool() & (tokens != CLS) & (tokens != EOS)).to(maps)
        maps = (maps * residue[:, None, :, None] * residue[:, None, None, :])[..., 1:-1, 1:-1]
        maps = maps + maps.mT
        margins = maps.sum(-1)
        maps = maps - margins[..., :, None] * margins[..., None, :] / margins.sum(-1)[..., None, None]
        head = self.model.contact_head.regression
        return torch.einsum("bcij,c->bij", maps, head.weight[0]) + head.bias


def random_chain(length: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.from_numpy(encode("".join(LETTERS[k] for k in torch.randint(20, (length,), generator=draw))))


def with_ends(residues: Tensor) -> Tensor:
    return torch.cat([torch.tensor([CLS]), residues.long(), torch.tensor([EOS])])[None]


@pytest.fixture(scope="module")
def stock() -> StockContacts:
    return StockContacts()


@pytest.fixture(params=["stock", "backbone"])
def model(request: pytest.FixtureRequest, stock: StockContacts) -> LogitsFn:
    return stock if request.param == "stock" else ContactBackbone(stock.model)


@torch.no_grad()
def test_two_segments_equal_a_full_pass_that_hides_what_is_between(model: LogitsFn) -> None:
    L, a, b = 90, slice(10, 30), slice(55, 80)
    chain = random_chain(L, seed=1)
    residues = torch.cat([torch.arange(L)[a], torch.arange(L)[b]])
    # The full pass: <cls> right before the first segment and <eos> right after the last, all else unattended.
    full = chain.long()[a.start : b.stop]
    mask = torch.zeros(len(full) + 2, dtype=torch.int64)
    mask[[0, -1]] = 1
    mask[residues - a.start + 1] = 1
    hidden = model(with_ends(full), mask[None], None)[0]
    expected = hidden[residues - a.start][:, residues - a.start]

    positions = torch.cat([torch.tensor([0]), residues - a.start + 1, torch.tensor([b.stop - a.start + 1])])
    short = with_ends(chain[residues])
    got = model(short, torch.ones_like(short), positions[None])[0]
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5)
    # The test would notice: without positions the same pass is another one.
    assert (model(short, torch.ones_like(short), None)[0] - expected).abs().max() > 1e-2


@torch.no_grad()
def test_the_planned_two_segment_pass_is_that_hidden_full_pass(model: LogitsFn) -> None:
    options = WindowOptions(window=20)
    chain = random_chain(21, seed=2)
    (a, b) = plan_passes(21, options)[2].segments
    mask = torch.ones(1, 23, dtype=torch.int64)
    mask[0, 1 + a[1] : 1 + b[0]] = 0
    logits = model(with_ends(chain), mask, None)[0]
    # Residues 0 and 20 meet in the two-segment pass only.
    assert full_map(model, chain, options).probability[0, 20] == pytest.approx(float(logits[0, 20].sigmoid()), abs=1e-5)


@torch.no_grad()
def test_a_constant_offset_of_all_positions_changes_nothing(model: LogitsFn) -> None:
    tokens = with_ends(random_chain(40, seed=3))
    positions = torch.arange(42)[None].clone()
    positions[:, 20:] += 100
    mask = torch.ones_like(tokens)
    expected = model(tokens, mask, positions)
    for offset in (1, 17, 1000):
        torch.testing.assert_close(model(tokens, mask, positions + offset), expected, rtol=0, atol=1e-4)
    assert (model(tokens, mask, None) - expected).abs().max() > 1e-2


def test_one_pass_equals_the_model_and_stock_predictions(model: LogitsFn, stock: StockContacts) -> None:
    chain = random_chain(60, seed=4)
    got = full_map(model, chain, WindowOptions(window=60)).probability
    tokens = with_ends(chain)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    with torch.no_grad():
        torch.testing.assert_close(got, model(tokens, mask, None)[0].sigmoid(), rtol=0, atol=1e-6)
        torch.testing.assert_close(got, stock.model.predict_contacts(tokens, mask.long())[0], rtol=0, atol=1e-5)


def test_company_in_a_batch_moves_a_map_by_rounding_only(model: LogitsFn) -> None:
    chains = [random_chain(n, seed=n) for n in (1, 2, 19, 20, 21, 33, 18)]
    alone = [full_map(model, chain, WindowOptions(window=20, max_cost=1)).probability for chain in chains]
    for max_cost in (22**2 * 3, 10**6):
        together = full_maps(model, chains, WindowOptions(window=20, max_cost=max_cost))
        for got, expected in zip(together, alone, strict=True):
            torch.testing.assert_close(got.probability, expected, rtol=0, atol=1e-5)
