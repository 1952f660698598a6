"""Maps of complexes: chains of one sequence, which a sequence cannot tell apart, and interfaces."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, combinations, pairwise

import torch
from torch import Tensor

from contactlm.maps.pairs import LEAST_SEPARATION

MERGED = "chains of one sequence have the mean of their blocks"
DISCOUNTED = f"{MERGED}; p between them is multiplied by 1 - p within one, of pairs {LEAST_SEPARATION} or more apart"


def chain_spans(chain_lengths: Sequence[int]) -> list[slice]:
    """Where each chain's residues are in the sequence of the complex."""
    return [slice(*ends) for ends in pairwise([0, *accumulate(chain_lengths)])]


def merge_copies(
    probability: Tensor, sequence: str, chain_lengths: Sequence[int], discount: bool = True
) -> tuple[Tensor, str]:
    """Make a map the same for chains of equal sequence, and take out of their interface what lies within the chain.

    Copies are interchangeable: all have the mean of their maps within, and every two of them the mean of all blocks
    between, (i, j) and (j, i) alike. A language model sees a pair of residues in both places, and what it says between
    copies is partly an echo of the fold. With an independent chance of either, p (1 − p within) is left to the
    interface. So a pair that touches both within and between is underrated there: sequence alone does not tell.
    Neighbours in sequence, which touch in every fold, take nothing away.

    Args:
        probability: float32 (L, L), symmetric.
        sequence: L letters.
        chain_lengths: Residues of each chain.
        discount: False leaves the interface as it is, of what are ranks and no probabilities.

    Returns:
        The map, and what was done to it; the same map and nothing where no two chains are equal.
    """
    copies: dict[str, list[slice]] = {}
    for span in chain_spans(chain_lengths):
        copies.setdefault(sequence[span], []).append(span)
    alike = [spans for spans in copies.values() if len(spans) > 1]
    if not alike:
        return probability, ""
    merged = probability.clone()
    for spans in alike:
        within = torch.stack([probability[span, span] for span in spans]).mean(0)
        between = torch.stack([probability[a, b] for a, b in combinations(spans, 2)]).mean(0)
        between = (between + between.T) / 2
        if discount:
            at = torch.arange(len(within), device=within.device)
            far = (at[:, None] - at).abs() >= LEAST_SEPARATION
            between = between * (1 - within * far)
        for a in spans:
            for b in spans:
                merged[a, b] = within if a is b else between
    return merged, DISCOUNTED if discount else MERGED
