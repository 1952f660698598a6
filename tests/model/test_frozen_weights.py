"""Frozen weights in bfloat16 and quantised: what stays float32, how far results move, what memory is taken."""

from __future__ import annotations

import copy
import importlib.util
import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from contactlm.model import backbone
from contactlm.model.backbone import ContactBackbone, backbone_checksum, load_esm
from contactlm.model.frozen_weights import FrozenLinear, QuantizedLinear, check_frozen, narrow, whole_weights
from contactlm.model.lora import LoraOptions, add_lora
from contactlm.model.losses import contact_loss
from contactlm.types import MissingExtraError, ModelError

from .families import ARCHITECTURES, family_tokens, small_model
from .made import make_tokens, tiny_esm

QUANT = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
WAYS = {
    "bfloat16": ("bfloat16", None),
    "int8": (None, "int8"),
    "nf4": (None, "nf4"),
    "nf4 with bfloat16": ("bfloat16", "nf4"),
}
WAY = [pytest.param(*given, id=name, marks=[QUANT] if given[1] else []) for name, given in WAYS.items()]


def rounded(esm, quantization):
    """The same model in float32 with the weights that the narrow one stands for."""
    twin, narrowed = copy.deepcopy(esm), copy.deepcopy(esm)
    narrow(narrowed, "bfloat16" if quantization is None else None, quantization)
    twin.load_state_dict(whole_weights(narrowed))
    return twin


def adapted(esm, seed=0):
    add_lora(esm, LoraOptions(r=4, dropout=0.0))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in esm.named_parameters():
            if "lora_" in name:
                p.normal_(0, 0.2, generator=generator)
    return esm


def logits_and_gradients(esm, tokens):
    model = ContactBackbone(esm).train()
    logits = model(tokens)
    L = logits.shape[1]
    labels = (torch.rand(len(tokens), L, L, generator=torch.Generator().manual_seed(1)) < 0.1).to(torch.int8)
    contact_loss(logits, labels).backward()
    return logits.detach(), {n: p.grad for n, p in esm.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(("dtype", "quantization"), WAY)
def test_only_the_layers_weights_are_narrow(name, dtype, quantization):
    esm = adapted(small_model(name))
    before = sum(p.numel() * p.element_size() for p in esm.parameters())
    narrow(esm, dtype, quantization)
    kinds = {n: t.dtype for n, t in esm.state_dict().items() if t.is_floating_point() and t.dtype != torch.float32}
    assert set(kinds.values()) <= {torch.bfloat16} and all("layer" in n and n.endswith("weight") for n in kinds)
    assert bool(kinds) == (quantization is None)
    held = [part for part in esm.modules() if isinstance(part, (FrozenLinear, QuantizedLinear))]
    assert len(held) == 3 * 6 + 3 * (name == "ESM C")  # query, key, value, output, feed-forward, whose gate ESM C has
    plain = [n for n, part in esm.named_modules() if type(part) is nn.Linear and "lora_" not in n]
    assert all(n.startswith("contact_head.") for n in plain)
    after = sum(t.numel() * t.element_size() for t in [*esm.parameters(), *esm.buffers()])
    assert after < before
    learning = {n: p.dtype for n, p in esm.named_parameters() if p.requires_grad}
    assert set(learning.values()) == {torch.float32}
    assert all("lora_" in n or "contact_head.modules_to_save" in n for n in learning)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(("dtype", "quantization"), WAY)
def test_logits_and_gradients_are_near_those_of_the_same_weights_in_float32(name, dtype, quantization):
    """Rounding of the weights is one thing, seen in real models; here is all that products add to it."""
    esm, tokens = adapted(small_model(name)), family_tokens(name, [23, 40, 9])
    expected, wanted = logits_and_gradients(rounded(esm, quantization), tokens)
    narrow(esm, dtype, quantization)
    got, gradients = logits_and_gradients(esm, tokens)
    assert got.dtype == torch.float32 and gradients.keys() == wanted.keys()
    error = float((got - expected).std() / expected.std())
    ours, theirs = (torch.cat([g[n].flatten() for n in sorted(g) if "lora_" in n]) for g in (gradients, wanted))
    cosine = float(torch.cosine_similarity(ours, theirs, dim=0))
    assert (error < 0.1 and cosine > 0.98) if dtype else (error < 1e-4 and cosine > 0.9999), (error, cosine)


@pytest.mark.parametrize(("dtype", "quantization"), WAY)
@pytest.mark.parametrize("autocast", [False, True])
def test_float32_is_what_attention_gets_and_mixed_precision_goes_with_it(dtype, quantization, autocast, monkeypatch):
    esm, tokens = adapted(tiny_esm(spread=1.0)), make_tokens([17, 30])
    narrow(esm, dtype, quantization)
    seen = []
    model = ContactBackbone(esm)
    inner = backbone.ATTENTION["auto"]

    def attend(query, key, value, weight, layout):
        seen.append((query.dtype, key.dtype, None if value is None else value.dtype))
        return inner(query, key, value, weight, layout)

    monkeypatch.setitem(backbone.ATTENTION, "auto", attend)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(tokens)
    half = torch.bfloat16 if dtype or autocast else torch.float32
    assert seen == [(torch.float32, torch.float32, half)] * 2 + [(torch.float32, torch.float32, None)]
    assert logits.dtype == torch.float32 and bool(logits.isfinite().all())


@pytest.mark.parametrize(("dtype", "quantization"), WAY)
def test_nothing_is_kept_of_a_frozen_product(dtype, quantization):
    """Neither inputs nor whole weights stay for the backward pass."""
    esm = tiny_esm()
    narrow(esm, dtype, quantization)
    linear, kept = esm.encoder.layer[0].intermediate.dense, []
    x = torch.randn(2, 7, 40, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        result = linear(x)
    own = {linear.weight.data_ptr()} if quantization is None else set()
    assert {t.data_ptr() for t in kept if t.numel() > 80} <= own
    result.float().sum().backward()
    with torch.no_grad():
        expected = linear.weight.float().sum(0).expand_as(x)
    torch.testing.assert_close(x.grad, expected, rtol=0.02, atol=0.02)


def test_the_checksum_is_of_the_file_and_files_in_half_precision_are_read(tmp_path):
    exact = load_esm(None, {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4}, seed=2)
    exact.save_pretrained(tmp_path / "a")
    copy.deepcopy(exact).to(torch.bfloat16).save_pretrained(tmp_path / "b")
    checksums = {}
    for name in "ab":
        esm = load_esm(str(tmp_path / name), as_stored=True)
        checksums[name] = backbone_checksum(esm)
        narrow(esm, "bfloat16", None)
        assert esm.encoder.emb_layer_norm_after.weight.dtype == esm.embeddings.word_embeddings.weight.dtype
        assert esm.contact_head.regression.weight.dtype == torch.float32
        tokens = make_tokens([9])
        expected = ContactBackbone(load_esm(str(tmp_path / name)))(tokens)
        torch.testing.assert_close(ContactBackbone(esm)(tokens), expected, rtol=0, atol=0.05)
    assert checksums["a"] == backbone_checksum(exact)
    assert checksums["b"] == backbone_checksum(load_esm(str(tmp_path / "b"))) != checksums["a"]


PEAK = """
import json, sys, threading, time
from contactlm.model.frozen_weights import load_frozen
from contactlm.model.lora import LoraOptions
def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) * 1024
seen, done = [anonymous()], threading.Event()
def watch():
    while not done.is_set():
        seen.append(anonymous())
        time.sleep(0.002)
thread = threading.Thread(target=watch)
thread.start()
esm = load_frozen(sys.argv[1], None, 0, "bfloat16", None)
done.set()
thread.join()
print(json.dumps({"start": seen[0], "peak": max(seen), "weights": sum(p.numel() for p in esm.parameters())}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the Linux kernel for the memory of a process")
def test_no_copy_in_float32_is_made_on_the_way(tmp_path):
    sizes = {"num_hidden_layers": 4, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
    load_esm(None, sizes).save_pretrained(tmp_path)
    run = subprocess.run([sys.executable, "-c", PEAK, tmp_path], capture_output=True, text=True, check=True)
    told = json.loads(run.stdout)
    grown = told["peak"] - told["start"]
    assert 2 * told["weights"] < grown < 3 * told["weights"]  # bytes: 2 a weight, and less than 4


def test_ways_that_cannot_be():
    with pytest.raises(ModelError, match=r"backbone_dtype: 'float16' given; .* gradients of a loss over L x L pairs"):
        check_frozen("float16", None, all_weights=False)
    with pytest.raises(ModelError, match="quantization: 'int4' given; choose from int8 and nf4"):
        check_frozen(None, "int4", all_weights=False)
    with pytest.raises(ModelError, match="bfloat16 is for frozen weights, and without LoRA all are to learn"):
        check_frozen("bfloat16", None, all_weights=True)
    check_frozen("float32", None, all_weights=True)


def test_without_bitsandbytes_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingExtraError, match=r'bitsandbytes cannot .* pip install "contactlm\[quant\]"'):
        check_frozen(None, "nf4", all_weights=False)
