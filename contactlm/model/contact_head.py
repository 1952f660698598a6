"""A contact head in a file of its own, and the attention maps it is fitted to.

A feature of a pair is an entry of an attention map, cut down to residues, symmetrised and average-product corrected
(see :mod:`contactlm.model.contact_attention`). Some heads' maps of one layer are there at a time, never all C.

Axis letters: T tokens, L residues, H heads, C layers x heads, D head width, K contact heads, N pairs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from contactlm.atomic import atomic_file
from contactlm.model.backbone import ContactBackbone
from contactlm.model.blocks import TokenLayout
from contactlm.model.contact_attention import Shares, contact_logits
from contactlm.model.families.family import family_of
from contactlm.model.lora import contact_regression
from contactlm.types import ModelError

_ABOUT = "contactlm"  # the key of the file's metadata


def write_head(path: str | Path, weight: Tensor, bias: Tensor, about: Mapping[str, Any]) -> None:
    """Write a contact head: weight (1, C), bias (1,) and plain values, ``family``, ``backbone_checksum`` among them."""
    body = save({"weight": weight.float().cpu().contiguous(), "bias": bias.float().cpu()}, {_ABOUT: json.dumps(about)})
    try:
        with atomic_file(Path(path).expanduser()) as handle:
            handle.write(body)
    except OSError as error:
        raise ModelError(f"out: {path} cannot be written ({error.strerror or error}); give another file") from error


def read_head(path: str | Path) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Read a contact head: weight (1, C), bias (1,), and what the file says of it."""
    try:
        with safe_open(str(Path(path).expanduser()), "pt") as file:
            about = json.loads((file.metadata() or {})[_ABOUT])
            weight, bias = file.get_tensor("weight"), file.get_tensor("bias")
    except FileNotFoundError:
        raise ModelError(f"head: {path} does not exist; make one with `contactlm head fit`") from None
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ModelError(
            f"head: {path} is no contact head that `contactlm head fit` wrote: {str(error)[:200]}"
        ) from error
    if weight.ndim != 2 or len(weight) != 1 or bias.shape != (1,) or not isinstance(about, dict):
        raise ModelError(f"head: {path}: weight {tuple(weight.shape)} and bias {tuple(bias.shape)} are no contact head")
    if not (torch.isfinite(weight).all() and torch.isfinite(bias).all()):
        raise ModelError(f"head: {path} has values that are not finite; fit it again")
    return weight, bias, about


def put_head(esm: Any, path: str | Path, checksum: str) -> None:
    """Put a contact head from a file onto a backbone without adapters, whose weights have a checksum."""
    weight, bias, about = read_head(path)
    regression, family = contact_regression(esm), family_of(esm.config)
    if weight.shape != regression.weight.shape or about.get("family") != family.name:
        raise ModelError(
            f"head: {path} weighs {weight.shape[1]} attention maps of {about.get('family')}, but the backbone is "
            f"{family.name} with {regression.in_features}; give the backbone it was fitted to, or fit another"
        )
    if about.get("backbone_checksum") != checksum:
        raise ModelError(
            f"head: {path} was fitted to {about.get('backbone')} (checksum {about.get('backbone_checksum')}), but this "
            f"backbone's weights have the checksum {checksum}; fit another with `contactlm head fit`"
        )
    with torch.no_grad():
        regression.weight.copy_(weight)
        regression.bias.copy_(bias)


_HELD_ENTRIES = 16 << 20  # of attention maps at a time
Visit = Callable[[Tensor], None]  # takes some heads' maps of residues, (h, L, L)


@torch.no_grad()
def pair_features(backbone: ContactBackbone, tokens: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Read the features of some pairs, float32 (N, C) on the CPU, in the order of the contact head's weights.

    Args:
        backbone: In evaluation mode.
        tokens: int64 (1, T), without padding.
        rows: int64 (N,), residues i counted from 0; ``columns`` their partners j.
        columns: int64 (N,).
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
    """Predict with K contact heads in one pass: weights (K, C) and biases (K,) to logits, float32 (K, L, L).

    ``backbone`` and ``tokens`` are as of :func:`pair_features`; the backbone's own head is not read.
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
