"""What is cheap to make again is not kept: the same gradients, less memory."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from contactlm.model.backbone import ContactBackbone
from contactlm.model.lora import LoraOptions, add_lora
from contactlm.model.remade import CheapDropout, Remade, cheap
from contactlm.model.trunk import checkpoint_layers
from contactlm.modules.memory import StorageMeter

from .families import small_model
from .made import make_tokens, tiny_esm

ENTRY = 4 * 2 * 62 * 40  # bytes of a (B, T, E) of the tests below
WAYS = {
    "queries and keys": LoraOptions(dropout=0.3),
    "no dropout": LoraOptions(dropout=0.0),
    "all linear layers": LoraOptions(dropout=0.3, target_modules=("query", "key", "value", "dense")),
    "all weights": None,
}


def gradients(model, tokens, keep_all=False, precision=None):
    """Return the loss and all gradients, and the bytes that the forward pass left."""
    model.train().zero_grad()
    meter = StorageMeter()
    meter.ignore([*model.parameters(), *model.buffers(), tokens])
    torch.manual_seed(3)
    within = saved_tensors_hooks(lambda x: x, lambda x: x) if keep_all else nullcontext()
    with meter, within, torch.autocast("cpu", precision, enabled=precision is not None):
        loss = model(tokens).square().mean()
    held = meter.now
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)], held


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_gradients_are_the_same_bits_from_less_memory(way, precision):
    esm = tiny_esm()
    if WAYS[way] is not None:
        add_lora(esm, WAYS[way])
    model, tokens = ContactBackbone(esm), make_tokens([60, 41])
    (ours, less), (all_kept, more) = (gradients(model, tokens, keep, precision) for keep in (False, True))
    assert len(ours) > 10
    for one, other in zip(ours, all_kept, strict=True):
        assert torch.equal(one, other)
    saved = 0 if precision else 1.9 * ENTRY  # two layers of three: the first keeps its input instead
    assert less <= more - saved
    assert precision is None or way == "no dropout" or less < more


@pytest.mark.parametrize("family", ["ESM C", "ProtBert", "ESM-1b"])
def test_other_families(family):
    esm = small_model(family)
    add_lora(esm, LoraOptions(dropout=0.3))
    model, tokens = ContactBackbone(esm), esm.config.vocab_size - 1 - torch.randint(0, 9, (2, 50))
    (ours, less), (all_kept, more) = (gradients(model, tokens, keep) for keep in (False, True))
    assert all(torch.equal(one, other) for one, other in zip(ours, all_kept, strict=True)) and less < more


def test_a_layer_holds_its_input_queries_keys_values_and_what_goes_into_the_activation():
    esm = tiny_esm(architecture={**dict.fromkeys(("num_hidden_layers",), 6), "hidden_size": 40,
                                 "num_attention_heads": 5, "intermediate_size": 160})  # fmt: skip
    add_lora(esm, LoraOptions(r=1, dropout=0.3))
    short = copy.deepcopy(esm)
    short.encoder.layer = short.encoder.layer[:2]
    short.contact_head.modules_to_save["default"].regression = torch.nn.Linear(10, 1)
    held = [gradients(ContactBackbone(model), make_tokens([60, 60]))[1] for model in (esm, short)]
    a_layer = (held[0] - held[1]) / 4
    masks, rows = 2 * ENTRY / 4, 2 * 62 * 4
    # input, after attention, q, k, v: 1 each; the activation's input: 4
    assert 9 * ENTRY + masks < a_layer < 9 * ENTRY + masks + (3 * 5 + 2 * 4 + 4 * 4 + 8) * rows


def test_checkpointing_decides_by_itself():
    tokens, held, found = make_tokens([60, 60]), {}, {}
    adapted = tiny_esm()
    add_lora(adapted, LoraOptions(dropout=0.3))
    for name in ("ours", "checkpointed", "outside"):
        esm = copy.deepcopy(adapted)
        if name == "checkpointed":
            checkpoint_layers(esm.encoder.layer)
        model = ContactBackbone(esm)
        if name == "outside":  # as wrappers do, of which a layer knows nothing
            inside = model.forward
            model.forward = lambda given, inside=inside: checkpoint(inside, given, use_reentrant=False)
        found[name], held[name] = gradients(model, tokens)
    assert held["outside"] < held["checkpointed"] < 0.5 * held["ours"]
    for name in ("checkpointed", "outside"):
        torch.testing.assert_close(found["ours"], found[name], rtol=1e-5, atol=1e-7)


def test_layers_below_the_first_adapter_hold_what_the_head_learns_from_and_no_more():
    def of(layers, train_head):
        esm = tiny_esm(architecture={"num_hidden_layers": 6, "hidden_size": 40, "num_attention_heads": 5,
                                     "intermediate_size": 80})  # fmt: skip
        esm.requires_grad_(False)
        for layer in list(esm.encoder.layer)[layers:]:
            layer.attention.self.query.requires_grad_(True)
        esm.contact_head.requires_grad_(train_head)
        return gradients(ContactBackbone(esm), make_tokens([60, 60]))[1]

    assert of(5, False) < of(4, False) - 2 * ENTRY
    assert of(6, True) < 6 * 2.6 * ENTRY + 12 * 60 * 60 * 4  # queries and keys; the loss


def test_dropout_draws_as_the_stock_one():
    x = torch.randn(3, 50, 40)
    for p in (0.0, 0.05, 0.5):
        stock, ours = torch.nn.Dropout(p), CheapDropout(p)
        results = []
        for dropout in (stock, ours):
            torch.manual_seed(1)
            results.append(dropout(x))
        assert torch.equal(*results) and torch.equal(ours.eval()(x), x)


def test_only_what_was_announced_is_replaced():
    x = torch.randn(4, 6, requires_grad=True)
    made = []

    def twice(x):
        made.append(1)
        return 2 * x

    with Remade():
        whole = cheap(twice, x)
        loss = (whole**2).sum() + (whole[:2] ** 3).sum() + (whole.T.exp() * 3).sum()
        del whole
        other = torch.randn(4, 6)  # perhaps where ``whole`` was
        loss = loss + (other * x).sum()
    loss.backward()
    y = 2 * x.detach()
    expected = 4 * y + 2 * 3 * F.pad(y[:2], (0, 0, 0, 2)) ** 2 + 6 * y.exp() + other
    torch.testing.assert_close(x.grad, expected)
    assert len(made) == 2  # at first, and for the square: a part of it is kept as it is
