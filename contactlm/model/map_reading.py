"""Attention maps of one protein as features of its pairs, layer by layer: what a contact head is fitted to.

A feature is an entry of an attention map, cut down to residues, symmetrised and average-product corrected (see
:mod:`contactlm.model.contact_attention`). Some heads' maps of one layer are there at a time, never all C.

Axis letters: T tokens, L residues, H heads, C layers x heads, D head width, K contact heads, N pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from contactlm.model.backbone import ContactBackbone
from contactlm.model.blocks import TokenLayout
from contactlm.model.contact_attention import Shares, contact_logits

_HELD_ENTRIES = 16 << 20  # of attention maps at a time
Visit = Callable[[Tensor], None]  # takes some heads' maps of residues, (h, L, L)


@torch.no_grad()
def pair_features(backbone: ContactBackbone, tokens: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Read the features of some pairs.

    Args:
        backbone: In evaluation mode.
        tokens: int64 (1, T), without padding.
        rows: int64 (N,), residues i counted from 0.
        columns: int64 (N,), residues j.

    Returns:
        float32 (N, C) on the CPU, maps in the order of the contact head's weights.
    """
    found: list[Tensor] = []

    def visit(maps: Tensor) -> None:
        maps = maps + maps.mT
        margins = maps.sum(-1)
        product = margins[:, rows] * margins[:, columns] / margins.sum(-1, keepdim=True)
        found.append((maps[:, rows, columns] - product).float().cpu())

    _visit_maps(backbone, tokens, visit)
    return torch.cat(found).T.contiguous()


@torch.no_grad()
def logits_of_heads(backbone: ContactBackbone, tokens: Tensor, weights: Tensor, biases: Tensor) -> Tensor:
    """Predict with K contact heads in one pass.

    Args:
        backbone: In evaluation mode; its own contact head is not read.
        tokens: int64 (1, T), without padding.
        weights: (K, C).
        biases: (K,).

    Returns:
        float32 (K, L, L), contact logits.
    """
    L = tokens.shape[1] - 2
    weighted = torch.zeros(len(weights), L, L, device=tokens.device)
    margins: list[Tensor] = []

    def visit(maps: Tensor) -> None:
        first = sum(map(len, margins))
        some = weights[:, first : first + len(maps)].to(maps)
        weighted.add_(torch.einsum("kh,hij->kij", some, maps))
        margins.append(maps.sum(-1) + maps.sum(-2))

    _visit_maps(backbone, tokens, visit)
    every = torch.cat(margins).unsqueeze(0)
    rows = [contact_logits(a[None], every, w.to(a), b) for a, w, b in zip(weighted, weights, biases, strict=True)]
    return torch.cat(rows)


def _visit_maps(backbone: ContactBackbone, tokens: Tensor, visit: Visit) -> None:
    """Run the layers of one protein and show all attention maps, in order."""

    def attend(query: Tensor, key: Tensor, value: Tensor | None, _: Tensor, layout: TokenLayout) -> Shares:
        H, T = query.shape[1:3]
        step = max(1, _HELD_ENTRIES // T**2)
        contexts = []
        for first in range(0, H, step):
            some = slice(first, first + step)
            maps = (query[0, some] @ key[0, some].mT).softmax(-1)
            visit(maps[:, 1:-1, 1:-1])
            if value is not None:
                contexts.append(maps @ value[0, some].to(maps))
        nothing = query.new_zeros(0)
        context = None if value is None else torch.cat(contexts).unsqueeze(0).to(value.dtype)
        return context, nothing, nothing

    mask, layout, positions = backbone.read(tokens, None, None)
    family, esm = backbone.family, backbone.esm
    hidden: Any = family.embed(esm, tokens, mask, positions)
    angles, layers = family.angles(esm, positions), list(family.layers(esm))
    nothing = hidden.new_zeros(0)
    for layer in layers:
        how = {"layout": layout, "attention": attend, "last": layer is layers[-1]}
        hidden, _, _ = layer(hidden, angles, nothing, shares=how)
