"""Small ESM2 models and batches of tokens."""

from __future__ import annotations

import copy

import torch

from contactlm.model.backbone import load_esm

TINY = {"num_hidden_layers": 3, "hidden_size": 40, "num_attention_heads": 5, "intermediate_size": 80}


def tiny_esm(seed=0, spread=4.0, architecture=None):
    """A model whose attention and contact head are not near uniform and zero, as freshly made ones are."""
    esm = load_esm(None, architecture or TINY, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in esm.encoder.layer:
            for linear in (layer.attention.self.query, layer.attention.self.key):
                linear.weight.mul_(spread)
                linear.bias.normal_(generator=generator)
        esm.contact_head.regression.weight.normal_(generator=generator)
        esm.contact_head.regression.bias.fill_(-0.5)
    return esm


def make_tokens(lengths, seed=0):
    """Residue counts -> int64 (B, T)."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.full((len(lengths), max(lengths) + 2), 1)
    for row, n in zip(tokens, lengths, strict=True):
        row[0], row[n + 1] = 0, 2
        row[1 : n + 1] = torch.randint(4, 24, (n,), generator=generator)
    return tokens


def checkpoint_activations(esm, use_reentrant):
    """Let transformers checkpoint its layers; older releases have another name for it than those of today."""
    enable = getattr(esm, "activation_checkpointing_enable", None) or esm.gradient_checkpointing_enable
    enable({"use_reentrant": use_reentrant})


def stock_logits(esm, tokens):
    """Logits of transformers' predict_contacts, in float64 so that the probability keeps them."""
    stock = copy.deepcopy(esm).double().eval()
    stock.set_attn_implementation("eager")
    with torch.no_grad():
        return torch.logit(stock.predict_contacts(tokens, (tokens != 1).long()))
