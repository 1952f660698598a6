"""Scores of one protein's contact map, as pure functions, and the best decision threshold of a set of proteins.

Every score is taken over the upper triangle (i < j) and over pairs whose label is known (0 or 1). The ranges are
those of CASP: short 6-11, medium 12-23 and long >= 24 residues apart. A pair counts as predicted when its probability
is strictly above the threshold, compared in float32. :mod:`contactlm.metrics.ranked` ranks pairs and counts them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from contactlm.metrics.ranked import (
    Ranked,
    RankedMap,
    average_precision,
    check_maps,
    precision_at,
    predicted_counts,
    rank_map,
)
from contactlm.structure.contacts import TRIVIAL_REACH

# Every range is a run of the bands of |i - j|: 1-5, 6-11, 12-23, >= 24.
RANGES: dict[str, slice] = {
    "": slice(0, 4),
    "sep6": slice(1, 4),
    "short": slice(1, 2),
    "medium": slice(2, 3),
    "long": slice(3, 4),
}
TOP_FRACTIONS = (1, 2, 5)  # P@L, P@L/2, P@L/5
ACROSS_CHAINS = 2**30  # separation of residues of different chains: farther than any within a chain


class Pairs(NamedTuple):
    """The N scored pairs of one protein, in row-major order of (i, j)."""

    probability: Tensor  # float32 (N,)
    contact: Tensor  # bool (N,), the truth
    separation: Tensor  # int32 (N,), j - i >= 1; ACROSS_CHAINS between chains of a complex
    residues: int  # resolved ones: the L of P@L

    def within(self, min_separation: int, max_separation: int | None = None) -> Pairs:
        """Keep the pairs with ``min_separation <= j - i <= max_separation`` (None: no upper limit)."""
        keep = self.separation >= min_separation
        if max_separation is not None:
            keep &= self.separation <= max_separation
        return Pairs(self.probability[keep], self.contact[keep], self.separation[keep], self.residues)


def check_threshold(threshold: float) -> float:
    """Return the threshold, or raise ValueError when it is outside [0, 1]."""
    if not 0.0 <= threshold <= 1.0:
        raise ValueError(f"threshold is {threshold}: it is compared with probabilities and must lie in [0, 1]")
    return float(threshold)


def select_pairs(probability: Tensor, labels: Tensor, chain_of: Tensor | None = None) -> Pairs:
    """Take the scored pairs out of a map.

    A residue counts as resolved when the label of any pair it belongs to is known. Sequence separation means nothing
    between two chains: such pairs count as far apart, so they are in every range without an upper end.

    Args:
        probability: Floating point (L, L) in [0, 1]; only its upper triangle is scored.
        labels: (L, L), 1 contact, 0 none, negative unknown; on the same device.
        chain_of: Of a complex, each residue's chain number, (L,); None: a single chain.
    """
    check_maps([probability], [labels])
    probability, labels = probability.detach(), labels.detach()
    known = labels >= 0
    residues = int((known.any(0) | known.any(1)).sum())
    index = known.triu_(1).flatten().nonzero().squeeze(1)
    L = labels.shape[0]
    row, column = index // max(L, 1), index % max(L, 1)
    separation = (column - row).int()
    if chain_of is not None:
        chain_of = chain_of.to(index.device)
        separation[chain_of[row] != chain_of[column]] = ACROSS_CHAINS
    contact = labels.flatten()[index] == 1
    return Pairs(probability.flatten()[index].float(), contact, separation, residues)


def trivial_probability(L: int, device: torch.device | str | None = None) -> Tensor:
    """The predictor that knows nothing: contact if and only if |i - j| <= 2; float32 (L, L) of 0 and 1."""
    position = torch.arange(L, device=device)
    return ((position[:, None] - position[None, :]).abs() <= TRIVIAL_REACH).float()


def confusion(pairs: Pairs, threshold: float = 0.5) -> Tensor:
    """Count the pairs by truth and prediction: int64 (2, 2) on the CPU, ``[[tn, fp], [fn, tp]]``."""
    code = pairs.contact.to(torch.uint8) * 2 + (pairs.probability > threshold)
    return torch.bincount(code, minlength=4).view(2, 2).cpu()


def mcc(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Matthews correlation coefficient (Matthews 1975) of confusion counts.

    (tp·tn − fp·fn) / sqrt((tp+fp)(tp+fn)(tn+fp)(tn+fn)); 0 where the denominator is 0, that is where truth or
    prediction knows one class only.

    Args:
        counts: Integers (..., 2, 2), ``[[tn, fp], [fn, tp]]``.

    Returns:
        The coefficient, float64 (...), and whether it is undefined, bool (...).
    """
    c = counts.double()
    tn, fp, fn, tp = c[..., 0, 0], c[..., 0, 1], c[..., 1, 0], c[..., 1, 1]
    # Paired so that a perfect prediction gives exactly 1: both roots are then of squares.
    denominator = ((tp + fp) * (tp + fn)).sqrt() * ((tn + fp) * (tn + fn)).sqrt()
    undefined = denominator == 0
    value = (tp * tn - fp * fn) / denominator.masked_fill(undefined, 1.0)
    return value.masked_fill(undefined, 0.0).clamp(-1.0, 1.0), undefined


def precision_at_l(pairs: Pairs, k: int = 1) -> float:
    """P@L/k: precision of the ⌊L/k⌋ most probable pairs, L being the number of resolved residues.

    See :func:`contactlm.metrics.ranked.precision_at` for ties, for too few pairs, and for NaN (no pairs, or L < k).
    """
    return float(precision_at([Ranked.of(pairs.probability, pairs.contact)], [pairs.residues // k]))


def precision_name(fraction: int, name: str) -> str:
    """The logged name of P@L/fraction in a range, such as ``p_at_L5_long``."""
    return f"p_at_L{'' if fraction == 1 else fraction}_{name}"


RANKED_RANGES: tuple[str, ...] = ("short", "medium", "long")
MCC_NAMES: tuple[str, ...] = tuple(f"mcc_{name}".rstrip("_") for name in RANGES)
MAIN_NAMES = ("mcc", "mcc_sep6", "mcc_long", "p_at_L_long", "p_at_L5_long", "auprc_sep6")  # given for subsets, too
RANKING_NAMES: tuple[str, ...] = (
    *(precision_name(fraction, name) for name in RANKED_RANGES for fraction in TOP_FRACTIONS),
    *(f"auprc_{name}" for name in ("sep6", *RANKED_RANGES)),
    *(f"r_precision_{name}" for name in RANKED_RANGES),
)


def range_counts(bands: Tensor) -> Tensor:
    """Add up bands (..., 4, 2, 2) to the ranges in the order of :data:`MCC_NAMES`: (..., 5, 2, 2)."""
    return torch.stack([bands[..., bands_of, :, :].sum(-3) for bands_of in RANGES.values()], dim=-3)


def ranking_values(ranked: RankedMap) -> Tensor:
    """The scores that need no threshold, float64 (16,), as :data:`RANKING_NAMES` has them; NaN where undefined."""
    far = ranked.bands[RANGES["sep6"]]
    taken = torch.stack([ranked.residues // fraction for fraction in TOP_FRACTIONS])
    areas = [average_precision(far), *(average_precision([band]) for band in far)]
    as_many = [precision_at([band], band.sizes[1:]).flatten() for band in far]
    return torch.cat([precision_at(far, taken).flatten(), torch.stack(areas), *as_many])


def mcc_scores(bands: Tensor) -> dict[str, float]:
    """MCC by range of counts by band, int64 (4, 2, 2), and each ``<name>_undefined`` (1 where its denominator is 0)."""
    values, undefined = mcc(range_counts(bands))
    scores = dict(zip(MCC_NAMES, values.tolist(), strict=True))
    flags = {f"{name}_undefined": float(flag) for name, flag in zip(MCC_NAMES, undefined.tolist(), strict=True)}
    return scores | flags


def score_protein(
    probability: Tensor, labels: Tensor, threshold: float = 0.5, chain_of: Tensor | None = None
) -> dict[str, float]:
    """Score one protein's contact map.

    Args:
        probability: Floating point (L, L) in [0, 1]; only its upper triangle is scored.
        labels: (L, L), 1 contact, 0 none, negative unknown; on the same device.
        threshold: A pair is predicted to be a contact when its probability is above it.
        chain_of: Of a complex, each residue's chain number, (L,): see :func:`select_pairs`.

    Returns:
        ``residues`` (resolved ones); ``mcc`` (|i−j| >= 1), ``mcc_sep6``, ``mcc_short``, ``mcc_medium``, ``mcc_long``,
        each with ``…_undefined`` (1 where MCC's denominator is 0, and MCC then 0); ``p_at_L_short``,
        ``p_at_L2_short``, ``p_at_L5_short``, ``r_precision_short`` (the precision of as many pairs as there are
        contacts) and the same for medium and long; ``auprc_sep6``, ``auprc_short``,
        ``auprc_medium``, ``auprc_long``. A precision is NaN where the range has no pairs or ⌊L/k⌋ is 0, an AUPRC
        where the range has no contacts.
    """
    ranked = rank_map(probability, labels, chain_of)
    by_threshold = mcc_scores(predicted_counts(ranked, [check_threshold(threshold)])[0])
    by_rank = dict(zip(RANKING_NAMES, ranking_values(ranked).tolist(), strict=True))
    return {"residues": float(ranked.residues)} | by_threshold | by_rank


def nan_mean(values: Sequence[float]) -> float:
    """Mean of the values that are not NaN; NaN where there is none."""
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan


def means_by(strata: Mapping[str, Sequence[Mapping[str, Any]]], names: Iterable[str]) -> dict[str, float]:
    """Means over the proteins of each stratum, as ``name@stratum``; and their number, ``proteins@stratum``."""
    scores: dict[str, float] = {}
    for stratum, rows in strata.items():
        scores |= {f"{name}@{stratum}": nan_mean([row[name] for row in rows]) for name in names}
        scores[f"proteins@{stratum}"] = float(len(rows))
    return scores


def mean_scores(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Protein-wise means of :func:`score_protein` results, of each score over the proteins where it is not NaN.

    As ``<name>_undefined`` the number of proteins where it is undefined; ``proteins``, and ``residues`` in all.
    """
    rows = list(rows)
    result = {"proteins": float(len(rows)), "residues": math.fsum(row["residues"] for row in rows)}
    for name in (*MCC_NAMES, *RANKING_NAMES):
        result[name] = nan_mean([row[name] for row in rows])
        flags = [row.get(f"{name}_undefined", float(math.isnan(row[name]))) for row in rows]
        result[f"{name}_undefined"] = math.fsum(flags)
    return result


THRESHOLD_STEPS = 1000


def threshold_grid() -> Tensor:
    """The thresholds that tuning tries: 0.001, 0.002, … 0.999, float32 (999,)."""
    return (torch.arange(1, THRESHOLD_STEPS, dtype=torch.float64) / THRESHOLD_STEPS).float()


GRID = tuple(threshold_grid().tolist())


def tune_threshold(curves: Tensor) -> tuple[float, float]:
    """The threshold with the best protein-wise mean MCC, of equals the one nearest to 0.5; and the mean MCC there.

    ``curves`` (n proteins, 999) are each protein's MCC at every threshold of :func:`threshold_grid`.
    """
    if curves.shape[0] == 0:
        raise ValueError("no protein to tune the threshold on")
    mean = curves.cpu().double().mean(0)
    best = (mean == mean.max()).nonzero().squeeze(1)
    chosen = int(best[(best + 1 - THRESHOLD_STEPS // 2).abs().argmin()])
    return (chosen + 1) / THRESHOLD_STEPS, float(mean[chosen])
