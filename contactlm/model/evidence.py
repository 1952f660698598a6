"""What known structures tell of a batch of queries, as the model takes it.

Axis letters: B batch, L residues, K hits, S segments, E hidden width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NO_SEGMENT = -1
LARGE = 1 << 30  # residues that no segment has


class Evidence(NamedTuple):
    """Helices and strands of a batch's hits, and how they lie on the queries.

    Attributes:
        states: float32 (B, S, E), mean state of each segment's residues in the frozen backbone.
        strand: bool (B, S), whether the segment is a strand; else it is a helix.
        hit_of: int64 (B, S), number of each segment's hit, 0 … K − 1.
        least: int64 (B, S), so many aligned residues must be shown for the segment to count.
        similarity: float32 (B, K, 2), pair identity and coverage of each hit, 0 … 1; 0 where there is none.
        segment_of: int64 (B, K, L), number of the segment that each residue is aligned with in a hit, −1: none.
        cb: float32 (B, K, L, 3), Å, C-beta of the hit's residue that each residue is aligned with; NaN: none.
        touching: bool (B, S, S), whether two segments of one hit have a contact in its structure.
    """

    states: Tensor
    strand: Tensor
    hit_of: Tensor
    least: Tensor
    similarity: Tensor
    segment_of: Tensor
    cb: Tensor
    touching: Tensor

    @classmethod
    def none(
        cls, B: int, L: int, E: int, hits: int = 1, segments: int = 1, device: torch.device | str = "cpu"
    ) -> Evidence:
        """Evidence of queries without hits."""
        with torch.device(device):
            return cls(
                states=torch.zeros(B, segments, E),
                strand=torch.zeros(B, segments, dtype=torch.bool),
                hit_of=torch.zeros(B, segments, dtype=torch.int64),
                least=torch.full((B, segments), LARGE),
                similarity=torch.zeros(B, hits, 2),
                segment_of=torch.full((B, hits, L), NO_SEGMENT),
                cb=torch.full((B, hits, L, 3), torch.nan),
                touching=torch.zeros(B, segments, segments, dtype=torch.bool),
            )

    def on(self, device: torch.device) -> Evidence:
        """The same on another device."""
        return Evidence(*(part.to(device, non_blocking=True) for part in self))

    def centres(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Tell where on the query the segments lie.

        Args:
            positions: (1 or B, L), position of each residue.

        Returns:
            The mean position of the residues aligned with each segment and their number, both float32 (B, S); 0 where
            fewer are shown than the segment needs.
        """
        B, S = self.strand.shape
        index = torch.where(self.segment_of < 0, S, self.segment_of).flatten(1)
        of_residues = positions.to(torch.float32).expand(B, -1).unsqueeze(1).expand(self.segment_of.shape).flatten(1)
        zeros = torch.zeros(B, S + 1, device=index.device)
        counts = zeros.scatter_add(1, index, torch.ones_like(of_residues))[:, :S]
        counts = counts * (counts >= self.least)
        sums = zeros.scatter_add(1, index, of_residues)[:, :S]
        return sums * (counts > 0) / counts.clamp(min=1), counts
