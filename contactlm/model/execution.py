"""How a model is run: ways that are refused, the C library's memory, and weights spread over processes."""

from __future__ import annotations

import ctypes
import os
import platform
from typing import TYPE_CHECKING, Any

import torch.distributed
from torch import nn

from contactlm.model.trunk import SharingLayer
from contactlm.types import ModelError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

_IN_HALF = ("bf16-true", "16-true")
LARGE = 100_000_000  # weights, from which on it costs a few hundredths of a step's time at most
LARGE_BLOCK = 2 << 20  # bytes
KEPT_AT_THE_END = 64 << 20  # bytes at the heap's upper end, as where glibc chooses by itself
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_CHOSEN = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def check_execution(module: nn.Module, precision: str) -> None:
    """Refuse to hold everything in half precision, and a module that ``torch.compile`` got hold of."""
    if precision in _IN_HALF:
        raise ModelError(
            f"trainer.precision is {precision}: it would round coordinates to 3 digits or fewer, which makes other "
            "contacts, and the rotary frequencies, which moves positions; take bf16-mixed (or 16-mixed), which does "
            "the large products in half precision and keeps everything else"
        )
    of_lightning = getattr(module, "_compiler_ctx", None)  # where it keeps what torch.compile(module) returned
    if of_lightning or any(type(part).__name__ == "OptimizedModule" for part in module.modules()):
        raise ModelError(
            "torch.compile: compiling the model takes minutes, and on a CPU its steps take about as long afterwards; "
            "hand over the module itself, whose layers are fused by hand"
        )


def check_crop_length(crop_length: int | None, window: int | None) -> None:
    """Refuse crops that whole chains could not be scored with."""
    if crop_length is not None and window is not None and crop_length > window:
        raise ModelError(
            f"crop_length is {crop_length}, longer than the window of {window} residues that whole chains are "
            "scored with; lower data.crop_length, or raise model.window (null: one pass at any length)"
        )


def give_large_blocks_back(model: nn.Module) -> bool:
    """Let the C library give large blocks back at once, where a model on the CPU is large; whether that was done.

    glibc answers requests below a threshold from a heap, which it can shrink at its upper end alone, and raises that
    threshold by itself to 32 MB. The tensors of a large model's step then lie between holes: the process takes up to
    twice what they hold. With a fixed threshold each large block is mapped by itself and goes back at once. Nothing is
    done where the library is another, or where the environment has chosen already.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _CHOSEN):
        return False
    if sum(weight.numel() for weight in model.parameters()) < LARGE:
        return False
    library = ctypes.CDLL(None)
    both = ((_M_MMAP_THRESHOLD, LARGE_BLOCK), (_M_TRIM_THRESHOLD, KEPT_AT_THE_END))
    return all(library.mallopt(option, value) == 1 for option, value in both)


def shard_layers(backbone: Any, mesh: DeviceMesh | None) -> None:
    """Spread a backbone's weights over processes; every layer gathers its own when it is run.

    Args:
        backbone: A :class:`~contactlm.model.backbone.ContactBackbone`; changed.
        mesh: The processes, along the dimension ``data_parallel``, for PyTorch's FSDP2; None wraps the layers where
            FSDP 1 is being set up, and does nothing elsewhere.
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
    """Spread the weights of a part that is called by itself; without a mesh nothing is done."""
    if mesh is None:
        return
    from torch.distributed.fsdp import FSDPModule, fully_shard

    if not isinstance(part, FSDPModule):
        fully_shard(part, mesh=mesh["data_parallel"])
