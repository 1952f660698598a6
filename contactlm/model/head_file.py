"""A contact head in a file of its own: safetensors, with what it was fitted on and how well it does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from contactlm.atomic import atomic_file
from contactlm.model.families.registry import family_of
from contactlm.model.lora import contact_regression
from contactlm.types import ModelError

_ABOUT = "contactlm"  # the key of the file's metadata


def write_head(path: str | Path, weight: Tensor, bias: Tensor, about: Mapping[str, Any]) -> None:
    """Write a contact head.

    Args:
        path: The file; it appears complete or not at all.
        weight: (1, C).
        bias: (1,).
        about: Plain values, ``family`` and ``backbone_checksum`` among them.

    Raises:
        ModelError: The file cannot be written.
    """
    body = save({"weight": weight.float().cpu().contiguous(), "bias": bias.float().cpu()}, {_ABOUT: json.dumps(about)})
    try:
        with atomic_file(Path(path).expanduser()) as handle:
            handle.write(body)
    except OSError as error:
        raise ModelError(f"out: {path} cannot be written ({error.strerror or error}); give another file") from error


def read_head(path: str | Path) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Read a contact head: weight (1, C), bias (1,), and what the file says of it.

    Raises:
        ModelError: No such file, or another one.
    """
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
    """Put a contact head from a file onto a backbone.

    Args:
        esm: The backbone, without adapters; changed.
        path: The file.
        checksum: Of the backbone's weights.

    Raises:
        ModelError: No such head, or one that was fitted to another backbone.
    """
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
