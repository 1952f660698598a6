"""The backbone against transformers, fair-esm and itself with stored maps; training, checkpointing, half precision."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from contactlm.model import backbone as backbone_module
from contactlm.model.backbone import ContactBackbone
from contactlm.model.lora import LoraOptions, add_lora
from contactlm.types import ModelError

from .made import TINY, checkpoint_activations, make_tokens, stock_logits, tiny_esm

LENGTHS = [17, 30, 2, 9]


def trained(esm, attention="streamed", lora=True):
    if lora:
        add_lora(esm, LoraOptions(r=4, dropout=0.0))
        generator = torch.Generator().manual_seed(0)
        for name, parameter in esm.named_parameters():
            if "lora_" in name:
                parameter.data.normal_(0, 0.1, generator=generator)
    return ContactBackbone(esm, attention).train()


def gradients(model, tokens):
    model.zero_grad()
    generator = torch.Generator().manual_seed(2)
    logits = model(tokens)
    (logits * torch.randn(logits.shape, generator=generator, dtype=logits.dtype)).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(ours, theirs, atol):
    assert ours.keys() == theirs.keys() and ours
    for name, gradient in ours.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradient, theirs[name], rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("attention", ["streamed", "plain"])
@pytest.mark.parametrize("seed", [0, 1])
def test_logits_are_those_of_transformers(attention, seed):
    esm, tokens = tiny_esm(seed), make_tokens(LENGTHS, seed)
    expected = stock_logits(esm, tokens)
    logits = ContactBackbone(esm, attention)(tokens)
    assert logits.dtype == torch.float32
    assert logits.shape == (4, 30, 30)
    for sample, n in enumerate(LENGTHS):
        torch.testing.assert_close(logits[sample, :n, :n].double(), expected[sample, :n, :n], rtol=0, atol=1e-5)
        assert bool((logits[sample, n:] == 0).all()) and bool((logits[sample, :, n:] == 0).all())
    assert torch.equal(logits, logits.mT)
    assert expected[1, :30, :30].std() > 0.05


def test_logits_are_those_of_fair_esm():
    esm2 = pytest.importorskip("esm.model.esm2")
    ours = tiny_esm()
    theirs = esm2.ESM2(TINY["num_hidden_layers"], TINY["hidden_size"], TINY["num_attention_heads"])
    for layer in theirs.layers:  # fair-esm knows no other width than 4 x hidden: give it ours
        layer.fc1 = torch.nn.Linear(TINY["hidden_size"], TINY["intermediate_size"])
        layer.fc2 = torch.nn.Linear(TINY["intermediate_size"], TINY["hidden_size"])
    weights = {fair_name(name): value for name, value in ours.state_dict().items() if "inv_freq" not in name}
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    assert not unexpected and all("lm_head" in name or "inv_freq" in name for name in missing)
    tokens = make_tokens(LENGTHS)
    with torch.no_grad():
        expected = torch.logit(theirs.double().eval().predict_contacts(tokens))
    logits = ContactBackbone(ours)(tokens)
    for sample, n in enumerate(LENGTHS):
        torch.testing.assert_close(logits[sample, :n, :n].double(), expected[sample, :n, :n], rtol=0, atol=1e-5)


def fair_name(name):
    for old, new in (
        ("embeddings.word_embeddings", "embed_tokens"),
        ("encoder.emb_layer_norm_after", "emb_layer_norm_after"),
        ("encoder.layer", "layers"),
        ("attention.self.query", "self_attn.q_proj"),
        ("attention.self.key", "self_attn.k_proj"),
        ("attention.self.value", "self_attn.v_proj"),
        ("attention.output.dense", "self_attn.out_proj"),
        ("attention.LayerNorm", "self_attn_layer_norm"),
        ("intermediate.dense", "fc1"),
        ("output.dense", "fc2"),
        ("LayerNorm", "final_layer_norm"),
    ):
        name = name.replace(old, new)
    return name


def test_a_padded_batch_equals_its_samples_alone():
    model, tokens = ContactBackbone(tiny_esm()), make_tokens(LENGTHS)
    logits = model(tokens)
    for sample, n in enumerate(LENGTHS):
        torch.testing.assert_close(
            logits[sample, :n, :n], model(tokens[sample : sample + 1, : n + 2])[0], rtol=0, atol=1e-5
        )


def test_positions_are_relative_and_matter():
    model, tokens = ContactBackbone(tiny_esm().double()), make_tokens([20])
    default = model(tokens)
    positions = torch.arange(22).unsqueeze(0)
    torch.testing.assert_close(model(tokens, positions=positions + 700), default, rtol=0, atol=1e-4)
    positions[:, 11:] += 300
    assert (model(tokens, positions=positions) - default).abs().max() > 1e-2


@pytest.mark.parametrize("lora", [True, False])
def test_gradients_streamed_and_plain(lora):
    tokens = make_tokens(LENGTHS)
    streamed, plain = (trained(tiny_esm().double(), kind, lora) for kind in ("streamed", "plain"))
    torch.testing.assert_close(streamed(tokens), plain(tokens), rtol=0, atol=1e-10)
    ours = gradients(streamed, tokens)
    assert_same(ours, gradients(plain, tokens), 1e-9)
    assert ours.keys() == {name for name, p in streamed.named_parameters() if p.requires_grad}


def test_frozen_backbone_and_frozen_head():
    tokens = make_tokens(LENGTHS)
    everything = gradients(trained(tiny_esm().double(), lora=False), tokens)
    for frozen in ("contact_head", "encoder", "embeddings"):
        model = trained(tiny_esm().double(), lora=False)
        for name, parameter in model.named_parameters():
            if frozen in name:
                parameter.requires_grad_(False)
        kept = {name: g for name, g in everything.items() if frozen not in name}
        assert_same(gradients(model, tokens), kept, 1e-10)


def test_training_runs_alike_streamed_and_plain():
    losses = {}
    for kind in ("streamed", "plain"):
        model = trained(tiny_esm(), kind)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        losses[kind] = []
        for step in range(20):
            tokens = make_tokens([14, 9], seed=step % 4)
            labels = (tokens[:, 1:-1, None] == tokens[:, None, 1:-1]).float()
            loss = torch.nn.functional.binary_cross_entropy_with_logits(model(tokens), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[kind].append(loss.item())
    assert losses["streamed"][-1] < 0.9 * losses["streamed"][0]
    assert losses["streamed"] == pytest.approx(losses["plain"], abs=1e-5)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_changes_no_gradient(use_reentrant):
    tokens = make_tokens(LENGTHS)
    model = trained(tiny_esm().double(), lora=False)
    expected = gradients(model, tokens)
    checkpoint_activations(model.esm, use_reentrant)
    calls = []
    model.esm.encoder.layer[0].attention.self.query.register_forward_hook(lambda *_: calls.append(1))
    assert_same(gradients(model, tokens), expected, 1e-12)
    assert len(calls) == 2


def test_bfloat16_autocast_is_finite_and_close():
    tokens = make_tokens(LENGTHS)
    model = trained(tiny_esm(spread=1.0))
    exact = model(tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(tokens)
    assert logits.dtype == torch.float32
    assert (logits - exact).abs().max() < 0.1 * exact.std()
    logits.square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("attention", ["streamed", "plain"])
def test_heads_of_weight_zero_are_skipped(monkeypatch, context, attention):
    esm, tokens = tiny_esm(), make_tokens(LENGTHS)
    with torch.no_grad():
        weight = esm.contact_head.regression.weight.view(3, 5)
        weight[0] = 0
        weight[1, [0, 3]] = 0
        weight[2, 4] = 0
    heads_seen = []
    inner = backbone_module.ATTENTION[attention]

    def counting(query, *rest):
        heads_seen.append(query.shape[1])
        return inner(query, *rest)

    monkeypatch.setitem(backbone_module.ATTENTION, attention, counting)
    model = ContactBackbone(esm, attention)
    with context():
        skipping = model(tokens)
    assert heads_seen == [3, 4]
    torch.testing.assert_close(skipping, model(tokens).detach(), rtol=0, atol=1e-5)
    assert heads_seen == [3, 4, 5, 5, 5]


def test_no_unread_parameter_asks_for_a_gradient():
    esm = tiny_esm()
    add_lora(esm, LoraOptions(target_modules=("query", "key", "value", "dense")))
    model = ContactBackbone(esm).train()
    model(make_tokens([9])).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_dropout_follows_the_training_mode():
    esm, tokens = tiny_esm(), make_tokens([12])
    add_lora(esm, LoraOptions(dropout=0.5))
    for name, parameter in esm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(parameter)
    model = ContactBackbone(esm)
    assert not torch.equal(model.train()(tokens), model(tokens))
    assert torch.equal(model.eval()(tokens), model(tokens))


def test_flop_counter_sees_the_recomputation():
    tokens = make_tokens([62])
    counts = {}
    for kind in ("streamed", "plain"):
        model = trained(tiny_esm(architecture={**TINY, "hidden_size": 320}), kind)
        with FlopCounterMode(display=False) as counter:
            model(tokens).sum().backward()
        counts[kind] = counter.get_total_flops()
    scores = 3 * 2 * 64 * 64 * 320  # one QK^T of every layer
    assert counts["streamed"] - counts["plain"] >= 0.9 * scores


def test_copies_are_independent():
    model = ContactBackbone(tiny_esm())
    twin = copy.deepcopy(model)
    tokens = make_tokens([8])
    before = model(tokens)
    torch.nn.init.zeros_(twin.esm.contact_head.regression.weight)
    assert torch.equal(model(tokens), before)
    assert not torch.equal(twin(tokens), before)


def test_what_cannot_be_used_is_said():
    model = ContactBackbone(tiny_esm())
    with pytest.raises(ModelError, match="at least 3"):
        model(torch.tensor([[0, 2]]))
    with pytest.raises(ModelError, match="attention_mask: shape"):
        model(make_tokens([5]), torch.ones(1, 6))
    with pytest.raises(ModelError, match="positions: shape"):
        model(make_tokens([5]), None, torch.arange(7))
    with pytest.raises(ModelError, match="choose from"):
        ContactBackbone(tiny_esm(), "flash")


def test_dropout_on_attention_maps_is_left_out():
    made = ContactBackbone(tiny_esm(architecture={**TINY, "attention_probs_dropout_prob": 0.1})).train()
    tokens = make_tokens([12])
    assert made.esm.config.attention_probs_dropout_prob == 0 and torch.equal(made(tokens), made(tokens))
