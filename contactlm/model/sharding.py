"""Weights spread over processes, layer by layer, for backbones that one device cannot hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.distributed
from torch import nn

from contactlm.model.trunk import SharingLayer
from contactlm.types import ModelError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def shard_layers(backbone: Any, mesh: DeviceMesh | None) -> None:
    """Spread a backbone's weights over processes; every layer gathers its own when it is run.

    Args:
        backbone: A :class:`~contactlm.model.backbone.ContactBackbone`; changed.
        mesh: The processes, along the dimension ``data_parallel``, for PyTorch's FSDP2; None wraps the layers where
            FSDP 1 is being set up, and does nothing elsewhere.

    Raises:
        ModelError: A mesh, and a backbone that does not call its layers.
    """
    if not torch.distributed.is_available():
        return
    from torch.distributed.fsdp import FSDPModule, fully_shard  # not in every build of torch
    from torch.distributed.fsdp.wrap import wrap

    layers: Any = backbone.family.layers(backbone.esm) if hasattr(backbone, "family") else []
    if mesh is None:
        for index in range(len(layers)):
            if isinstance(layers[index], SharingLayer):  # not wrapped yet
                layers[index] = wrap(layers[index])
        return
    if not layers or not all(isinstance(layer, SharingLayer) for layer in layers):
        raise ModelError(f"{type(backbone).__name__}: its weights cannot be spread over processes; use strategy ddp")
    if not isinstance(backbone, FSDPModule):
        for part in (*layers, backbone):
            fully_shard(part, mesh=mesh["data_parallel"])


def shard_whole(part: nn.Module, mesh: DeviceMesh | None) -> None:
    """Spread the weights of a part that is called by itself.

    Args:
        part: The part; changed.
        mesh: As of :func:`shard_layers`; None does nothing.
    """
    if mesh is None:
        return
    from torch.distributed.fsdp import FSDPModule, fully_shard

    if not isinstance(part, FSDPModule):
        fully_shard(part, mesh=mesh["data_parallel"])
