"""Every family against the stock model of transformers, with its attention maps stored."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.esm import modeling_esm

from contactlm.model.backbone import ContactBackbone
from contactlm.model.encoder import ResidueEncoder
from contactlm.model.lora import LoraOptions, add_lora

from .families import (
    ARCHITECTURES,
    FAMILIES,
    exact_rotary,
    family_tokens,
    small_model,
    stock_contacts,
    stock_model,
)

LENGTHS = [17, 31, 2, 9]
EVERY = pytest.mark.parametrize("name", ARCHITECTURES)


@pytest.fixture(autouse=True)
def _exact(monkeypatch):
    monkeypatch.setattr(modeling_esm, "apply_rotary_pos_emb", exact_rotary)


def test_every_family_is_tested():
    assert set(FAMILIES) == set(ARCHITECTURES)


@EVERY
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
@pytest.mark.parametrize("attention", ["streamed", "plain"])
def test_logits_are_those_of_stored_maps(name, dtype, atol, attention):
    model, tokens = small_model(name).to(dtype), family_tokens(name, LENGTHS)
    stock = stock_model(model, name)
    assert ContactBackbone(model, attention).family is FAMILIES[name]
    with torch.no_grad():
        logits = ContactBackbone(model, attention)(tokens)
        expected = stock_contacts(model, stock, tokens, name)
    assert logits.dtype == dtype and torch.equal(logits, logits.mT)
    torch.testing.assert_close(logits, expected, rtol=0, atol=atol)
    assert expected[1].std() > 0.05


@EVERY
def test_heads_that_nobody_reads_are_not_looked_at(name):
    model, tokens = small_model(name).double(), family_tokens(name, LENGTHS)
    with torch.no_grad():
        model.contact_head.regression.weight[:, [0, 1, 3, 5, 6, 7, 8, 9, 12]] = 0
        expected = stock_contacts(model, stock_model(model, name), tokens, name)
        torch.testing.assert_close(ContactBackbone(model)(tokens), expected, rtol=0, atol=1e-10)


@EVERY
def test_half_precision_moves_logits_little(name):
    model, tokens = small_model(name), family_tokens(name, LENGTHS)
    backbone = ContactBackbone(model).train()
    exact = backbone(tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = backbone(tokens)
        rounded.sum().backward()
    assert rounded.dtype == torch.float32
    assert (rounded - exact).std() < 0.2 * exact.std()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@EVERY
def test_batches_equal_single_sequences(name):
    model, tokens = ContactBackbone(small_model(name).double()), family_tokens(name, LENGTHS)
    logits = model(tokens)
    for sample, n in enumerate(LENGTHS):
        alone = model(tokens[sample : sample + 1, : n + 2])[0]
        torch.testing.assert_close(logits[sample, :n, :n], alone, rtol=0, atol=1e-10)


def gradients(model, name, dtype, stock=False):
    """Of a weighted sum of contact logits, by parameter: the stock model's, or what of ours learns."""
    model, tokens = copy.deepcopy(model).to(dtype), family_tokens(name, [13, 7])
    wish = torch.randn(2, 13, 13, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)
    if not stock:
        (ContactBackbone(model).train()(tokens) * wish).sum().backward()
        learning = {key: p.grad for key, p in model.named_parameters() if p.requires_grad}
        assert len(learning) > 30 and all(gradient is not None for gradient in learning.values())
        return learning
    theirs = stock_model(model, name)
    (stock_contacts(model, theirs, tokens, name) * wish).sum().backward()
    head = {key: p.grad for key, p in model.named_parameters() if "contact_head" in key}
    return {key: p.grad for key, p in theirs.named_parameters()} | head


@EVERY
def test_all_gradients_are_those_of_stored_maps(name):
    model = small_model(name)
    found, expected = gradients(model, name, torch.float64), gradients(model, name, torch.float64, stock=True)
    for key, gradient in found.items():
        scale = max(1.0, float(expected[key].abs().max()))
        torch.testing.assert_close(gradient / scale, expected[key] / scale, rtol=0, atol=1e-10)
    for key in expected.keys() - found.keys():  # feeds no attention map
        assert expected[key] is None or not expected[key].any(), key


@EVERY
@pytest.mark.parametrize("seed", range(2))
def test_gradients_in_float32_are_as_near_to_exact_ones_as_the_stock_models(name, seed):
    """To 1e-5 of their length, all together; each parameter's too, or to within twice what the stock class is off."""
    model = small_model(name, seed)
    exact = gradients(model, name, torch.float64)
    ours, theirs = (gradients(model, name, torch.float32, stock) for stock in (False, True))

    def error(found, keys):
        off = torch.stack([(found[key].double() - exact[key]).norm() for key in keys]).norm()
        return float(off / torch.stack([exact[key].norm() for key in keys]).norm())

    assert error(ours, exact) < 1e-5
    for key, gradient in exact.items():
        if gradient.norm() > 1e-9:  # a key's bias moves no attention
            assert error(ours, [key]) < max(1e-5, 2 * error(theirs, [key])), key


@EVERY
def test_adapters_are_on_queries_and_keys_and_their_gradients_are_exact(name):
    ours, tokens = small_model(name).double(), family_tokens(name, [13, 7])
    add_lora(ours, LoraOptions(r=3, dropout=0.0))
    generator = torch.Generator().manual_seed(4)
    for key, parameter in ours.named_parameters():
        if "lora_" in key:
            parameter.data.normal_(0, 0.2, generator=generator)
    streamed, plain = ContactBackbone(ours), ContactBackbone(copy.deepcopy(ours), "plain")
    merged = copy.deepcopy(ours)
    for module in merged.modules():
        if hasattr(module, "merge") and hasattr(module, "lora_A"):
            module.merge()
    weights = {key.replace("base_layer.", ""): value for key, value in merged.state_dict().items()}
    bare = small_model(name).double()
    bare.load_state_dict({key: value for key, value in weights.items() if key in bare.state_dict()}, strict=False)
    expected = stock_contacts(bare, stock_model(bare, name), tokens, name)
    torch.testing.assert_close(streamed(tokens), expected, rtol=0, atol=1e-10)
    wish = torch.randn(2, 13, 13, generator=generator, dtype=torch.float64)
    for backbone in (streamed, plain):
        (backbone(tokens) * wish).sum().backward()
    trained = {key: p for key, p in streamed.named_parameters() if p.requires_grad}
    adapted = {key.rsplit(".lora_", 1)[0].rsplit(".", 1)[-1] for key in trained if "lora_" in key}
    assert adapted == set(FAMILIES[name].lora_targets)
    for key, parameter in plain.named_parameters():
        if key in trained:
            assert parameter.grad.abs().max() > 0, key
            torch.testing.assert_close(trained[key].grad, parameter.grad, rtol=1e-9, atol=1e-9)


@EVERY
def test_the_stock_forward_is_untouched(name):
    model, tokens = small_model(name).double(), family_tokens(name, LENGTHS)
    known = FAMILIES[name].tokens
    mask = tokens != known.pad
    expected = stock_model(model, name)(tokens, attention_mask=mask.long()).last_hidden_state
    ContactBackbone(model, whole=True)
    with torch.no_grad():
        after = model(tokens, attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(after[mask], expected[mask], rtol=0, atol=1e-10)


@EVERY
def test_residue_states_are_the_stock_models(name):
    model, tokens = small_model(name).double(), family_tokens(name, LENGTHS)
    mask = tokens != FAMILIES[name].tokens.pad
    with torch.no_grad():
        expected = stock_model(model, name)(tokens, attention_mask=mask.long()).last_hidden_state[:, 1:-1]
        states, residue = ResidueEncoder(model)(tokens)
    torch.testing.assert_close(states[residue], expected[residue], rtol=0, atol=1e-10)


@EVERY
def test_flops_are_those_of_the_closed_formula(name):
    T, E, inner, H, layers = 23, 40, 80, 5, 3
    backbone, tokens = ContactBackbone(small_model(name)), family_tokens(name, [T - 2])
    with FlopCounterMode(display=False) as counter:
        backbone(tokens)
    gated = 3 if name == "ESM C" else 2
    whole = 2 * T * (4 * E * E + gated * E * inner) + 2 * H * T * T * (2 * E // H + 2)
    last = 2 * T * 2 * E * E + 2 * H * T * T * (E // H + 2)
    assert counter.get_total_flops() == (layers - 1) * whole + last + 2 * H * layers * (T - 2) ** 2


@EVERY
def test_positions_are_handed_on(name):
    model, tokens = small_model(name).double(), family_tokens(name, [21])
    positions = torch.arange(23).unsqueeze(0)
    positions[:, 11:] += 25
    offset = 2 if "ESM-1" in name else 0
    with torch.no_grad():
        jumped, plain = (ContactBackbone(model)(tokens, positions=given) for given in (positions, None))
        expected = stock_contacts(model, stock_model(model, name), tokens, name, positions + offset)
    torch.testing.assert_close(jumped, expected, rtol=0, atol=1e-10)
    assert (jumped - plain).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["ESM-1b", "ESM-1v", "ProtBert"])
def test_a_jump_that_learned_positions_do_not_reach_is_shortened(name):
    """A pass of two segments 500 apart is, to the stock model, one whose last token has the last learned position."""
    model, tokens = small_model(name).double(), family_tokens(name, [21])
    positions = torch.arange(23).unsqueeze(0)
    far = torch.where(positions < 11, positions, positions + 500)
    reached = torch.where(positions < 11, positions, positions + 57 - 22)
    with torch.no_grad():
        found = ContactBackbone(model)(tokens, positions=far)
        own = reached + (0 if name == "ProtBert" else 2)
        expected = stock_contacts(model, stock_model(model, name), tokens, name, own)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
