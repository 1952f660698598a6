from pathlib import Path

import pytest
import torch
from transformers import EsmModel

from contactlm.alphabet import CLS, EOS, PAD
from contactlm.model.backbone import ContactBackbone, load_esm
from contactlm.model.interface import ContactShares
from contactlm.types import ModelError


def batch(seed: int = 0) -> torch.Tensor:
    tokens = torch.randint(4, 24, (2, 30), generator=torch.Generator().manual_seed(seed))
    tokens[:, 0] = CLS
    tokens[0, -1] = EOS
    tokens[1, 20], tokens[1, 21:] = EOS, PAD
    return tokens


def stock(directory: Path, implementation: str) -> EsmModel:
    return EsmModel.from_pretrained(directory, add_pooling_layer=False, attn_implementation=implementation)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_stock_model_hands_over_contacts_and_keeps_its_output(tiny_esm: Path, checkpointing: bool) -> None:
    tokens = batch()
    esm = stock(tiny_esm, "eager")
    shares = ContactShares(esm, tokens)
    expected_hidden = esm(tokens, attention_mask=shares.mask).last_hidden_state
    esm.set_attn_implementation("contactlm")
    if checkpointing:
        esm.train()
        esm.gradient_checkpointing_enable({"use_reentrant": False})
    hidden = esm(tokens, attention_mask=shares.mask, contact_shares=shares).last_hidden_state
    kept = shares.mask.unsqueeze(-1)
    torch.testing.assert_close(hidden * kept, expected_hidden * kept, atol=1e-5, rtol=1e-4)

    backbone = ContactBackbone(load_esm(str(tiny_esm)))
    expected = backbone(tokens)
    torch.testing.assert_close(shares.logits(), expected, atol=1e-5, rtol=1e-4)
    shares.logits().square().sum().backward()
    expected.square().sum().backward()
    for name in ("query", "key"):
        ours = getattr(esm.encoder.layer[0].attention.self, name).weight.grad
        theirs = getattr(backbone.esm.encoder.layer[0].attention.self, name).weight.grad
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_without_a_collector_it_is_ordinary_attention(tiny_esm: Path) -> None:
    tokens = batch(1)
    mask = tokens != PAD
    kept = mask.unsqueeze(-1)
    expected = stock(tiny_esm, "eager")(tokens, attention_mask=mask).last_hidden_state
    esm = stock(tiny_esm, "sdpa")
    esm.set_attn_implementation("contactlm")
    given = esm(tokens, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(given * kept, expected * kept, atol=1e-5, rtol=1e-4)


def test_a_model_that_was_not_asked_is_an_error(tiny_esm: Path) -> None:
    esm, tokens = stock(tiny_esm, "sdpa"), batch()
    shares = ContactShares(esm, tokens)
    esm(tokens, attention_mask=shares.mask)
    with pytest.raises(ModelError, match="0 of 2 layers"):
        shares.logits()


def test_logits_are_symmetric_to_the_last_bit(tiny_esm: Path) -> None:
    logits = ContactBackbone(load_esm(str(tiny_esm)))(batch(2))
    assert torch.equal(logits, logits.mT)
