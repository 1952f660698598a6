"""Every family through the fused kernels, in Triton's interpreter where there is no GPU, against exact numbers."""

from __future__ import annotations

import copy

import pytest
import torch

from contactlm.model.backbone import ContactBackbone

from .families import family_tokens, small_model, stock_contacts, stock_model
from .test_fused import DEVICE

FAST = "ESM-1b"


@pytest.mark.parametrize("name", [FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in ("ESM2", "ESM C"))])
def test_logits_and_gradients_are_those_of_stored_maps(name):
    """Odd heads of width 8, a padded batch; in float32, against the stock model's maps in float64."""
    fused, exact, tokens = small_model(name), small_model(name).double(), family_tokens(name, [19, 6])
    stock = stock_model(copy.deepcopy(exact), name)
    wish = torch.randn(2, 19, 19, generator=torch.Generator().manual_seed(0))
    backbone = ContactBackbone(fused.to(DEVICE), "fused").train()
    logits = backbone(tokens.to(DEVICE))
    (logits * wish.to(DEVICE)).sum().backward()
    with torch.no_grad():
        expected = stock_contacts(exact, stock, tokens, name)
    (ContactBackbone(exact).train()(tokens) * wish).sum().backward()
    torch.testing.assert_close(logits.detach().cpu().double(), expected, rtol=0, atol=1e-5)
    assert expected[0].std() > 0.05
    wanted = {key: p.grad for key, p in exact.named_parameters() if p.requires_grad}
    assert wanted.keys() == {key for key, p in fused.named_parameters() if p.requires_grad} and len(wanted) > 30
    for key, parameter in fused.named_parameters():
        if key in wanted and wanted[key].norm() > 1e-9:
            assert (parameter.grad.cpu() - wanted[key]).norm() < 5e-5 * wanted[key].norm(), key
