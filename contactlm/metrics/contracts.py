"""Contracts: what a published figure was measured with, as one table.

A figure may be compared with another only where both were computed under one contract, on the same chains. Where
contracts agree there is no column: a contact is a distance strictly below the cutoff; only pairs of two resolved
residues are ranked; of equal probabilities the expectation over all orders counts (the published codes leave that to
their sort); and each pair counts once, by the upper triangle of the predicted map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from contactlm.structure.contacts import CONTACT_THRESHOLD, contact_map
from contactlm.types import ContactDefinition

if TYPE_CHECKING:
    from contactlm.metrics.ranked import LengthRule

Atom = Literal["virtual-cb", "ca", "cb"]


@dataclass(frozen=True)
class Contract:
    """How contacts are defined and counted."""

    name: str  # as published.csv has it
    atom: Atom  # distances are between: virtual-cb, built from N, CA and C (glycine too); cb, that of the file (or CA)
    cutoff: float  # a contact is a distance below this, in Å
    length: LengthRule  # the L of P@L: resolved residues; last-resolved, all up to the last resolved one; full, all
    short_of_pairs: Literal["fewer", "missed"]  # precision of all there are, or the places that no pair takes are wrong
    source: str  # whose it is
    min_separation: ClassVar[int] = 24  # of long-range pairs: the same in all

    def scores(self, definition: ContactDefinition) -> bool:
        """Whether its contacts are those of a definition; the usual one is compared under all, as published models."""
        own = ({"virtual-cb": "cb"}.get(self.atom, self.atom), self.cutoff)
        return definition == ContactDefinition() or own == (definition.atom, definition.below)


OURS = Contract("ours", "virtual-cb", CONTACT_THRESHOLD, "resolved", "fewer", "contactlm")
CONTRACTS = {
    contract.name: contract
    for contract in (
        OURS,
        Contract("esm", "virtual-cb", 8.0, "last-resolved", "missed", "Rao et al. 2021, ESM's contact notebook"),
        Contract("ca8", "ca", 8.0, "full", "fewer", "plm-contact-fusion, CAMEO"),
        Contract("cb8-full", "cb", 8.0, "full", "fewer", "plm-contact-fusion, CASP14"),
    )
}


def contract_scores(
    contract: Contract, probability: NDArray[np.floating], coordinates: NDArray[np.floating]
) -> dict[str, float]:
    """Long-range precisions under a contract, by name; NaN where there is nothing to rank.

    Of probabilities (L, L) the upper triangle counts; coordinates (L, 3), in Å, are of the contract's atom.
    """
    import torch  # here: `contactlm benchmark list` does not wait for it

    from contactlm.metrics.ranked import precision_at, rank_map
    from contactlm.metrics.scores import TOP_FRACTIONS, precision_name

    labels = torch.from_numpy(contact_map(coordinates, contract.cutoff))
    ranked = rank_map(torch.as_tensor(probability), labels, length=contract.length)
    long = ranked.bands[-1]
    wanted = [int(ranked.residues) // fraction for fraction in TOP_FRACTIONS]
    scores, (precisions,) = {}, precision_at([long], wanted).tolist()
    for fraction, count, precision in zip(TOP_FRACTIONS, wanted, precisions, strict=True):
        if contract.short_of_pairs == "missed" and len(long.pairs) < count:
            precision *= len(long.pairs) / count
        scores[precision_name(fraction, "long")] = precision
    return scores
