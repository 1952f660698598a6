"""LoRA adapters: what trains, and that PEFT alone reads what was saved."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import PeftModel

from contactlm.model.backbone import ContactBackbone
from contactlm.model.lora import LoraOptions, add_lora, contact_regression
from contactlm.types import ModelError

from .made import make_tokens, stock_logits, tiny_esm


def test_adapter_round_trip_onto_a_stock_model(tmp_path):
    esm = tiny_esm()
    stock, tokens = copy.deepcopy(esm), make_tokens([15, 8])
    untrained = stock_logits(stock, tokens)[0]
    adapted = add_lora(esm, LoraOptions(r=4, alpha=6.5))
    model = ContactBackbone(esm).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        model(tokens).square().mean().backward()
        optimizer.step()
    adapted.save_pretrained(tmp_path)
    ours = model.eval()(tokens).detach()

    stock.set_attn_implementation("eager")
    theirs = PeftModel.from_pretrained(stock, tmp_path).eval()
    with torch.no_grad():
        probability = theirs.predict_contacts(tokens, (tokens != 1).long())
    assert (ours[0] - untrained).abs().max() > 1e-2
    for sample, n in enumerate([15, 8]):
        torch.testing.assert_close(ours[sample, :n, :n].sigmoid(), probability[sample, :n, :n], rtol=0, atol=1e-5)
    torch.testing.assert_close(ContactBackbone(stock)(tokens).detach(), ours, rtol=0, atol=1e-5)


def test_lora_and_head_train_and_nothing_else():
    esm = tiny_esm()
    add_lora(esm, LoraOptions())
    names = {name for name, p in esm.named_parameters() if p.requires_grad}
    assert all("lora_" in name or "contact_head.modules_to_save" in name for name in names)
    assert sum("lora_A" in name for name in names) == 3 * 2
    assert any("contact_head" in name for name in names)


def test_the_trained_head_is_read():
    esm, tokens = tiny_esm(), make_tokens([9])
    original = esm.contact_head.regression
    adapted = add_lora(esm, LoraOptions(dropout=0.0))
    copied = contact_regression(esm)
    assert copied is not original
    with torch.no_grad():
        copied.bias.add_(2)
    model = ContactBackbone(esm)
    with adapted.disable_adapter():
        assert contact_regression(esm) is original
        plain = model(tokens)
    torch.testing.assert_close(model(tokens), plain + 2, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (LoraOptions(r=0), "r=0"),
        (LoraOptions(dropout=1.0), "dropout=1.0"),
        (LoraOptions(target_modules=("query", "q_proj")), r"\['q_proj'\] not in the backbone; it has \['dense'"),
        (LoraOptions(target_modules=()), "none given"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ModelError, match=message):
        add_lora(tiny_esm(), options)
