"""Scores of many proteins as torchmetrics classes: batch by batch, over any number of ranks.

The functions in :mod:`contactlm.metrics.scores` do the arithmetic; the classes here only remember what each protein
contributed, as integers where they can, so that the ranks' states merge exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from contactlm.metrics.protein_states import Maps, ProteinStates, protein_lists
from contactlm.metrics.ranked import BANDS, RankedMap, predicted_counts, rank_maps, trivial_counts
from contactlm.metrics.scores import (
    GRID,
    MAIN_NAMES,
    MCC_NAMES,
    RANGES,
    RANKING_NAMES,
    THRESHOLD_STEPS,
    Pairs,
    check_threshold,
    confusion,
    mcc,
    mcc_scores,
    mean_scores,
    nan_mean,
    precision_at_l,
    range_counts,
    ranking_values,
    select_pairs,
    tune_threshold,
)
from contactlm.types import DataError

POOLED_NAMES = ("mcc", "mcc_sep6")


class _RangeMetric(ProteinStates):
    """A mean over proteins of what is counted in the pairs of a range of |i − j|."""

    def __init__(
        self,
        rows: dict[str, tuple[tuple[int, ...], torch.dtype]],
        min_separation: int,
        max_separation: int | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(rows, **kwargs)
        if min_separation < 1 or (max_separation is not None and max_separation < min_separation):
            raise ValueError(
                f"min_separation is {min_separation} and max_separation {max_separation}: "
                "expected 1 <= min_separation <= max_separation (or None for no upper limit)"
            )
        self.min_separation, self.max_separation = min_separation, max_separation
        self._undefined = 0

    def _pairs(self, probability: Maps, labels: Maps) -> Iterator[Pairs]:
        for p, y in zip(*protein_lists(probability, labels), strict=True):
            yield select_pairs(p, y).within(self.min_separation, self.max_separation)

    @property
    def undefined(self) -> int:
        """The number of proteins of which the score is undefined."""
        self.compute()
        return self._undefined


class ProteinMCC(_RangeMetric):
    """Protein-wise mean of the Matthews correlation coefficient of contacts.

    A protein whose denominator is 0 counts with 0; how many those are is in :attr:`undefined`.

    Args:
        min_separation: Least |i - j| of the pairs scored; 6 leaves the local ones out.
        max_separation: Greatest |i - j|, None for no limit.
        threshold: A pair is predicted to be a contact when its probability is above it.
        **kwargs: For ``torchmetrics.Metric``.

    Examples:
        >>> import torch
        >>> from contactlm.metrics import ProteinMCC
        >>> labels = torch.tensor([[-1, 1, 0], [1, -1, 1], [0, 1, -1]])
        >>> probability = torch.tensor([[0.0, 0.9, 0.2], [0.9, 0.0, 0.4], [0.2, 0.4, 0.0]])
        >>> mcc = ProteinMCC(min_separation=1)
        >>> mcc.update(probability, labels)
        >>> mcc.compute(), mcc.undefined
        (tensor(0.5000), 0)
    """

    def __init__(
        self, min_separation: int = 6, max_separation: int | None = None, threshold: float = 0.5, **kwargs: Any
    ) -> None:
        super().__init__({"counts": ((2, 2), torch.int64)}, min_separation, max_separation, **kwargs)
        self.threshold = check_threshold(threshold)
        self._pooled = math.nan

    def update(self, probability: Maps, labels: Maps) -> None:
        """Add proteins.

        Args:
            probability: Values in [0, 1], one map (L, L), a batch (B, L, L) or a sequence of maps; not logits.
            labels: The same shape, 1 contact, 0 none, -1 unknown or padding.

        Raises:
            ValueError: Shapes do not fit, or values outside [0, 1].
        """
        for pairs in self._pairs(probability, labels):
            self.append("counts", confusion(pairs, self.threshold)[None])

    def compute(self) -> Tensor:
        """The mean over proteins, float32 scalar; NaN without any protein."""
        counts = self.gathered("counts")
        values, undefined = mcc(counts)
        self._undefined = int(undefined.sum())
        self._pooled = float(mcc(counts.sum(0))[0]) if len(counts) else math.nan
        return values.mean().float().to(self.device)

    @property
    def pooled(self) -> float:
        """The coefficient over all pairs of all proteins together; NaN without any protein."""
        self.compute()
        return self._pooled


class PrecisionAtL(_RangeMetric):
    """Protein-wise mean of P@L/k: the precision of each protein's ⌊L/k⌋ most probable pairs.

    L is the number of resolved residues. A protein with no pair in the range, or with L < k, has no such precision:
    it is left out of the mean and counted in :attr:`undefined`. Ties: :func:`contactlm.metrics.ranked.precision_at`.

    Args:
        k: The divisor.
        min_separation: Least |i - j| of the pairs scored; 24 takes long-range pairs.
        max_separation: Greatest |i - j|, None for no limit.
        **kwargs: For ``torchmetrics.Metric``.

    Examples:
        >>> import torch
        >>> from contactlm.metrics import PrecisionAtL
        >>> labels = torch.tensor([[-1, 1, 0], [1, -1, 1], [0, 1, -1]])
        >>> precision = PrecisionAtL(k=1, min_separation=1)  # the three most probable of three pairs
        >>> precision.update(torch.full((3, 3), 0.5), labels)
        >>> precision.compute()
        tensor(0.6667)
    """

    def __init__(self, k: int = 1, min_separation: int = 24, max_separation: int | None = None, **kwargs: Any) -> None:
        super().__init__({"precision": ((), torch.float32)}, min_separation, max_separation, **kwargs)
        if k < 1:
            raise ValueError(f"k is {k}: P@L/k needs k >= 1")
        self.k = k

    def update(self, probability: Maps, labels: Maps) -> None:
        """Add proteins; the arguments and errors are those of :meth:`ProteinMCC.update`."""
        for pairs in self._pairs(probability, labels):
            self.append("precision", torch.tensor([precision_at_l(pairs, self.k)]))

    def compute(self) -> Tensor:
        """The mean over the proteins where it is defined, float32 scalar; NaN where there is none."""
        values = self.gathered("precision").double()
        self._undefined = int(values.isnan().sum())
        return values.nanmean().float().to(self.device)


class ContactScores(ProteinStates):
    """Everything :func:`contactlm.metrics.scores.score_protein` gives, for a set of proteins.

    Remembers about 5 KB per protein.

    Args:
        threshold: A pair is predicted to be a contact when its probability is above it.
        tuned_threshold: A second threshold, found on the dev set; its MCCs are reported as ``mcc_tuned``,
            ``mcc_sep6_tuned`` and so on. None leaves them out.
        notes: Names of numbers to keep with each protein's scores, in :attr:`rows`.
        **kwargs: For ``torchmetrics.Metric``.
    """

    def __init__(
        self, threshold: float = 0.5, tuned_threshold: float | None = None, notes: Sequence[str] = (), **kwargs: Any
    ) -> None:
        rows = {
            "counts": ((3, BANDS, 2, 2), torch.int64),  # at the threshold, at the tuned one, the trivial predictor's
            "ranking": ((len(RANKING_NAMES),), torch.float32),
            "curve": ((THRESHOLD_STEPS - 1,), torch.float32),
            "residues": ((), torch.int64),  # resolved ones
            "key": ((2,), torch.int64),  # index in the data set, bytes of the id
            "id_bytes": ((), torch.uint8),
        }
        super().__init__(rows | ({"noted": ((len(notes),), torch.float32)} if notes else {}), **kwargs)
        self.notes = tuple(notes)
        self.threshold = check_threshold(threshold)
        self.tuned_threshold = None if tuned_threshold is None else check_threshold(tuned_threshold)
        self._proteins: list[dict[str, Any]] = []
        self._curves = torch.zeros((0, THRESHOLD_STEPS - 1))

    def update(
        self,
        probability: Maps,
        labels: Maps,
        ids: str | Sequence[str],
        indices: Sequence[int] | None = None,
        chain_of: Sequence[Tensor] | None = None,
        notes: Sequence[Sequence[float]] = (),
        ranked: Sequence[RankedMap] | None = None,
    ) -> None:
        """Add proteins. What is counted stays where the labels are.

        Args:
            probability: As of :meth:`ProteinMCC.update`.
            labels: As there.
            ids: Each protein's name.
            indices: Each protein's number in its data set, to tell proteins of the same name apart. One seen again
                (same id and index), as distributed samplers give them to even out the ranks, is counted once.
            chain_of: Of complexes, each one's chain numbers (L,): see :func:`contactlm.metrics.scores.select_pairs`.
            notes: Each protein's numbers, in the order of their names; needed where there are names.
            ranked: Their pairs in order, where they were put there already.

        Raises:
            ValueError: Shapes or numbers do not fit, or values outside [0, 1].
        """
        ids = [ids] if isinstance(ids, str) else list(ids)
        maps, truths = protein_lists(probability, labels)
        numbers = [-1] * len(ids) if indices is None else [int(index) for index in indices]
        if not len(maps) == len(ids) == len(numbers):
            raise ValueError(f"got {len(maps)} maps, {len(ids)} ids and {len(numbers)} indices")
        if len(notes) != (len(ids) if self.notes else 0):
            raise ValueError(f"got {len(notes)} rows of notes, and {len(ids)} ids with {len(self.notes)} notes each")
        if ranked is None:
            ranked = rank_maps(maps, truths, chain_of)
        for own, name, index in zip(ranked, ids, numbers, strict=True):
            self._add(own, name, index)
        if self.notes:
            self.append("noted", torch.tensor([list(row) for row in notes]).view(-1, len(self.notes)))

    def _add(self, ranked: RankedMap, name: str, index: int) -> None:
        tuned = self.threshold if self.tuned_threshold is None else self.tuned_threshold
        counts = predicted_counts(ranked, (self.threshold, tuned, *GRID))
        spelled = list(name.encode())
        self.append("counts", torch.cat([counts[:2], trivial_counts(ranked)[None]])[None])
        self.append("ranking", ranking_values(ranked)[None])
        self.append("curve", mcc(counts[2:, RANGES["sep6"]].sum(1))[0][None])
        self.append("residues", ranked.residues[None])
        self.append("key", torch.tensor([[index, len(spelled)]]))
        self.append("id_bytes", torch.tensor(spelled))

    def compute(self) -> dict[str, float]:
        """Means, pooled values and counts under the logged names.

        Returns:
            What :func:`contactlm.metrics.scores.mean_scores` gives; ``mcc_pooled`` and ``mcc_sep6_pooled`` over all
            pairs of all proteins; ``trivial_…`` next to the main scores; ``mcc_tuned``, ``mcc_sep6_tuned``, … where a
            tuned threshold was given; ``duplicates``, the number of proteins seen again and left out.

        Raises:
            DataError: Two different proteins share id and index.
        """
        distinct = self._distinct()
        kept = list(distinct.values())
        counts, ranking, residues, self._curves = (
            self.gathered(state)[kept] for state in ("counts", "ranking", "residues", "curve")
        )
        tuned = self.tuned_threshold is not None
        self._proteins = [
            {"id": name, "index": index} | _protein_row(int(n), c, r, tuned)
            for (index, name), n, c, r in zip(distinct, residues, counts, ranking, strict=True)
        ]
        if self.notes:
            for row, noted in zip(self._proteins, self.gathered("noted")[kept].tolist(), strict=True):
                row |= zip(self.notes, noted, strict=True)
        result = mean_scores(self._proteins)
        for name in [f"trivial_{name}" for name in MAIN_NAMES] + [f"{name}_tuned" for name in MCC_NAMES if tuned]:
            result[name] = nan_mean([row[name] for row in self._proteins])
        model, _, trivial = (mcc_scores(bands) for bands in counts.sum(0))
        for name in POOLED_NAMES:
            result[f"{name}_pooled"], result[f"trivial_{name}_pooled"] = model[name], trivial[name]
        return result | {"duplicates": float(len(self.gathered("key")) - len(kept))}

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Every protein's ``id``, ``index`` and scores, sorted by index and id: the lines of a CSV file.

        On several ranks this is a collective call unless :meth:`compute` was called before.
        """
        self.compute()
        return self._proteins

    def tune_threshold(self) -> tuple[float, float]:
        """The threshold with the best protein-wise mean ``mcc_sep6``, to 0.001, and that mean.

        Raises:
            ValueError: No protein was added.
        """
        self.compute()
        return tune_threshold(self._curves)

    def _distinct(self) -> dict[tuple[int, str], int]:
        """Row number of each protein by index and id, each once and sorted (so by nothing a rank decides)."""
        keys, sizes = self.gathered("key").tolist(), self.gathered("residues").tolist()
        spelled = bytes(self.gathered("id_bytes").tolist())
        first: dict[tuple[int, str], int] = {}
        begin = 0
        truth = self.gathered("counts")[:, 0].sum(-1).flatten(1).tolist()
        for row, (index, length) in enumerate(keys):
            name = spelled[begin : begin + length].decode()
            begin += length
            seen = first.setdefault((index, name), row)
            if (sizes[seen], truth[seen]) != (sizes[row], truth[row]):
                raise DataError(
                    f"two different proteins are called {name} (index {index}): "
                    "give each its own id, or pass indices that tell them apart"
                )
        return dict(sorted(first.items()))


def _protein_row(residues: int, counts: Tensor, ranking: Tensor, tuned: bool) -> dict[str, float]:
    """One protein's scores from its states: counts int64 (3, 4, 2, 2), ranking float32 (16,)."""
    ranked = dict(zip(RANKING_NAMES, ranking.tolist(), strict=True))
    row = {"residues": float(residues)} | mcc_scores(counts[0]) | ranked
    if tuned:
        row |= {f"{name}_tuned": value for name, value in mcc_scores(counts[1]).items() if name in MCC_NAMES}
    # To the trivial predictor all pairs of these ranges are alike: precision is the share of contacts among them.
    sums = dict(zip(MCC_NAMES, range_counts(counts[0]), strict=True))
    trivial = mcc_scores(counts[2])
    for name in MAIN_NAMES:
        if name not in MCC_NAMES:
            truth = sums[f"mcc_{name.split('_')[-1]}"].sum(1).tolist()
            trivial[name] = math.nan if math.isnan(ranked[name]) else truth[1] / sum(truth)
        row[f"trivial_{name}"] = trivial[name]
    return row
