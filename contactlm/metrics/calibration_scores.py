"""How far probabilities can be believed: reliability, calibration error, Brier score and log loss of a set of proteins.

All pairs of all proteins are taken together, as scikit-learn's ``calibration_curve``, ``brier_score_loss`` and
``log_loss`` take them; only pairs at least 6 residues apart (or of different chains) count.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
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
from contactlm.metrics.protein_states import Maps, ProteinStates, each_protein
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
    """Reliability of a set of proteins, and what a calibration is fitted to.

    Remembers about 9 KB per protein.

    Args:
        calibration: Applied before anything is counted; None: probabilities as they are.
        **kwargs: For ``torchmetrics.Metric``.
    """

    def __init__(self, calibration: Calibration | None = None, **kwargs: Any) -> None:
        rows = {
            "bins": ((BANDS, BINS, 3), torch.float32),  # pairs, contacts, sum of probabilities
            "losses": ((BANDS, 2), torch.float32),  # sums of squared errors and of log losses
            "histogram": ((BANDS, 2, LOGIT_BINS), torch.int32),
            "counts": ((BANDS, 2, 2), torch.int64),  # at the threshold 0.5
            "top": ((2,), torch.float32),  # mean probability of the top L long-range pairs, and their precision
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
        maps = list(each_protein(probability, labels))
        if ranked is None:
            ranked = rank_maps([p for p, _ in maps], [y for _, y in maps], chain_of)
        for (p, _), pairs, name, index, own in zip(maps, ranked, ids, numbers, chains, strict=True):
            expected = None if self.calibration is None else self.calibration.expected_precision(p.detach(), own)
            self.append("expected", torch.full((1,), math.nan, device=p.device) if expected is None else expected[None])
            self._add(pairs)
            self.append("key", torch.tensor([[index, _checksum(name)]]))

    def _add(self, ranked: RankedMap) -> None:
        long = ranked.bands[-1]
        taken = torch.minimum(ranked.residues, long.sizes[0])
        mean = sum_of_places(long.pairs, len(long.pairs) - taken, len(long.pairs)) / taken
        self.append("top", torch.stack([mean, precision_at([long], ranked.residues[None])[0, 0]])[None])
        if self.calibration is not None:
            ranked = calibrated_pairs(self.calibration, ranked)
        self.append("bins", reliability_sums(ranked.bands)[None])
        self.append("losses", loss_sums(ranked.bands)[None])
        self.append("histogram", logit_histogram(ranked.bands)[None])
        self.append("counts", predicted_counts(ranked, [0.5]))

    def compute(self) -> dict[str, float]:
        """Scores of each range.

        Returns:
            ``ece_sep6`` (expected calibration error: the mean distance of the bins' mean probability and share of
            contacts, weighted by their pairs), ``brier_sep6`` and ``log_loss_sep6``, and the same for ``short``,
            ``medium`` and ``long``; NaN for a range without pairs.
        """
        kept = self._distinct()
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
        told, top = found["expected"].tolist(), found["top"][:, 1].tolist()
        return [{CONFIDENCE: a, "p_at_L_long": b} for a, b in zip(told, top, strict=True)]

    def with_columns(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Add ``mcc_sep6_calibrated`` and ``predicted_p_at_L_long`` to the rows of the same proteins."""
        keys = (tuple(key) for key in self._complete()["key"].tolist())
        columns = [
            {"mcc_sep6_calibrated": value, CONFIDENCE: told[CONFIDENCE]}
            for value, told in zip(self.mcc_rows(), self.confidence_rows(), strict=True)
        ]
        by_key = dict(zip(keys, columns, strict=True))
        return [row | by_key[row["index"], _checksum(row["id"])] for row in rows]

    def confidence_scores(self) -> dict[str, float]:
        """Reliability of the predicted precision: mean of what was foretold minus what came, and mean distance."""
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
        return replace(plain, threshold=calibrated_threshold(plain, histogram), confidence=confidence)

    def _complete(self) -> dict[str, Tensor]:
        self.compute()
        return self._all

    def _distinct(self) -> list[int]:
        """Row numbers of the proteins, each once, sorted by index and id."""
        first: dict[tuple[int, int], int] = {}
        for row, key in enumerate(self.gathered("key").tolist()):
            first.setdefault((key[0], key[1]), row)
        return [first[key] for key in sorted(first)]


def calibrated_pairs(calibration: Calibration, ranked: RankedMap) -> RankedMap:
    """Calibrate the pairs of a protein: within a range their order stays."""

    def moved(values: Tensor, band: int) -> Tensor:
        calibrated = torch.sigmoid(calibration.slope[band] * logit(values) + calibration.bias[band])
        return torch.where(values >= 0, calibrated, values)

    bands = (Ranked(moved(own.pairs, k), moved(own.contacts, k), own.sizes) for k, own in enumerate(ranked.bands))
    return ranked._replace(bands=tuple(bands))


def sum_of_places(ordered: Tensor, start: Tensor, stop: Tensor | int) -> Tensor:
    """Sum of the values at places start … stop − 1, float64 ()."""
    if by_numpy(ordered):
        return ordered[int(start) : int(stop)].sum(dtype=torch.float64)
    place = torch.arange(len(ordered), device=ordered.device)
    return torch.where((place >= start) & (place < stop), ordered, 0.0).sum(dtype=torch.float64)


def reliability_sums(bands: Sequence[Ranked]) -> Tensor:
    """Sum up pairs by range and bin: float64 (4, 10, 3) of pairs, contacts and probabilities.

    A probability on a bin's edge is in the lower bin, as of scikit-learn's ``calibration_curve``.
    """
    edges = cuts_on(_BIN_EDGES, bands[0].sizes.device)
    sums = []
    for pairs, contacts, sizes in bands:
        over = torch.stack([above(part, edges) for part in (pairs, contacts)])
        over = torch.cat([sizes[:, None], over, torch.zeros_like(sizes[:, None])], dim=1)
        within = -over.diff(dim=1).double()
        bounds = len(pairs) - over[0]
        of_bins = [sum_of_places(pairs, start, stop) for start, stop in pairwise(bounds)]
        sums.append(torch.stack([*within, torch.stack(of_bins)], dim=-1))
    return torch.stack(sums)


def _lower32(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """The largest float32 not above each value: what is compared with them falls on the same side."""
    rounded = values.astype(np.float32)
    return np.where(rounded > values, np.nextafter(rounded, np.float32(0)), rounded)


_BIN_EDGES = tuple(_lower32(np.linspace(0, 1, BINS + 1)[1:-1]).tolist())


def loss_sums(bands: Sequence[Ranked]) -> Tensor:
    """Sums of squared errors and of log losses by range, float64 (4, 2)."""
    sums = []
    for pairs, contacts, _ in bands:
        p, hit = (part.clamp(LEAST, 1 - LEAST) for part in (pairs, contacts))
        squared = _total(pairs.double().square(), pairs) + _total(1 - 2 * contacts.double(), contacts)
        log_loss = _total((-hit).log1p() - hit.log(), contacts) - _total((-p).log1p(), pairs)
        sums.append(torch.stack([squared, log_loss]))
    return torch.stack(sums)


def _total(values: Tensor, of: Tensor) -> Tensor:
    """Sum of values of pairs, float64 (); what stands in the place of no pair is left out."""
    if not by_numpy(of):
        values = torch.where(of >= 0, values, 0.0)
    return values.sum(dtype=torch.float64)


def logit_histogram(bands: Sequence[Ranked]) -> Tensor:
    """Count pairs by range, truth (other, contact) and log-odds: int32 (4, 2, 256)."""
    edges = cuts_on(_LOGIT_EDGES, bands[0].sizes.device)
    counts = []
    for pairs, contacts, sizes in bands:
        over = torch.stack([reaching(part, edges) for part in (pairs, contacts)])
        over = torch.cat([sizes[:, None], over, torch.zeros_like(sizes[:, None])], dim=1)
        every, touching = -over.diff(dim=1)
        counts.append(torch.stack([every - touching, touching]))
    return torch.stack(counts).int()


_LOGIT_EDGES = tuple(torch.sigmoid((bin_logits()[1:] + bin_logits()[:-1]) / 2).float().tolist())


def calibrated_threshold(calibration: Calibration, histogram: Tensor) -> float:
    """The calibrated probability with the best protein-wise mean ``mcc_sep6``, to 0.001.

    Args:
        calibration: Slopes and biases.
        histogram: int32 (n proteins, 4, 2, 256), before calibration.
    """
    bands = range(1, BANDS)
    values = torch.cat([torch.sigmoid(calibration.slope[b] * bin_logits() + calibration.bias[b]) for b in bands])
    called = (values > threshold_grid().double()[:, None]).float()  # (999, 3 · 256)
    far = histogram[:, 1:].transpose(1, 2).flatten(2).float()  # (n, 2, 3 · 256)
    predicted = (far @ called.T).round().long()  # (n, 2, 999)
    totals = far.double().sum(-1, keepdim=True).long()
    counts = torch.stack([totals - predicted, predicted], dim=-1).transpose(1, 2)  # (n, 999, 2, 2)
    return tune_threshold(mcc(counts)[0])[0]


def _checksum(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:7], "big")
