"""Contact labels of a batch, computed where its coordinates are (torch)."""

from __future__ import annotations

import torch
from torch import Tensor

from contactlm.structure.contacts import CONTACT_THRESHOLD


@torch.no_grad()
def contact_labels(cb: Tensor, threshold: float = CONTACT_THRESHOLD) -> Tensor:
    """Label every residue pair of every crop: what :func:`~contactlm.structure.contacts.contact_map` does, batched.

    Args:
        cb: C-beta coordinates, (B, L, 3) or (L, 3), in Å; NaN where the residue is unresolved or padding.
        threshold: A contact is a distance strictly below this, in Å.

    Returns:
        int8 (B, L, L) or (L, L) on the device of ``cb``: 1 contact, 0 no contact, -1 unknown and on the diagonal.

    Raises:
        ValueError: ``cb`` is not of shape (B, L, 3) or (L, 3).
    """
    if cb.ndim not in (2, 3) or cb.shape[-1] != 3:
        raise ValueError(f"cb has shape {tuple(cb.shape)}; expected (B, L, 3) or (L, 3)")
    # float64 gives the labels of contact_map to the last pair; Apple's devices have none.
    exact = cb if cb.device.type == "mps" else cb.double()
    x, y, z = exact.unbind(-1)
    difference = x.unsqueeze(-1) - x.unsqueeze(-2)
    squared = difference.square()
    for axis in (y, z):
        torch.sub(axis.unsqueeze(-1), axis.unsqueeze(-2), out=difference)
        squared.addcmul_(difference, difference)
    known = (~cb.isnan().any(dim=-1)).to(torch.int8)
    labels = (squared < threshold**2).view(torch.int8)
    # 0 or 1 where both residues are known, else -1; several times faster than filling by a mask.
    labels.add_(1).mul_(known.unsqueeze(-1) * known.unsqueeze(-2)).sub_(1)
    labels.diagonal(dim1=-2, dim2=-1).fill_(-1)
    return labels
