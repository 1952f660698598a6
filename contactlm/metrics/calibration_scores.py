"""How far probabilities can be believed: reliability, calibration error, Brier score and log loss of a set of proteins.

All pairs of all proteins are taken together, as scikit-learn's ``calibration_curve``, ``brier_score_loss`` and
``log_loss`` take them; only pairs at least 6 residues apart (or of different chains) count.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from contactlm.metrics.calibration import (
    LEAST,
    LOGIT_BINS,
    Calibration,
    bin_logits,
    fit_bands,
    fit_confidence,
    logit,
)
from contactlm.metrics.protein_states import Maps, ProteinStates, protein_lists
from contactlm.metrics.ranked import (
    BANDS,
    Ranked,
    RankedMap,
    above,
    by_numpy,
    cuts_on,
    precision_at,
    predicted_counts,
    rank_maps,
    reaching,
)
from contactlm.metrics.scores import RANGES, mcc, nan_mean, threshold_grid, tune_threshold

BINS = 10  # of equal width, as reliability diagrams have them
SCORED = ("sep6", "short", "medium", "long")
CONFIDENCE = "predicted_p_at_L_long"


class CalibrationScores(ProteinStates):
    """Reliability of a set of proteins, and what a calibration is fitted to; about 9 KB per protein.

    A calibration is applied before anything is counted; None: probabilities as they are.
    """

    def __init__(self, calibration: Calibration | None = None, **kwargs: Any) -> None:
        rows = {
            "bins": ((BANDS, BINS, 3), torch.float32),  # pairs, contacts, sum of probabilities
            "losses": ((BANDS, 2), torch.float32),  # sums of squared errors and of log losses
            "histogram": ((BANDS, 2, LOGIT_BINS), torch.int32),
            "counts": ((BANDS, 2, 2), torch.int64),  # at the threshold 0.5
            "top": ((2,), torch.float32),  # mean probability of the top L long-range pairs, and their precision
            "residues": ((), torch.float32),  # that are resolved
            "expected": ((), torch.float32),  # that precision as the calibration foretells it
            "key": ((2,), torch.int64),  # index in the data set, and a checksum of the id
        }
        super().__init__(rows, **kwargs)
        self.calibration = calibration
        self._all: dict[str, Tensor] = {}  # of all processes, each protein once

    def update(
        self,
        probability: Maps,
        labels: Maps,
        ids: Sequence[str],
        indices: Sequence[int] | None = None,
        chain_of: Sequence[Tensor] | None = None,
        ranked: Sequence[RankedMap] | None = None,
    ) -> None:
        """Add proteins; the arguments and errors are those of :meth:`contactlm.metrics.ContactScores.update`."""
        numbers = [-1] * len(ids) if indices is None else [int(index) for index in indices]
        chains: Sequence[Tensor | None] = [None] * len(ids) if chain_of is None else chain_of
        maps, truths = protein_lists(probability, labels)
        if ranked is None:
            ranked = rank_maps(maps, truths, chain_of)
        for p, pairs, name, index, own in zip(maps, ranked, ids, numbers, chains, strict=True):
            expected = None if self.calibration is None else self.calibration.expected_precision(p.detach(), own)
            self.append("expected", torch.full((1,), math.nan, device=p.device) if expected is None else expected[None])
            self._add(pairs)
            self.append("key", torch.tensor([[index, _checksum(name)]]))

    def _add(self, ranked: RankedMap) -> None:
        long = ranked.bands[-1]
        taken = torch.minimum(ranked.residues, long.sizes[0])
        mean = _sum_of_places(long.pairs, len(long.pairs) - taken, len(long.pairs)) / taken
        self.append("top", torch.stack([mean, precision_at([long], ranked.residues[None])[0, 0]])[None])
        self.append("residues", ranked.residues.float().reshape(1))
        if self.calibration is not None:
            ranked = _calibrated(self.calibration, ranked)
        self.append("bins", _reliability_sums(ranked.bands)[None])
        self.append("losses", _loss_sums(ranked.bands)[None])
        self.append("histogram", _logit_histogram(ranked.bands)[None])
        self.append("counts", predicted_counts(ranked, [0.5]))

    def compute(self) -> dict[str, float]:
        """Scores of each range, such as ``ece_sep6``, ``brier_sep6`` and ``log_loss_sep6``; NaN without pairs.

        The expected calibration error is the mean distance of the bins' mean probability and share of contacts,
        weighted by their pairs.
        """
        first: dict[tuple[int, ...], int] = {}
        for row, key in enumerate(self.gathered("key").tolist()):
            first.setdefault(tuple(key), row)
        kept = [first[key] for key in sorted(first)]
        self._all = {name: self.gathered(name)[kept] for name in self._row_shapes}
        bins, losses = (self._all[name].double().sum(0) for name in ("bins", "losses"))
        scores = {}
        for name in SCORED:
            pairs, contacts, sums = bins[RANGES[name]].sum(0).unbind(-1)
            total = float(pairs.sum())
            squared, log_loss = losses[RANGES[name]].sum(0).tolist()
            scores[f"ece_{name}"] = float((sums - contacts).abs().sum()) / total if total else math.nan
            scores[f"brier_{name}"] = squared / total if total else math.nan
            scores[f"log_loss_{name}"] = log_loss / total if total else math.nan
        return scores

    def reliability(self) -> list[dict[str, Any]]:
        """The points of reliability diagrams: a row for each range and bin that has pairs.

        Like all that follows, on several ranks a collective call unless :meth:`compute` was called before.
        """
        bins = self._complete()["bins"].double().sum(0)
        rows = []
        for name in SCORED:
            for k, (pairs, contacts, sums) in enumerate(bins[RANGES[name]].sum(0).tolist()):
                if pairs:
                    edges = {"range": name, "low": k / BINS, "high": (k + 1) / BINS, "pairs": int(pairs)}
                    rows.append({**edges, "mean_probability": sums / pairs, "contacts": contacts / pairs})
        return rows

    def mcc_rows(self) -> list[float]:
        """Each protein's ``mcc_sep6`` at the threshold 0.5."""
        counts = self._complete()["counts"][:, RANGES["sep6"]].sum(1)
        return mcc(counts)[0].tolist()

    def confidence_rows(self) -> list[dict[str, float]]:
        """Each protein's precision of the top L long-range pairs, and as the calibration foretells it (else NaN)."""
        found = self._complete()
        expected, top = found["expected"].tolist(), found["top"][:, 1].tolist()
        return [{CONFIDENCE: a, "p_at_L_long": b} for a, b in zip(expected, top, strict=True)]

    def with_columns(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Add ``mcc_sep6_calibrated`` and ``predicted_p_at_L_long`` to the rows of the same proteins."""
        found = self._complete()
        own = zip(found["key"].tolist(), self.mcc_rows(), found["expected"].tolist(), strict=True)
        by_key = {tuple(key): {"mcc_sep6_calibrated": value, CONFIDENCE: expected} for key, value, expected in own}
        return [row | by_key[row["index"], _checksum(row["id"])] for row in rows]

    def confidence_scores(self) -> dict[str, float]:
        """Mean difference and distance of predicted and true precisions."""
        errors = [row[CONFIDENCE] - row["p_at_L_long"] for row in self.confidence_rows()]
        known = [error for error in errors if error == error]
        if not known:
            return {}
        return {"confidence_bias": nan_mean(known), "confidence_error": nan_mean([abs(error) for error in known])}

    def fit(self) -> Calibration | None:
        """Fit a calibration to these proteins; None without any pair to fit it to."""
        histogram, top = (self._complete()[name] for name in ("histogram", "top"))
        if not bool(histogram.any()):
            return None
        plain = Calibration("platt", *fit_bands(histogram.sum(0, dtype=torch.int64)))
        confidence = fit_confidence(top[:, 0], top[:, 1])
        threshold, residues = _calibrated_threshold(plain, histogram), self._complete()["residues"]
        predicted, totals = _called(plain, histogram, torch.tensor([threshold], dtype=torch.float64))
        share = predicted.sum(1)[:, 0] / totals.sum((1, 2)).clamp(min=1)
        lengths, called = ((float(values.min()), float(values.max())) for values in (residues, share))
        return replace(plain, threshold=threshold, confidence=confidence, lengths=lengths, called=called)

    def _complete(self) -> dict[str, Tensor]:
        self.compute()
        return self._all


def _calibrated(calibration: Calibration, ranked: RankedMap) -> RankedMap:
    """Calibrate the pairs of a protein: within a range their order stays."""

    def moved(values: Tensor, band: int) -> Tensor:
        calibrated = torch.sigmoid(calibration.slope[band] * logit(values) + calibration.bias[band])
        return torch.where(values >= 0, calibrated, values)

    bands = (Ranked(moved(own.pairs, k), moved(own.contacts, k), own.sizes) for k, own in enumerate(ranked.bands))
    return ranked._replace(bands=tuple(bands))


def _sum_of_places(ordered: Tensor, start: Tensor, stop: Tensor | int) -> Tensor:
    """Sum of the values at places start … stop − 1, float64 ()."""
    if by_numpy(ordered):
        return ordered[int(start) : int(stop)].sum(dtype=torch.float64)
    place = torch.arange(len(ordered), device=ordered.device)
    return torch.where((place >= start) & (place < stop), ordered, 0.0).sum(dtype=torch.float64)


def _over_edges(band: Ranked, edges: Tensor, count: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """How many pairs and contacts are over each edge, all at the start and none at the end: int64 (2, bins + 1)."""
    over = torch.stack([count(part, edges) for part in (band.pairs, band.contacts)])
    return torch.cat([band.sizes[:, None], over, torch.zeros_like(band.sizes[:, None])], dim=1)


def _reliability_sums(bands: Sequence[Ranked]) -> Tensor:
    """Sum up pairs by range and bin: float64 (4, 10, 3) of pairs, contacts and probabilities.

    A probability on a bin's edge is in the lower bin, as of scikit-learn's ``calibration_curve``.
    """
    edges = cuts_on(_BIN_EDGES, bands[0].sizes.device)
    sums = []
    for band in bands:
        over = _over_edges(band, edges, above)
        of_bins = [_sum_of_places(band.pairs, *bounds) for bounds in pairwise(len(band.pairs) - over[0])]
        sums.append(torch.stack([*-over.diff(dim=1).double(), torch.stack(of_bins)], dim=-1))
    return torch.stack(sums)


def _bin_edges() -> tuple[float, ...]:
    """The largest float32 not above each edge: what is compared with them falls on the same side."""
    edges = np.linspace(0, 1, BINS + 1)[1:-1]
    rounded = edges.astype(np.float32)
    return tuple(np.where(rounded > edges, np.nextafter(rounded, np.float32(0)), rounded).tolist())


_BIN_EDGES = _bin_edges()
_LOGIT_EDGES = tuple(torch.sigmoid((bin_logits()[1:] + bin_logits()[:-1]) / 2).float().tolist())


def _loss_sums(bands: Sequence[Ranked]) -> Tensor:
    """Sums of squared errors and of log losses by range, float64 (4, 2)."""

    def total(values: Tensor, of: Tensor) -> Tensor:  # what stands in the place of no pair is left out
        return (values if by_numpy(of) else torch.where(of >= 0, values, 0.0)).sum(dtype=torch.float64)

    sums = []
    for pairs, contacts, _ in bands:
        p, hit = (part.clamp(LEAST, 1 - LEAST) for part in (pairs, contacts))
        squared = total(pairs.double().square(), pairs) + total(1 - 2 * contacts.double(), contacts)
        log_loss = total((-hit).log1p() - hit.log(), contacts) - total((-p).log1p(), pairs)
        sums.append(torch.stack([squared, log_loss]))
    return torch.stack(sums)


def _logit_histogram(bands: Sequence[Ranked]) -> Tensor:
    """Count pairs by range, truth (other, contact) and log-odds: int32 (4, 2, 256)."""
    edges = cuts_on(_LOGIT_EDGES, bands[0].sizes.device)
    every, contacts = torch.stack([-_over_edges(band, edges, reaching).diff(dim=1) for band in bands]).unbind(1)
    return torch.stack([every - contacts, contacts], dim=1).int()


def _calibrated_threshold(calibration: Calibration, histogram: Tensor) -> float:
    """The calibrated probability with the best protein-wise mean ``mcc_sep6``, to 0.001.

    The histogram is int32 (n proteins, 4, 2, 256), before calibration.
    """
    predicted, totals = _called(calibration, histogram, threshold_grid().double())
    counts = torch.stack([totals - predicted, predicted], dim=-1).transpose(1, 2)  # (n, 999, 2, 2)
    return tune_threshold(mcc(counts)[0])[0]


def _called(calibration: Calibration, histogram: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs at |i − j| ≥ 6 above each of t thresholds, and all: int64 (n, 2, t) and (n, 2, 1), others and contacts."""
    bands = range(1, BANDS)
    values = torch.cat([torch.sigmoid(calibration.slope[b] * bin_logits() + calibration.bias[b]) for b in bands])
    called = (values > thresholds[:, None]).float()  # (t, 3 · 256)
    far = histogram[:, 1:].transpose(1, 2).flatten(2).float()  # (n, 2, 3 · 256)
    return (far @ called.T).round().long(), far.double().sum(-1, keepdim=True).long()


def _checksum(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:7], "big")
