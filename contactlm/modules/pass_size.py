"""Batches of passes as large as a GPU has use for, and its free memory room."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from contactlm.maps.windows import WindowOptions
from contactlm.model.blocks import block_bytes

SHARE = 0.5  # of the free memory: results wait there, and an allocator keeps pieces that fit nothing
ENOUGH = 64 * 1024**2  # token pairs, and what tokens cost beside: some ten thousand tokens keep any GPU busy


def sized(windows: WindowOptions, network: Any, device: torch.device) -> WindowOptions:
    """Windows whose batches of passes fit the memory that is free.

    Args:
        windows: ``max_cost``, where it is given, stays; so does everything on other devices than CUDA's.
        network: Its ``pass_bytes``, where it has one, tells what a pass takes; else nothing changes.
        device: Where it is.
    """
    per_token, per_pair = getattr(network, "pass_bytes", (0, 0))
    if windows.max_cost is not None or device.type != "cuda" or not per_pair:
        return windows
    room = SHARE * (free_bytes(device) - 2 * block_bytes(device))
    bound = min(ENOUGH, int(room / per_pair))
    return replace(windows, max_cost=max(1, bound), token_cost=per_token // per_pair)


def free_bytes(device: torch.device) -> int:
    """Memory that a CUDA device has free, that which PyTorch holds and does not use included."""
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held
