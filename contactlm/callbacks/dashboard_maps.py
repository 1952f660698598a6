"""Pictures for a dashboard: maps of the same few proteins, look after look, and precision-recall curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contactlm.maps.contact_map import ContactMap
from contactlm.metrics.ranked import cuts_on, reaching
from contactlm.metrics.ranked_batch import RankedBatch

LENGTHS = (50, 100, 200, 400)  # residues: the proteins nearest to these lengths are drawn
PICTURE_INCHES, PICTURE_DPI = (5.6, 5.25), 100
CURVE_POINTS = 201  # thresholds 0, 0.005, … 1


class Exhibit(NamedTuple):
    """A protein to draw."""

    length: int
    id: str
    number: int  # in its data set
    probability: Tensor  # float32 (L, L)
    labels: Tensor  # int8 (L, L)
    chain_lengths: tuple[int, ...] = ()  # of a complex


class Exhibits:
    """Chooses a few proteins of different lengths from a stream of them, the same ones whatever their order.

    For each wanted length it keeps the protein that is nearest to it in length (of equals the shorter, then the first
    by id and number). So an evaluation of the same set chooses the same proteins every time, in this run or another,
    and no more maps are held than there are lengths.

    Args:
        lengths: Wanted lengths, in residues.
    """

    def __init__(self, lengths: Sequence[int] = LENGTHS) -> None:
        self.lengths = tuple(lengths)
        self._nearest: dict[int, Exhibit] = {}

    def add(self, outputs: Mapping[str, Any]) -> None:
        """Look at a batch: ``ids``, ``probability``, ``labels`` and, if there are any, ``indices`` and ``chain_of``."""
        indices = outputs.get("indices") or [-1] * len(outputs["ids"])
        chains = outputs.get("chain_of") or [None] * len(outputs["ids"])
        rows = zip(outputs["ids"], indices, outputs["probability"], outputs["labels"], chains, strict=True)
        for name, index, probability, labels, chain_of in rows:
            lengths = () if chain_of is None else tuple(chain_of.bincount().tolist())
            candidate = Exhibit(len(labels), name, int(index), probability, labels, lengths)
            for wanted in self.lengths:
                held = self._nearest.get(wanted)
                if held is None or _distance(candidate, wanted) < _distance(held, wanted):
                    self._nearest[wanted] = candidate

    def chosen(self) -> list[Exhibit]:
        """The proteins, each once, from short to long."""
        distinct = {(exhibit.id, exhibit.number): exhibit for exhibit in self._nearest.values()}
        return sorted(distinct.values(), key=lambda exhibit: exhibit[:3])


def _distance(exhibit: Exhibit, wanted: int) -> tuple[int, int, str, int]:
    return abs(exhibit.length - wanted), *exhibit[:3]


def draw(exhibit: Exhibit, threshold: float) -> NDArray[np.uint8]:
    """Draw the predicted map above the diagonal and the true one below.

    Returns:
        RGB, uint8 (525, 560, 3), whatever the protein's length.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and not every run draws
    from matplotlib.figure import Figure

    figure = Figure(figsize=PICTURE_INCHES, dpi=PICTURE_DPI, layout="compressed")
    canvas = FigureCanvasAgg(figure)
    probability, labels = (values.detach().cpu().numpy() for values in (exhibit.probability.float(), exhibit.labels))
    how = {"chain_lengths": list(exhibit.chain_lengths)} if exhibit.chain_lengths else {}
    predicted = ContactMap(exhibit.id, "X" * exhibit.length, probability, labels, threshold, how)
    predicted.plot(figure.add_subplot())
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _curve_cuts() -> tuple[float, ...]:
    """The least float32 that is in each bin: times 200, and rounded to float32, it is at least the bin's number."""
    cuts = []
    for number in range(CURVE_POINTS):
        cut = np.float32(number / (CURVE_POINTS - 1))
        while cut * np.float32(CURVE_POINTS - 1) < number:
            cut = np.nextafter(cut, np.float32(2))
        while number and np.nextafter(cut, np.float32(0)) * np.float32(CURVE_POINTS - 1) >= number:
            cut = np.nextafter(cut, np.float32(0))
        cuts.append(float(cut))
    return tuple(cuts)


_CURVE_CUTS = _curve_cuts()


class PrecisionRecall:
    """Precision and recall of all pairs of all proteins with |i − j| ≥ 6, at 201 thresholds, from two histograms."""

    def __init__(self) -> None:
        self._counted: Tensor | None = None

    @property
    def histogram(self) -> Tensor:
        """How many pairs are in each bin, int64 (2, 201): no contacts, contacts; where the maps were."""
        return torch.zeros(2, CURVE_POINTS, dtype=torch.int64) if self._counted is None else self._counted

    def add(self, outputs: Mapping[str, Any]) -> None:
        """Count a batch's pairs; the keys are those of :meth:`Exhibits.add`, with ``chain_of`` for complexes."""
        for ranked in RankedBatch.of(outputs).maps:
            cuts = cuts_on(_CURVE_CUTS, ranked.near.device)
            for pairs, contacts, _ in ranked.bands[1:]:  # |i − j| >= 6
                over = torch.stack([reaching(part, cuts) for part in (pairs, contacts)])
                every, touching = over - torch.nn.functional.pad(over[:, 1:], (0, 1))
                counts = torch.stack([every - touching, touching])
                self._counted = counts if self._counted is None else self._counted + counts

    def curve(self, histogram: Tensor | None = None) -> dict[str, NDArray[np.float64]]:
        """Counts, precision and recall of the pairs at or above each threshold k / 200, k = 0 … 200.

        Args:
            histogram: int64 (2, 201), such as the sum over processes; None: what was counted here.
        """
        counts = (self.histogram if histogram is None else histogram).double().cpu()
        negative, positive = counts.flip(1).cumsum(1).flip(1).numpy()
        called = positive + negative
        return {
            "true_positive_counts": positive,
            "false_positive_counts": negative,
            "true_negative_counts": negative[0] - negative,
            "false_negative_counts": positive[0] - positive,
            "precision": np.divide(positive, called, out=np.ones_like(called), where=called > 0),
            "recall": positive / max(positive[0], 1.0),
        }
