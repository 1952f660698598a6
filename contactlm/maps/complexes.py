"""Maps of complexes: chains of one sequence, which a sequence cannot distinguish, and interfaces."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from contactlm.maps.pairs import LEAST_SEPARATION, MapValues, highest
from contactlm.types import chain_spans

MERGED = "chains of one sequence have the mean of their blocks"
DISCOUNTED = f"{MERGED}; p between them is multiplied by 1 - p within one, of pairs {LEAST_SEPARATION} or more apart"
TOP = 10  # pairs


def merge_copies(
    probability: Tensor, sequence: str, chain_lengths: Sequence[int], discount: bool = True
) -> tuple[Tensor, str]:
    """Make a map the same for chains of equal sequence, and take out of their interface what lies within the chain.

    Copies are interchangeable: all have the mean of their maps within, and every two of them the mean of all blocks
    between, (i, j) and (j, i) alike. A language model sees a pair of residues in both places, and what it says between
    copies is partly an echo of the fold. With an independent chance of either, p (1 − p within) is left to the
    interface. So a pair that touches both within and between is underrated there: sequence alone does not show which.
    Neighbours in sequence, which touch in every fold, take nothing away; nor do ranks, which are no probabilities.

    Returns:
        The map, float32 (L, L), and what was done to it; the same map and nothing where no two chains are equal.
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


class Interface(NamedTuple):
    """What a map says of two chains."""

    chains: tuple[str, str]  # their names
    highest: float  # the highest probability of a pair between them
    expected: float  # the sum of all: how many contacts are to be expected
    top10: float  # the mean of the ten highest
    residues: tuple[list[int], list[int]]  # of either chain, counted from 0 through all, in a pair above the threshold


def residue_number(contact_map: MapValues, i: int) -> str:
    """A residue's number in its structure, or else in its chain, counted from 1."""
    if contact_map.residues is not None and contact_map.residues.numbers[i]:
        return contact_map.residues.numbers[i]
    return str(next(i - span.start + 1 for span in chain_spans(contact_map.chain_lengths) if i < span.stop))


def find_interfaces(contact_map: MapValues, threshold: float | None = None) -> list[Interface]:
    """The interface of every two chains of a map; ``threshold`` None: the map's own."""
    least = np.float32(contact_map.threshold if threshold is None else threshold)
    found = []
    chains = list(zip(contact_map.chain_names, chain_spans(contact_map.chain_lengths), strict=True))
    for (first, a), (second, b) in combinations(chains, 2):
        p = contact_map.probability[a, b]
        top = p.ravel()[highest(p.ravel(), TOP)]
        called = p > least
        residues = tuple((np.flatnonzero(called.any(1 - axis)) + (a, b)[axis].start).tolist() for axis in (0, 1))
        total = float(p.sum(dtype=np.float64))
        found.append(Interface((first, second), float(top[0]), total, float(top.mean()), residues))
    return found
