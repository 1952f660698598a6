"""What all ways of running the passes of a plan share: checks of a chain, residues, weights at cuts, the note kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from contactlm.alphabet import CLS, EOS, PAD
from contactlm.maps.windows import Pass, Segment, WindowOptions
from contactlm.shipped import __version__
from contactlm.types import DataError


def check_residue_tokens(tokens: Tensor, index: int) -> None:
    """Refuse what is not the residue tokens (L,) of a chain.

    Args:
        tokens: What was given.
        index: Number of the chain, counted from 0, for the message.

    Raises:
        DataError: Another shape or type, no residue at all, or special tokens among them.
    """
    if tokens.ndim != 1 or tokens.is_floating_point() or tokens.dtype == torch.bool:
        shape = tuple(tokens.shape)
        raise DataError(f"chain {index}: tokens are {tokens.dtype} {shape}: give one integer per residue, shape (L,)")
    if len(tokens) == 0:
        raise DataError(f"chain {index} is empty and has no contact map: give a sequence of at least one residue")
    special = (tokens == CLS) | (tokens == EOS) | (tokens == PAD)
    if special.any():
        where = int(special.int().argmax())
        raise DataError(
            f"chain {index}: token {int(tokens[where])} at index {where} is <cls>, <pad> or <eos>: "
            "give residue tokens only, special tokens are added here"
        )


def checked_positions(positions: Tensor, length: int, index: int) -> Tensor:
    """Positions of a chain's residues, int64 (L,) on the CPU.

    Args:
        positions: What was given.
        length: L.
        index: Number of the chain, counted from 0, for the message.

    Raises:
        DataError: Another shape or type, or positions that do not ascend.
    """
    if positions.shape != (length,) or positions.is_floating_point() or positions.dtype == torch.bool:
        raise DataError(
            f"chain {index}: positions are {positions.dtype} {tuple(positions.shape)}: give one integer per residue, "
            f"shape ({length},)"
        )
    positions = positions.cpu().long()
    if (positions.diff() < 1).any():
        where = int((positions.diff() < 1).int().argmax())
        raise DataError(
            f"chain {index}: position {int(positions[where + 1])} follows {int(positions[where])} at index "
            f"{where + 1}: positions must ascend"
        )
    return positions


def residues_of(piece: Pass) -> Tensor:
    """The residues of a pass, int64 (n,)."""
    return torch.cat([torch.arange(*segment) for segment in piece.segments])


def token_positions(own: Tensor) -> Tensor:
    """Positions of a pass's tokens, int64 (n + 2,), from those of its residues, int64 (n,).

    They count from ``<cls>`` = 0, not from the chain's start: smaller angles lose less to rounding.
    """
    inner = own - own[0] + 1
    return torch.cat([inner.new_zeros(1), inner, inner[-1:] + 1])


def context_weights(segment: Segment, piece: Pass, length: int, device: torch.device | None = None) -> Tensor:
    """Weight of each residue of a segment: residues to its nearest cut, in half windows, at most 1; float32 (n,)."""
    start, stop = segment
    most = (piece.residues + 1) // 2
    index = torch.arange(start, stop, dtype=torch.float32, device=device)
    left = index - start + 1 if start > 0 else torch.full_like(index, most)
    right = stop - index if stop < length else torch.full_like(index, most)
    return torch.minimum(left, right).clamp_(max=most).div_(most)


def how_made(length: int, plan: list[Pass], options: WindowOptions, blend: str) -> dict[str, Any]:
    """How a full-length map was made, in plain values.

    Args:
        length: L of the chain.
        plan: Its passes.
        options: What they were planned with.
        blend: How blocks are blended where there are several passes.
    """
    apart = sum(len(piece.segments) == 2 for piece in plan)
    whole = int(len(plan) == 1)
    return {
        "version": __version__,
        "length": length,
        "window": options.window,
        "overlap": options.least_overlap,
        "passes": {"whole": whole, "window": len(plan) - whole - apart, "two_segments": apart},
        "blend": "none" if whole else blend,
    }
