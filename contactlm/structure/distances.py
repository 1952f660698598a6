"""Distances of virtual C-betas: in bins, as they are predicted, and as a map."""

from __future__ import annotations

from typing import TYPE_CHECKING

from contactlm.structure.contacts import CONTACT_THRESHOLD

if TYPE_CHECKING:
    from torch import Tensor

NEAREST, FARTHEST = 2, 22  # Å: bins of 1 Å between them, what is nearer in the first, and one more beyond
BINS = FARTHEST - NEAREST + 1
NEAR_BINS = int(CONTACT_THRESHOLD) - NEAREST  # those of contacts
BEYOND = 25.0  # Å, what the last bin counts as in an expected distance
UNKNOWN = -1


def bin_centres(like: Tensor) -> Tensor:
    """What each bin counts as, in Å, (BINS,), in the dtype of a tensor and where that is."""
    return like.new_tensor([*(edge + 0.5 for edge in range(NEAREST, FARTHEST)), BEYOND])


def distance_map(cb: Tensor) -> Tensor:
    """Distances of C-betas (…, L, 3) in Å, (…, L, L), NaN where one is not resolved; float64 where there is that."""
    return _squared(cb).sqrt()


def _squared(cb: Tensor) -> Tensor:
    exact = cb.detach() if cb.device.type == "mps" else cb.detach().double()
    x, y, z = ((exact[..., :, None, axis] - exact[..., None, :, axis]).square() for axis in range(3))
    return x.add_(y).add_(z)


def distance_bins(cb: Tensor) -> Tensor:
    """The bin of every pair's distance, from 0: int8 (…, L, L); −1 where it is unknown, and on the diagonal.

    Bins below ``NEAR_BINS`` are exactly the contacts of :func:`contactlm.contact_map`.
    """
    import torch  # here: processes that only read files do not wait for it

    squared = _squared(cb)
    edges = torch.arange(NEAREST + 1, FARTHEST + 1, dtype=squared.dtype, device=squared.device).square()
    bins = torch.bucketize(squared, edges, right=True).to(torch.int8)
    bins.masked_fill_(squared.isnan(), UNKNOWN).diagonal(dim1=-2, dim2=-1).fill_(UNKNOWN)
    return bins


def contacts_of_bins(bins: Tensor) -> Tensor:
    """Contact labels, int8: 1 contact, 0 none, −1 unknown."""
    import torch

    return torch.where(bins < 0, UNKNOWN, (bins < NEAR_BINS).to(torch.int8)).to(torch.int8)
