"""A protein's scored pairs, put in order once: every score is counted in the ordered probabilities.

A pair is known by its probability, its truth and the band its separation falls into, so that two ascending lists a band
hold all there is to know: those of all its pairs, and those of its contacts. Sorting numbers without carrying places
along takes a third of the time, and every count after it is a binary search for a few values.

Pairs are chosen and put in order where the map is, and counted on the host. Counts stay integers, and every formula is
evaluated in float64, so no product of counts overflows and the result does not depend on the device. Probabilities
are compared in float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contactlm.structure.contacts import TRIVIAL_REACH

# Disjoint bands of |i - j|: 1-5, 6-11, 12-23, >= 24.
BAND_STARTS = (6, 12, 24)
BANDS = len(BAND_STARTS) + 1
_EDGES = (1, *BAND_STARTS)
LengthRule = Literal["resolved", "last-resolved", "full"]  # which residues the L of P@L counts


class Ranked(NamedTuple):
    """The pairs of one band, in ascending order.

    Attributes:
        pairs: float32 (N,), the probabilities of all of them.
        contacts: float32 (P,), those of the pairs that are contacts.
    """

    pairs: NDArray[np.float32]
    contacts: NDArray[np.float32]

    @classmethod
    def of(cls, probability: Tensor, contact: Tensor) -> Ranked:
        """Put pairs in order: probabilities (N,), and bool (N,), which are contacts."""
        return cls(_sorted(probability.float()), _sorted(_chosen(probability, contact)))


class RankedMap(NamedTuple):
    """The scored pairs of one protein.

    Attributes:
        bands: Those with |i − j| of 1-5, 6-11, 12-23, >= 24; in a complex, pairs between chains are in the last.
        near: How many pairs the trivial predictor calls contacts (|i − j| <= 2), and how many of them are.
        residues: The L of P@L: the number of resolved residues, unless a contract counts otherwise.
    """

    bands: tuple[Ranked, ...]
    near: tuple[int, int]
    residues: int


def check_probability(probability: Tensor) -> None:
    """Refuse logits.

    Raises:
        ValueError: A value is outside [0, 1] or NaN, or the tensor holds no floating-point numbers.
    """
    if not probability.is_floating_point():
        raise ValueError(f"expected floating-point probabilities, got a tensor of {probability.dtype}")
    if probability.numel() == 0:
        return
    low, high = (float(v) for v in torch.aminmax(probability.detach()))
    if not (low >= 0.0 and high <= 1.0):
        raise ValueError(
            f"expected probabilities in [0, 1], got values from {low:.4g} to {high:.4g}: "
            "these look like logits (or NaN); apply torch.sigmoid first"
        )


def check_maps(probability: Tensor, labels: Tensor) -> None:
    """Refuse what is not one protein's map and its labels.

    Raises:
        ValueError: Shapes differ or are not square, or ``probability`` is not made of probabilities.
    """
    if probability.ndim != 2 or probability.shape[0] != probability.shape[1] or probability.shape != labels.shape:
        raise ValueError(
            f"probability {tuple(probability.shape)} and labels {tuple(labels.shape)} "
            "must both be one protein's (L, L) map"
        )
    check_probability(probability)


def rank_map(
    probability: Tensor, labels: Tensor, chain_of: Tensor | None = None, length: LengthRule = "resolved"
) -> RankedMap:
    """Put the scored pairs of a map in order.

    The pairs are those of :func:`contactlm.metrics.scores.select_pairs`: i < j with a known label.

    Args:
        probability: Floating point (L, L) in [0, 1]; only its upper triangle is scored.
        labels: (L, L), 1 contact, 0 none, negative unknown; on the same device.
        chain_of: Of a complex, each residue's chain number, (L,); None: a single chain.
        length: Which residues are counted as the L of P@L: those resolved, all up to the last resolved one, or all.

    Raises:
        ValueError: Shapes differ or are not square, or ``probability`` is not made of probabilities.
    """
    check_maps(probability, labels)
    probability, labels = probability.detach(), labels.detach()
    known, contact = labels >= 0, labels == 1
    residues = _length(known, length)
    far = [tuple(_chosen(probability, mask.triu(_EDGES[-1])) for mask in (known, contact))]
    bands: list[Ranked] = []
    near = (0, 0)
    for start, end in zip(_EDGES, BAND_STARTS, strict=False):
        row, column = _strip(len(labels), start, end, labels.device)
        place = row * len(labels) + column
        chosen, touching, value = (part.flatten()[place] for part in (known, contact, probability))
        if chain_of is not None:
            apart = chain_of.to(row.device)[row] != chain_of.to(row.device)[column]
            far.append(tuple(_chosen(value, mask & apart) for mask in (chosen, touching)))
            chosen, touching = chosen & ~apart, touching & ~apart
        if start == 1:
            reach = column - row <= TRIVIAL_REACH
            near = int((chosen & reach).sum()), int((touching & reach).sum())
        bands.append(Ranked(*(_sorted(_chosen(value, mask)) for mask in (chosen, touching))))
    last = Ranked(*(_sorted(torch.cat(part)) for part in zip(*far, strict=True)))
    return RankedMap((*bands, last), near, residues)


def _strip(L: int, start: int, end: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows and columns of the pairs with start <= j - i < end."""
    row = torch.arange(L, device=device)[:, None]
    column = row + torch.arange(start, end, device=device)
    inside = column < L
    return row.expand_as(column)[inside], column[inside]


# On the CPU NumPy does these in vector instructions, where the processor has them: two to ten times as fast.


def _length(known: Tensor, rule: LengthRule) -> int:
    """The L of P@L; a residue is resolved when it has a pair with a known label."""
    if rule == "full":
        return len(known)
    if known.device.type == "cpu":
        resolved = np.flatnonzero(known.numpy().any(0) | known.numpy().any(1))
    else:
        resolved = (known.any(0) | known.any(1)).nonzero().squeeze(1).cpu().numpy()
    if rule == "last-resolved":
        return int(resolved[-1]) + 1 if len(resolved) else 0
    return len(resolved)


def _chosen(values: Tensor, mask: Tensor) -> Tensor:
    """The values at which a mask is true, float32."""
    if values.device.type == "cpu":
        return torch.from_numpy(values.float().numpy()[mask.numpy()])
    return values[mask].float()


def _sorted(values: Tensor) -> NDArray[np.float32]:
    """In ascending order, on the host."""
    if values.device.type == "cpu":
        return np.sort(values.numpy())
    return torch.sort(values).values.cpu().numpy()


def predicted_counts(ranked: RankedMap, thresholds: Sequence[float] | NDArray[np.float32]) -> Tensor:
    """Confusion counts by band at each threshold: a pair is predicted when its probability is strictly above it.

    Sums over bands give the counts of the ranges in :data:`contactlm.metrics.scores.RANGES`; sums over proteins give
    pooled counts.

    Args:
        ranked: Of one protein.
        thresholds: T of them; compared in float32.

    Returns:
        int64 (T, 4, 2, 2) on the CPU: ``[[tn, fp], [fn, tp]]``.
    """
    cuts = np.asarray(thresholds, np.float32)
    counts = np.empty((len(cuts), BANDS, 2, 2), np.int64)
    for k, (pairs, contacts) in enumerate(ranked.bands):
        tp = _above(contacts, cuts)
        fp = _above(pairs, cuts) - tp
        counts[:, k, 0, 0], counts[:, k, 0, 1] = len(pairs) - len(contacts) - fp, fp
        counts[:, k, 1, 0], counts[:, k, 1, 1] = len(contacts) - tp, tp
    return torch.from_numpy(counts)


def _above(ordered: NDArray[np.float32], cuts: NDArray[np.float32]) -> NDArray[np.int64]:
    """How many values are strictly above each cut."""
    return len(ordered) - np.searchsorted(ordered, cuts, side="right")


def _from(ordered: NDArray[np.float32], cuts: NDArray[np.float32]) -> NDArray[np.int64]:
    """How many values are not below each cut."""
    return len(ordered) - np.searchsorted(ordered, cuts)


def trivial_counts(ranked: RankedMap) -> Tensor:
    """Confusion counts of the trivial predictor (contact if and only if |i − j| <= 2): int64 (4, 2, 2) on the CPU."""
    counts = []
    for (pairs, contacts), (called, right) in zip(ranked.bands, (ranked.near, *[(0, 0)] * (BANDS - 1)), strict=True):
        wrong, negative = called - right, len(pairs) - len(contacts)
        counts.append([[negative - wrong, wrong], [len(contacts) - right, right]])
    return torch.tensor(counts)


def average_precision(bands: Sequence[Ranked]) -> float:
    """Area under the precision-recall curve as scikit-learn's ``average_precision_score`` takes it.

    Σ_n (R_n − R_{n−1}) P_n over the distinct probabilities, so ties need no order. Recall rises at those of contacts
    alone, so that no other needs to be looked at. Contacts of equal probability have the same precision, that of the
    last of them: the area is the mean of these precisions over the contacts.

    Args:
        bands: Whose pairs are taken together.

    Returns:
        The area, or NaN without a single contact (recall is undefined then).
    """
    contacts = bands[0].contacts if len(bands) == 1 else np.sort(np.concatenate([band.contacts for band in bands]))
    if not len(contacts):
        return math.nan
    called = sum(_from(band.pairs, contacts) for band in bands)
    return float(np.mean(_from(contacts, contacts) / called))


def precision_at(band: Ranked, counts: Sequence[int]) -> list[float]:
    """Precision of the most probable pairs.

    Where the cut falls among pairs of equal probability, the value is the expectation over all their orders; so it
    does not depend on the order of the pairs, on the device, or on chance. Where fewer pairs exist than are to be
    taken, it is the precision of all of them.

    Args:
        band: The pairs.
        counts: How many of them to take.

    Returns:
        A precision for each, NaN when nothing can be taken (no pairs, or a count of 0).
    """
    taken = [min(count, len(band.pairs)) for count in counts]
    cuts = band.pairs[[len(band.pairs) - count for count in taken if count]]
    above, reached, right_above, right_reached = (
        iter(f(part, cuts).tolist()) for part in band for f in (_above, _from)
    )

    def expected(count: int) -> float:  # those above the cut, and so many of those at it, each as likely as the others
        strictly, right = next(above), next(right_above)
        at_cut, right_at_cut = next(reached) - strictly, next(right_reached) - right
        return (right + right_at_cut * (count - strictly) / at_cut) / count

    return [expected(count) if count else math.nan for count in taken]
