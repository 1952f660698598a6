"""From the rows of a categorical Jacobian to one number a pair: the last centring, the norm, the average product.

With J[i, a, j, b] what residue a at position i does to the logit of b at position j, the mean over each axis is taken
off. Means over a, b and j need one row at a time and are off already when a row is kept; the mean over i is a running
sum over rows, (20 n) × 20 numbers. What comes after it, the Frobenius norm of each 20 × 20 block, needs that mean and
the block, and where J is made symmetric first the block across the diagonal as well. So the rows are kept
(:class:`~contactlm.maps.jacobian_rows.RowStore`) and read twice, a tile at a time: exact, with no more in memory than a
few tiles and (n, n) numbers, for either symmetrisation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from contactlm.maps.jacobian_rows import RowStore

Symmetrise = Literal["before", "after"]
_TILE = 1_000_000  # numbers of a tile: 8 MB in float64


def centred_row(row: Tensor) -> Tensor:
    """Take off a row's means over substitutions (where there are several), logits and positions.

    Args:
        row: (S, n, 20), changed.
    """
    if len(row) > 1:
        row -= row.mean(0)
    row -= row.mean(2, keepdim=True)
    row -= row.mean(1, keepdim=True)
    return row


def pair_norms(rows: RowStore, symmetrise: Symmetrise) -> Tensor:
    """Frobenius norms over substitutions and logits.

    Args:
        rows: All n rows, centred.
        symmetrise: ``"before"`` takes the norms of (J + Jᵀ) / 2, ``"after"`` those of J, which no one has made
            symmetric yet.

    Returns:
        float64 (n, n), 0 on the diagonal.
    """
    S, n, _ = rows.shape
    mean = sum((block.sum(0) for _, block in _row_blocks(rows)), torch.zeros(rows.shape, dtype=torch.float64)) / n
    norms = torch.zeros(n, n, dtype=torch.float64)
    if symmetrise == "after":
        for own, block in _row_blocks(rows):
            norms[own] = (block - mean).square_().sum((1, 3)).sqrt_()
    else:
        parts = _parts(n, max(1, int((_TILE / (S * rows.shape[2])) ** 0.5)))
        for k, own in enumerate(parts):
            for other in parts[k:]:
                tile = rows.read(own, other).sub_(mean[:, other])
                across = rows.read(other, own).sub_(mean[:, own]).permute(2, 3, 0, 1)
                own_norms = tile.add_(across).square_().sum((1, 3)).sqrt_().div_(2)
                norms[own, other], norms[other, own] = own_norms, own_norms.T
    return norms.fill_diagonal_(0)


def _row_blocks(rows: RowStore) -> Iterator[tuple[slice, Tensor]]:
    """A few rows at a time: which, and (r, S, n, 20)."""
    S, n, letters = rows.shape
    for own in _parts(n, max(1, _TILE // (S * n * letters))):
        yield own, rows.read(own, slice(0, n))


def _parts(n: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def corrected_for_average_product(norms: Tensor) -> Tensor:
    """Subtract the average product (Dunn et al. 2008) and make the result symmetric, its diagonal 0.

    Args:
        norms: (L, L), 0 on the diagonal; changed. All 0: nothing to subtract.
    """
    total = norms.sum()
    if total > 0:
        norms.addr_(norms.sum(1), norms.sum(0) / -total)
    return norms.add_(norms.T.clone()).div_(2).fill_diagonal_(0)
