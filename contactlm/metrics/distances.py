"""Scores of predicted distances: the error of those that are short, and lDDT, protein by protein.

lDDT (Mariani et al. 2013, "lDDT: a local superposition-free score") on C-beta distances: of the pairs of a residue that
are truly less than 15 Å apart, the share whose distance is within 0.5, 1, 2 and 4 Å of the truth, averaged over the
four, over a protein's residues, and over proteins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from contactlm.metrics.protein_states import ProteinStates
from contactlm.metrics.scores import nan_mean
from contactlm.structure.distances import FARTHEST, distance_map

INCLUSION = 15.0  # Å
TOLERANCES = (0.5, 1.0, 2.0, 4.0)  # Å
NAMES = ("distance_mae", "distance_lddt")
COLUMNS = (*NAMES, *(f"trivial_{name}" for name in NAMES))


def distance_mae(distance: Tensor, true: Tensor) -> Tensor:
    """Mean absolute error in Å of predicted distances (L, L), over pairs that are truly below 22 Å; NaN of none.

    ``true`` (L, L) is NaN where it is not known; the upper triangle counts.
    """
    counted = (true < FARTHEST).triu(1)
    return (distance - true).abs().where(counted, 0).sum() / counted.sum()


def distance_lddt(distance: Tensor, true: Tensor) -> Tensor:
    """LDDT of predicted distances (L, L), 0 … 1; NaN where no residue has a neighbour. Arguments as above."""
    counted = true < INCLUSION
    counted.fill_diagonal_(False)
    error = (distance - true).abs()
    kept = sum(((error < tolerance) & counted).sum(1) for tolerance in TOLERANCES) / len(TOLERANCES)
    neighbours = counted.sum(1)
    of_residues = kept / neighbours
    return of_residues[neighbours > 0].mean()


def trivial_distance(length: int, chain_of: Tensor | None = None) -> Tensor:
    """What sequence separation alone predicts, float32 (L, L): 5.5 Å times |i − j| to the power of 0.4, at most 16 Å.

    Chains of a complex, each residue's in ``chain_of`` (L,), are 16 Å apart.
    """
    residue = torch.arange(length, device=None if chain_of is None else chain_of.device)
    distance = (5.5 * (residue[:, None] - residue).abs().float() ** 0.4).clamp(max=16.0)
    return distance if chain_of is None else distance.where(chain_of[:, None] == chain_of, 16.0)


class DistanceScores(ProteinStates):
    """The scores of a set of proteins whose distances were predicted, and the trivial predictor's."""

    def __init__(self, **options: Any) -> None:
        super().__init__({"values": ((len(COLUMNS),), torch.float32), "index": ((), torch.int64)}, **options)

    def update(
        self,
        distance: Sequence[Tensor],
        cb: Sequence[Tensor],
        indices: Sequence[int] | None = None,
        chain_of: Sequence[Tensor] | None = None,
    ) -> None:
        """Add proteins: predicted distances (L, L), C-betas (L, 3), both in Å, and their numbers in the data set."""
        for k, (own, positions) in enumerate(zip(distance, cb, strict=True)):
            true = distance_map(positions.to(own.device))
            trivial = trivial_distance(len(own), None if chain_of is None else chain_of[k]).to(own.device)
            row = [score(each, true) for each in (own, trivial) for score in (distance_mae, distance_lddt)]
            self.append("values", torch.stack(row)[None])
            self.append("index", torch.tensor([-1 if indices is None else indices[k]], device=own.device))

    def compute(self) -> dict[str, float]:
        """Means over proteins by name, each once; empty without any. On several ranks a collective call."""
        index, values = self.gathered("index").tolist(), self.gathered("values").tolist()
        self._of = dict(zip(index, values, strict=True))  # kept: after this the states are one rank's again
        nameless = [own for number, own in zip(index, values, strict=True) if number < 0]
        distinct = nameless + [own for number, own in self._of.items() if number >= 0]
        return {name: nan_mean(list(own)) for name, own in zip(COLUMNS, zip(*distinct, strict=True), strict=False)}

    def with_columns(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Add each protein's scores to its row, collective unless :meth:`compute` was called before."""
        self.compute()
        return [row | dict(zip(COLUMNS, self._of.get(row["index"], ()), strict=False)) for row in rows]
