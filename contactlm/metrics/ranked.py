"""A protein's scored pairs, put in order once: every score is counted in the ordered probabilities.

A pair is known by its probability, its truth and the band its separation falls into, so that two ascending lists a band
hold all there is to know: those of all its pairs, and those of its contacts. Sorting numbers without carrying places
along takes a third of the time, and every count after it is a binary search for a few values.

All of it happens where the map is: an accelerator is asked for nothing on the way. How many pairs of a map are scored
would have to be asked for; so lists have their full length there, with −1, which is below every cut, in the place of
what is no scored pair. Counts stay integers, every formula is evaluated in float64, probabilities are compared in
float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from contactlm.structure.contacts import TRIVIAL_REACH

# Disjoint bands of |i - j|: 1-5, 6-11, 12-23, >= 24.
BAND_STARTS = (6, 12, 24)
BANDS = len(BAND_STARTS) + 1
_EDGES = (1, *BAND_STARTS)
_NO_PAIR = -1.0
LengthRule = Literal["resolved", "last-resolved", "full"]  # which residues the L of P@L counts


class Ranked(NamedTuple):
    """The pairs of one band, in ascending order; off the CPU the first of each list are −1, and no pairs."""

    pairs: Tensor  # float32 (N,), the probabilities of all of them
    contacts: Tensor  # float32 (P,), those of the pairs that are contacts
    sizes: Tensor  # int64 (2,), how many of each there are

    @classmethod
    def of(cls, probability: Tensor, contact: Tensor) -> Ranked:
        """Put pairs in order: probabilities (N,), and bool (N,), which are contacts."""
        return _ranked(probability.float(), torch.ones_like(contact), contact)


class RankedMap(NamedTuple):
    """The scored pairs of one protein; in a complex, those between chains are in the last band."""

    bands: tuple[Ranked, ...]  # those with |i − j| of 1-5, 6-11, 12-23, >= 24
    near: Tensor  # int64 (2,), pairs that the trivial predictor calls contacts (|i − j| <= 2), and how many of them are
    residues: Tensor  # int64 (), the L of P@L: the number of resolved residues, unless a contract counts otherwise


class Selection(NamedTuple):
    """Which pairs of a protein are scored: for each band where they lie in the flat map, which are, and which touch."""

    places: tuple[Tensor | None, ...]  # int64 (N,) or, of the last band, None: the whole map
    scored: tuple[Tensor, ...]  # bool (N,), or (L, L)
    contacts: tuple[Tensor, ...]  # likewise
    near: Tensor  # as of RankedMap
    residues: Tensor  # likewise

    def rank(self, probability: Tensor) -> RankedMap:
        """Put the pairs of a map (L, L) in order; its values are looked at by :func:`check_probability`."""
        probability = probability.detach().to(self.near.device)
        flat = probability.reshape(-1)
        bands = (
            _ranked(probability if place is None else flat[place], scored, contacts)
            for place, scored, contacts in zip(self.places, self.scored, self.contacts, strict=True)
        )
        return RankedMap(tuple(bands), self.near, self.residues)


def check_probability(*probabilities: Tensor) -> None:
    """Refuse logits."""
    for probability in probabilities:
        if not probability.is_floating_point():
            raise ValueError(f"expected floating-point probabilities, got a tensor of {probability.dtype}")
    extremes = [torch.stack(torch.aminmax(values.detach())).float() for values in probabilities if values.numel()]
    if not extremes:
        return
    for low, high in torch.stack(extremes).tolist():
        if not (low >= 0.0 and high <= 1.0):
            raise ValueError(
                f"expected probabilities in [0, 1], got values from {low:.4g} to {high:.4g}: "
                "these look like logits (or NaN); apply torch.sigmoid first"
            )


def check_maps(probability: Sequence[Tensor], labels: Sequence[Tensor]) -> None:
    """Refuse what are not maps of probabilities and their labels; an accelerator is asked once."""
    for p, y in zip(probability, labels, strict=True):
        if p.ndim != 2 or p.shape[0] != p.shape[1] or p.shape != y.shape:
            raise ValueError(
                f"probability {tuple(p.shape)} and labels {tuple(y.shape)} must both be one protein's (L, L) map"
            )
    check_probability(*probability)


def rank_map(
    probability: Tensor, labels: Tensor, chain_of: Tensor | None = None, length: LengthRule = "resolved"
) -> RankedMap:
    """Put the scored pairs of a map in order, on the device of its labels.

    Arguments are those of :func:`contactlm.metrics.scores.select_pairs`; ``length`` is which residues count as the
    L of P@L: those resolved, all up to the last resolved one, or all.
    """
    check_maps([probability], [labels])
    return select(labels, chain_of, length).rank(probability)


def rank_maps(
    probability: Sequence[Tensor], labels: Sequence[Tensor], chain_of: Sequence[Tensor | None] | None = None
) -> list[RankedMap]:
    """Do so for several proteins; an accelerator is asked once, whether all are probabilities."""
    check_maps(probability, labels)
    chains = [None] * len(labels) if chain_of is None else chain_of
    return [select(y, own).rank(p) for p, y, own in zip(probability, labels, chains, strict=True)]


def select(labels: Tensor, chain_of: Tensor | None = None, length: LengthRule = "resolved") -> Selection:
    """Choose the pairs that are scored; the arguments are those of :func:`rank_map`."""
    labels = labels.detach()
    L, device = len(labels), labels.device
    known, contact = labels >= 0, labels == 1
    far = _triangle(L, _EDGES[-1], device)
    chain_of = None if chain_of is None else chain_of.to(device)
    if chain_of is not None:
        far = far | (_triangle(L, 1, device) & (chain_of[:, None] != chain_of))
    flat_known, flat_contact = known.reshape(-1), contact.reshape(-1)
    places: list[Tensor | None] = []
    chosen: list[tuple[Tensor, Tensor]] = []
    near = torch.zeros(2, dtype=torch.int64, device=device)
    for start, end in zip(_EDGES, BAND_STARTS, strict=False):
        row, column, inside = _strip(L, start, end, device)
        place = row * L + column
        scored, touching = flat_known[place], flat_contact[place]
        if inside is not None:
            scored = scored & inside
        if chain_of is not None:
            scored = scored & (chain_of[row] == chain_of[column])
        touching = touching & scored
        if start == 1:
            reach = column - row <= TRIVIAL_REACH
            near = torch.stack([(scored & reach).sum(), (touching & reach).sum()])
        places.append(place)
        chosen.append((scored, touching))
    chosen.append((known & far, contact & far))
    scored_of, contacts_of = zip(*chosen, strict=True)
    return Selection((*places, None), scored_of, contacts_of, near, _length(known, length))


def by_numpy(tensor: Tensor) -> bool:
    """Whether a tensor lies where NumPy can work on it: it sorts and selects two to ten times as fast as PyTorch."""
    return tensor.device.type == "cpu"


def _triangle(L: int, start: int, device: torch.device) -> Tensor:
    """Bool (L, L), true where j − i >= start."""
    return torch.ones(L, L, dtype=torch.bool, device=device).triu(start)


def _strip(L: int, start: int, end: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
    """Rows and columns of the pairs with start <= j - i < end, and which of them there are; None: all."""
    if device.type == "cpu":
        first, apart = np.arange(L)[:, None], np.arange(start, end)
        there = first < L - apart
        rows, columns = np.broadcast_to(first, there.shape)[there], (first + apart)[there]
        return torch.from_numpy(rows), torch.from_numpy(columns), None
    row = torch.arange(L, device=device)[:, None]
    column = row + torch.arange(start, end, device=device)
    inside, row = column < L, row.expand_as(column)
    return row.flatten(), column.clamp(max=max(L - 1, 0)).flatten(), inside.flatten()


def _length(known: Tensor, rule: LengthRule) -> Tensor:
    """The L of P@L; a residue is resolved when it has a pair with a known label."""
    if rule == "full":
        return torch.tensor(len(known), device=known.device)
    if by_numpy(known):
        resolved = torch.from_numpy(known.numpy().any(0) | known.numpy().any(1))
    else:
        resolved = known.any(0) | known.any(1)
    if rule == "resolved":
        return resolved.sum()
    places = torch.arange(1, len(known) + 1, device=known.device) * resolved
    return places.max() if len(known) else resolved.sum()


def _ranked(values: Tensor, scored: Tensor, contacts: Tensor) -> Ranked:
    """Put those values in order at which a mask is true, and those at which the other one is."""
    if by_numpy(values):
        lists = [np.sort(values.float().numpy()[mask.numpy()]) for mask in (scored, contacts)]
        pairs, touching = map(torch.from_numpy, lists)
        return Ranked(pairs, touching, torch.tensor([len(part) for part in lists]))
    pairs, touching = (
        torch.where(mask, values.float(), _NO_PAIR).flatten().sort().values for mask in (scored, contacts)
    )
    return Ranked(pairs, touching, torch.stack([scored.sum(), contacts.sum()]))


def predicted_counts(ranked: RankedMap, thresholds: Sequence[float]) -> Tensor:
    """Confusion counts by band at each of T thresholds: int64 (T, 4, 2, 2), ``[[tn, fp], [fn, tp]]``.

    A pair is predicted when its probability is strictly above the threshold, compared in float32.
    """
    cuts = cuts_on(tuple(thresholds), ranked.near.device)
    called, tp = (torch.stack([above(band[part], cuts) for band in ranked.bands], dim=1) for part in (0, 1))
    pairs, positive = torch.stack([band.sizes for band in ranked.bands]).unbind(1)
    fp, fn = called - tp, positive - tp
    return torch.stack([pairs - called - fn, fp, fn, tp], dim=-1).view(-1, BANDS, 2, 2)


@lru_cache(maxsize=64)
def cuts_on(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Values to compare probabilities with, float32, on a device, where they stay."""
    return torch.empty(len(values), device=device).copy_(torch.tensor(values, dtype=torch.float32))


def above(ordered: Tensor, cuts: Tensor) -> Tensor:
    """How many values are strictly above each cut, which is not negative."""
    return _from(ordered, cuts, "right")


def reaching(ordered: Tensor, cuts: Tensor) -> Tensor:
    """How many values are not below each cut, which is not negative."""
    return _from(ordered, cuts, "left")


def _from(ordered: Tensor, cuts: Tensor, side: Literal["left", "right"]) -> Tensor:
    """How many values of a list there are from where each cut would stand."""
    if by_numpy(ordered):  # NumPy continues from the last cut's place where cuts ascend
        values = ordered.numpy()
        return torch.from_numpy(values.size - values.searchsorted(cuts.numpy(), side))
    return len(ordered) - torch.searchsorted(ordered, cuts, side=side)


def trivial_counts(ranked: RankedMap) -> Tensor:
    """Confusion counts of the trivial predictor (contact if and only if |i − j| <= 2): int64 (4, 2, 2)."""
    pairs, contacts = torch.stack([band.sizes for band in ranked.bands]).unbind(1)
    called, right = (torch.nn.functional.pad(count[None], (0, BANDS - 1)) for count in ranked.near)
    wrong = called - right
    return torch.stack([pairs - contacts - wrong, wrong, contacts - right, right], dim=-1).view(BANDS, 2, 2)


def average_precision(bands: Sequence[Ranked]) -> Tensor:
    """Area under the precision-recall curve as scikit-learn's ``average_precision_score`` takes it.

    Σ_n (R_n − R_{n−1}) P_n over the distinct probabilities, so ties need no order. Recall rises at those of contacts
    alone, so that no other needs to be looked at. Contacts of equal probability have the same precision, that of the
    last of them: the area is the mean of these precisions over the contacts, float64 (); NaN without any.
    """
    contacts = bands[0].contacts
    if len(bands) > 1:
        joined = torch.cat([band.contacts for band in bands])
        contacts = torch.from_numpy(np.sort(joined.numpy())) if by_numpy(joined) else joined.sort().values
    called = sum(reaching(band.pairs, contacts) for band in bands)
    precision = reaching(contacts, contacts).double() / called
    total = sum(band.sizes[1] for band in bands)
    return torch.where(contacts >= 0, precision, 0.0).sum() / total


def precision_at(bands: Sequence[Ranked], counts: Tensor | Sequence[int]) -> Tensor:
    """Precision of the ``counts`` (n,) most probable pairs of each band, float64 (bands, n).

    Where the cut falls among pairs of equal probability, the value is the expectation over all their orders. Where
    fewer pairs exist than are to be taken, it is the precision of all of them; NaN where nothing can be taken.
    """
    wanted = torch.as_tensor(counts, device=bands[0].sizes.device)
    taken = torch.minimum(wanted, torch.stack([band.sizes[:1] for band in bands]))
    cuts = [_cut(own, count) for own, count in zip(bands, taken, strict=True)]
    over, reached = (
        torch.stack([count(part, cut) for own, cut in zip(bands, cuts, strict=True) for part in own[:2]])
        for count in (above, reaching)
    )
    over, reached = over.view(len(bands), 2, -1), reached.view(len(bands), 2, -1)
    # those above the cut, and so many of those at it, each as likely as the others
    at_cut = (reached - over).double()
    expected = over[:, 1] + at_cut[:, 1] * (taken - over[:, 0]) / at_cut[:, 0]
    return torch.where(taken > 0, expected / taken, torch.nan)


def _cut(band: Ranked, taken: Tensor) -> Tensor:
    """The least probability among the pairs that are taken; 0 where there are none."""
    if not len(band.pairs):
        return torch.zeros(taken.shape, device=taken.device)
    return band.pairs[(len(band.pairs) - taken).clamp(max=len(band.pairs) - 1)]
