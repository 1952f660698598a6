"""A small random model of every family, and what the stock model of transformers says of it."""

from __future__ import annotations

import copy
from importlib import import_module

import torch
from transformers.models.esm import modeling_esm

from contactlm.model.backbone import load_esm
from contactlm.model.families.family import FILES, family_of

ANTIBERTY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"ACDEFGHIKLMNPQRSTVWY"]  # as published
SIZES = {"num_hidden_layers": 3, "hidden_size": 40, "num_attention_heads": 5, "intermediate_size": 80}
ARCHITECTURES = {
    "ESM2": {},
    "ESM-1b": {"position_embedding_type": "absolute", "max_position_embeddings": 60},
    "ESM-1v": {
        "position_embedding_type": "absolute",
        "emb_layer_norm_before": False,
        "max_position_embeddings": 60,
    },
    "SaProt": {"vocab_size": 446, "mask_token_id": 4},
    "ESM C": {"model_type": "esmc"},
    "ProtBert": {"model_type": "bert", "max_position_embeddings": 58},
    "BERT": {"model_type": "bert", "max_position_embeddings": 58, "vocabulary": ANTIBERTY},
}
FAMILIES = {
    family.name: family
    for file in FILES.values()
    for family in import_module(f"contactlm.model.families.{file}").FAMILIES
}
FAMILIES["BERT"] = family_of(ARCHITECTURES["BERT"])


def architecture(name):
    return {**SIZES, **ARCHITECTURES[name]}


def spread(model, seed=0):
    """Let attention and contact head be far from uniform and zero, and every bias and norm from its first value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.empty_like(parameter).normal_(0, 0.2, generator=generator))
            elif "embed" not in name and "contact_head" not in name:
                parameter.normal_(0, 0.3, generator=generator)
        model.contact_head.regression.weight.normal_(0, 0.3, generator=generator)
        model.contact_head.regression.bias.fill_(-0.5)
    return model


def small_model(name, seed=0):
    return spread(load_esm(None, architecture(name), seed=seed), seed)


def family_tokens(name, lengths, seed=0):
    """Residue counts -> the family's own numbers, int64 (B, T)."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.full((len(lengths), max(lengths) + 2), 1)
    for row, n in zip(tokens, lengths, strict=True):
        row[0], row[n + 1] = 0, 2
        row[1 : n + 1] = torch.randint(4, 24, (n,), generator=generator)
    return FAMILIES[name].tokens.own(tokens)


def exact_rotary(q, k, cos, sin, unsqueeze_dim=1):
    """What transformers does for ESM2, without its rounding to float32, which would hide a float64 comparison."""
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return tuple(x * cos + modeling_esm.rotate_half(x) * sin for x in (q, k))


def stock_model(model, name):
    """The stock class with the same weights and eager attention; the contact head stays behind where it has none."""
    config = copy.deepcopy(model.config)
    config._attn_implementation = "eager"
    family = FAMILIES[name]
    options = {} if name == "ESM C" else {"add_pooling_layer": False}
    stock = family.stock_class(config, **options).to(next(model.parameters()).dtype)
    own = stock.state_dict()
    stock.load_state_dict({key: value for key, value in model.state_dict().items() if key in own})
    return stock.train(model.training)


def logits_of_maps(attentions, weight, bias, residues):
    """Written out: symmetrise, correct, weigh (Rao et al. 2021); residues bool (B, T); (B, T - 2, T - 2)."""
    maps = torch.cat(attentions, 1)  # (B, C, T, T)
    inside = residues[:, None, :, None] & residues[:, None, None, :]
    maps = torch.where(inside, maps, 0)[..., 1:-1, 1:-1]
    maps = maps + maps.mT
    rows, total = maps.sum(-1), maps.sum((-1, -2))
    corrected = maps - rows[..., None] * rows[..., None, :] / total[..., None, None]
    logits = torch.einsum("c,bcij->bij", weight.flatten(), corrected) + bias
    return torch.where(inside[:, 0, 1:-1, 1:-1], logits, 0)


def stock_contacts(model, stock, tokens, name, positions=None):
    """Contact logits from ``output_attentions=True`` of the stock model, with the contact head of ours."""
    known = FAMILIES[name].tokens
    mask = tokens != known.pad
    options = {} if positions is None else {"position_ids": positions}
    attentions = stock(tokens, attention_mask=mask.long(), output_attentions=True, **options).attentions
    regression = model.contact_head.regression
    residues = mask & (tokens != known.eos) & (tokens != known.cls)
    return logits_of_maps(attentions, regression.weight, regression.bias, residues)
