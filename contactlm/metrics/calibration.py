"""Probabilities that can be believed: a calibration fitted on dev, and what reliability is measured with.

A calibration moves the log-odds of each range of sequence separation by itself: σ(a · logit(p) + b) (Platt scaling).
Within a range no pair changes its rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from contactlm.metrics.ranked import BAND_STARTS, BANDS, by_numpy

KINDS = ("platt", "temperature")  # that are read; earlier versions could leave the bias 0
LEAST = 2.0**-23  # probabilities are kept this far from 0 and 1: what float32 resolves
MOST_LOGIT = 16.0
LOGIT_BINS = 256
SLOPES = (0.05, 20.0)  # a calibration never turns a ranking around
PRIOR_CONFIDENCE = 0.1  # proteins' worth of doubt that confidence is anything else than the mean probability
LEAST_PROTEINS = 5  # of dev, below which no confidence is fitted


@dataclass(frozen=True)
class Calibration:
    """A calibration, as plain values that travel with checkpoints and exports.

    Attributes:
        kind: ``platt``; of earlier versions also ``temperature``, with a bias of 0.
        slope: Of the log-odds, for |i − j| of 1–5, 6–11, 12–23 and at least 24.
        bias: Likewise.
        threshold: Calibrated probability above which dev has the best ``mcc_sep6``.
        confidence: Slope and bias from the mean probability of the top L long-range pairs to the precision to be
            expected of them; None where dev had too few proteins to estimate it.
    """

    kind: str
    slope: tuple[float, ...]
    bias: tuple[float, ...]
    threshold: float = 0.5
    confidence: tuple[float, float] | None = None
    lengths: tuple[float, float] | None = None
    called: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        pairs = [pair for pair in (self.confidence, self.lengths, self.called) if pair is not None]
        numbers = [*self.slope, *self.bias, self.threshold, *(number for pair in pairs for number in pair)]
        sizes = [len(self.slope), len(self.bias), *(len(pair) for pair in pairs)]
        fits = sizes == [BANDS, BANDS, *(2 for _ in pairs)] and all(
            isinstance(n, int | float) and abs(n) < 1e6 for n in numbers
        )
        if self.kind not in KINDS or not fits or min(self.slope) <= 0 or not 0 <= self.threshold <= 1:
            raise ValueError(f"no calibration: {asdict(self)}")

    def apply_map(self, probability: Tensor, chain_of: Tensor | None = None) -> Tensor:
        """Calibrate a whole map, float32 (L, L) in [0, 1], row block by row block; ``chain_of`` (L,) of complexes."""
        position = torch.arange(len(probability), device=probability.device)
        slope, bias = (torch.tensor(values, device=probability.device) for values in (self.slope, self.bias))
        calibrated = torch.empty_like(probability)
        for rows in position.split(512):
            separation = (rows[:, None] - position).abs()
            if chain_of is not None:
                separation[chain_of[rows, None] != chain_of] = BAND_STARTS[-1]
            band = bands_of(separation)
            calibrated[rows] = torch.sigmoid(slope[band] * logit(probability[rows]) + bias[band])
        return calibrated

    def predicted_precision(self, probability: Tensor, chain_of: Tensor | None = None) -> float | None:
        """The long-range P@L to expect of a map (L, L), not yet calibrated; None: not fitted, or no such pairs."""
        found = self.expected_precision(probability, chain_of)
        return None if found is None or bool(found.isnan()) else float(found)

    def expected_precision(self, probability: Tensor, chain_of: Tensor | None = None) -> Tensor | None:
        """The same on the map's device, float32 (): NaN without long-range pairs; None where it was not fitted."""
        if self.confidence is None:
            return None
        position = torch.arange(len(probability), device=probability.device)
        far = position - position[:, None] >= BAND_STARTS[-1]
        if chain_of is not None:
            chain_of = chain_of.to(far.device)
            far |= (chain_of != chain_of[:, None]) & (position > position[:, None])
        pairs = probability[far] if by_numpy(probability) else torch.where(far, probability, -1.0).flatten()
        top = pairs.topk(min(len(probability), len(pairs))).values.double()
        there = top >= 0
        mean = torch.where(there, top, 0.0).sum() / there.sum()
        slope, bias = self.confidence
        return torch.sigmoid(slope * logit(mean) + bias)

    def outside(self, probability: Tensor) -> str:
        """In what a calibrated map (L, L) lies outside what dev had, where expectations hold no longer; or nothing."""
        L, reasons = len(probability), []
        if self.lengths is not None and not self.lengths[0] <= L <= self.lengths[1]:
            reasons.append(f"{L:,} residues, dev had {self.lengths[0]:,.0f} to {self.lengths[1]:,.0f}")
        far = probability[torch.ones_like(probability, dtype=torch.bool).triu(BAND_STARTS[0])]
        if self.called is not None and len(far):
            share = float((far > self.threshold).float().mean())
            if not self.called[0] <= share <= self.called[1]:
                reasons.append(f"{share:.2%} of pairs called, dev had {self.called[0]:.2%} to {self.called[1]:.2%}")
        return "; ".join(reasons)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: lists, numbers and text."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """Read what :meth:`to_dict` gives."""
        try:
            return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})  # type: ignore[arg-type]
        except (TypeError, AttributeError) as error:
            raise ValueError(f"no calibration: {values!r}") from error


def logit(probability: Tensor) -> Tensor:
    """Log-odds, float32; those of 0 and 1 are ±16."""
    p = probability.float().clamp(LEAST, 1 - LEAST)
    return p.log() - (-p).log1p()


def bands_of(separation: Tensor) -> Tensor:
    """The range of each sequence separation: 0 (below 6), 1 (6–11), 2 (12–23) or 3 (24 and more), int64."""
    edges = torch.tensor(BAND_STARTS, device=separation.device, dtype=separation.dtype)
    return torch.bucketize(separation, edges, right=True)


def bin_logits() -> Tensor:
    """The log-odds in the middle of each bin of a histogram, float64 (256,)."""
    width = 2 * MOST_LOGIT / LOGIT_BINS
    return -MOST_LOGIT + width * (torch.arange(LOGIT_BINS, dtype=torch.float64) + 0.5)


def fit_bands(histogram: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Fit slope and bias of each range to a histogram (4, 2, 256) of all proteins; 1 and 0 where a class is missing."""
    fitted = [
        fit_logistic(bin_logits(), contacts, others) if others.sum() and contacts.sum() else (1.0, 0.0)
        for others, contacts in histogram.double()
    ]
    return tuple(slope for slope, _ in fitted), tuple(bias for _, bias in fitted)


def fit_confidence(means: Tensor, precisions: Tensor) -> tuple[float, float] | None:
    """Fit how the precision of the top L long-range pairs follows from their mean; None with too few proteins."""
    known = ~(means.isnan() | precisions.isnan())
    if int(known.sum()) < LEAST_PROTEINS:
        return None
    target = precisions[known].double()
    return fit_logistic(logit(means[known]).double(), target, 1 - target, prior=PRIOR_CONFIDENCE)


def fit_logistic(x: Tensor, positives: Tensor, negatives: Tensor, prior: float = 1e-3) -> tuple[float, float]:
    """Slope, within :data:`SLOPES`, and bias of a logistic regression on x; all float64 (n,), as of :func:`newton`.

    The prior around slope 1 and bias 0 decides where the data leave it open.
    """
    slope, bias = newton(x, positives, negatives, (1.0, 0.0), (1.0, 0.0), prior)
    if not SLOPES[0] <= slope <= SLOPES[1]:
        held = min(max(slope, SLOPES[0]), SLOPES[1])
        slope, bias = newton(x, positives, negatives, (held, 0.0), (1.0, 0.0), prior, holds_slope=True)
    return slope, bias


def newton(
    x: Tensor,
    positives: Tensor,
    negatives: Tensor,
    start: tuple[float, float],
    centre: tuple[float, float],
    prior: float,
    holds_slope: bool = False,
    total: Callable[[Tensor], Tensor] = lambda own: own,
) -> tuple[float, float]:
    """Slope and bias of a logistic regression on x by Newton's method, with a normal prior of a centre and a weight.

    ``positives`` and ``negatives`` are weights of observations at each x, float64 (n,). ``total`` sums a tensor over
    all processes, of which each has observations of its own; all fit the same.
    """
    design = torch.stack([x, torch.ones_like(x)], dim=1)
    weights, middle = torch.tensor(start, dtype=torch.float64), torch.tensor(centre, dtype=torch.float64)
    mask = torch.tensor([not holds_slope, True], dtype=torch.float64)
    eye = torch.eye(2, dtype=torch.float64)

    def loss(w: Tensor) -> Tensor:
        z = design @ w
        likelihood = positives @ torch.nn.functional.softplus(-z) + negatives @ torch.nn.functional.softplus(z)
        return total(likelihood) + prior / 2 * ((w - middle) ** 2).sum()

    for _ in range(100):
        p = torch.sigmoid(design @ weights)
        gradient = total(design.T @ ((positives + negatives) * p - positives)) + prior * (weights - middle)
        curvature = total((design * ((positives + negatives) * p * (1 - p))[:, None]).T @ design)
        curvature = (curvature + prior * eye) * mask * mask[:, None] + torch.diag(1 - mask)
        step = torch.linalg.solve(curvature, gradient * mask)
        size, now = 1.0, loss(weights)
        while size > 1e-6 and loss(weights - size * step) > now:
            size /= 2
        weights = weights - size * step
        if size <= 1e-6 or float((size * step).abs().max()) < 1e-10:
            break
    return float(weights[0]), float(weights[1])
