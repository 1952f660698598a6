"""Scores of parts: of complexes within and between chains, of copied contacts of relatives, of strata by identity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from contactlm.metrics.classes import ContactScores
from contactlm.metrics.protein_states import Maps
from contactlm.metrics.ranked import RankedMap, precision_at, rank_maps
from contactlm.metrics.scores import MAIN_NAMES, MCC_NAMES, RANKING_NAMES, means_by, nan_mean

IDENTITY_BOUNDS = (0.3, 0.5)  # a template bias has a weight for each range: checkpoints depend on them
TRAINING_STRATA = ("id<30", "id30-50", "id>=50")
NO_HIT = "nohit"
HIT_STRATA = (NO_HIT, "hit<30", "hit30-50", "hit>=50")
HIT_IDENTITY, HIT_COVERAGE = "hit_identity", "hit_coverage"  # columns of test_scores.csv
COPY = "copy_"  # what scores of copying the hits' contacts begin with
# All pairs between chains are alike far apart, so the scores of long-range pairs are those of all of them.
INTER_NAMES = {
    "proteins": "proteins",
    **{name: name for name in ("mcc", "mcc_undefined", "mcc_pooled", "mcc_tuned")},
    **{f"p_at_{top}_long": f"p_at_{top}" for top in ("L", "L2", "L5")},
    **{f"p_at_{top}_long_undefined": f"p_at_{top}_undefined" for top in ("L", "L2", "L5")},
    **{"auprc_long": "auprc", "auprc_long_undefined": "auprc_undefined", "trivial_p_at_L_long": "trivial_p_at_L"},
    **{"trivial_p_at_L5_long": "trivial_p_at_L5", "r_precision_long": "r_precision"},
}
INTERFACE = ("interface_auc", "p_at_10")  # of the residues of interfaces, and the precision of the ten highest pairs
TOP = 10
INTRA_COLUMNS = {name: f"intra_{name}" for name in (*MCC_NAMES, *RANKING_NAMES)}
INTER_COLUMNS = {
    **{name: f"inter_{INTER_NAMES[name]}" for name in ("mcc", "p_at_L_long", "p_at_L5_long", "auprc_long")},
    **{name: f"inter_{name}" for name in INTERFACE},
}


def training_stratum(identity: float) -> str:
    """Name the stratum of an identity to the nearest training relative, 0 … 1; 0 where there is none."""
    return TRAINING_STRATA[sum(identity >= bound for bound in IDENTITY_BOUNDS)]


def hit_stratum(identity: float | None) -> str:
    """Name the stratum of a protein by the pair identity with its best hit, 0 … 1; None or NaN: no hit."""
    if identity is None or math.isnan(identity):
        return NO_HIT
    return HIT_STRATA[1 + sum(identity >= bound for bound in IDENTITY_BOUNDS)]


def intra_labels(labels: Tensor, chain_of: Tensor) -> Tensor:
    """Labels (L, L) with the pairs between chains set to −1 (unknown); ``chain_of``: each residue's, (L,)."""
    return labels.masked_fill(chain_of[:, None] != chain_of, -1)


def inter_labels(labels: Tensor, chain_of: Tensor) -> Tensor:
    """Labels (L, L) with the pairs within a chain set to −1."""
    return labels.masked_fill(chain_of[:, None] == chain_of, -1)


def interface_scores(probability: Tensor, labels: Tensor, ranked: RankedMap) -> Tensor:
    """The scores of :data:`INTERFACE`, float64 (2,).

    A residue is of the interface where it touches another chain, and scores the highest probability of that. The area
    under the ROC curve of these is 1/2 for guessing, NaN where all residues are alike.

    Args:
        probability: (L, L), in [0, 1].
        labels: (L, L), known between chains alone, as :func:`inter_labels` gives them.
        ranked: The same pairs in order.
    """
    known = labels >= 0
    touches, resolved = (labels == 1).any(1), known.any(1)
    scores = torch.where(known, probability.to(labels.device), -1.0).amax(1)
    pairs = (touches[:, None] & (resolved & ~touches)).double()
    wins = (scores[:, None] > scores).double() + (scores[:, None] == scores).double() / 2
    top = precision_at([ranked.bands[-1]], [TOP])[0]
    return torch.cat([((wins * pairs).sum() / pairs.sum())[None], top])


class ComplexScores:
    """Scores of the complexes among a set of proteins, within and between chains; single chains are left out.

    Within chains (``intra_…``) all scores of :class:`contactlm.metrics.ContactScores` are given. Sequence separation
    means nothing between chains, so there (``inter_…``) all pairs are taken together: ``mcc``, ``p_at_L``, ``p_at_L2``,
    ``p_at_L5``, ``auprc``, and as ``trivial_p_at_L`` the share of contacts among the pairs, what guessing gives. L is
    the number of resolved residues of the complex. ``interface_auc`` and ``p_at_10``: see :func:`interface_scores`.

    Thresholds are those of :class:`contactlm.metrics.ContactScores`; processes exchange their scores on the device.
    """

    def __init__(
        self, threshold: float = 0.5, tuned_threshold: float | None = None, device: torch.device | str = "cpu"
    ) -> None:
        self.intra = ContactScores(threshold, tuned_threshold).to(device)
        self.inter = ContactScores(threshold, tuned_threshold, INTERFACE).to(device)

    def update(
        self,
        probability: Sequence[Tensor],
        labels: Sequence[Tensor],
        ids: Sequence[str],
        indices: Sequence[int] | None,
        chain_of: Sequence[Tensor] | None,
    ) -> None:
        """Add the complexes of a batch that have a known pair between chains.

        Arguments are those of :meth:`contactlm.metrics.ContactScores.update`; no ``chain_of``: all are single chains.
        """
        numbers = chain_of or []
        chosen = [k for k in range(len(numbers)) if (inter_labels(labels[k], numbers[k]) >= 0).any()]
        maps, own = ([values[k] for k in chosen] for values in (probability, numbers))
        about = [ids[k] for k in chosen], None if indices is None else [indices[k] for k in chosen], own
        intra, inter = (
            [of(labels[k], numbers[k].to(labels[k].device)) for k in chosen] for of in (intra_labels, inter_labels)
        )
        self.intra.update(maps, intra, *about)  # without any, too: a metric that was never updated warns
        ranked = rank_maps(maps, inter, own)
        notes = [interface_scores(*each).tolist() for each in zip(maps, inter, ranked, strict=True)]
        self.inter.update(maps, inter, *about, notes, ranked)

    def compute(self) -> dict[str, float]:
        """Scores as ``intra_…`` and ``inter_…``; empty without any complex. On several ranks a collective call."""
        intra, inter = self.intra.compute(), self.inter.compute()
        if not inter["proteins"]:
            return {}
        scores = {f"intra_{name}": value for name, value in intra.items()}
        scores |= {f"inter_{name}": nan_mean([row[name] for row in self.inter.rows]) for name in INTERFACE}
        return scores | {f"inter_{new}": inter[old] for old, new in INTER_NAMES.items() if old in inter}

    def with_columns(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Add each complex's scores to its row; proteins of one chain have None there, in a set with complexes."""
        columns: dict[tuple[str, int], dict[str, Any]] = {}
        for part, names in ((self.intra, INTRA_COLUMNS), (self.inter, INTER_COLUMNS)):
            for row in part.rows:
                own = columns.setdefault((row["id"], row["index"]), {})
                own |= {new: row[old] for old, new in names.items()}
        if not columns:
            return rows
        none = dict.fromkeys((*INTRA_COLUMNS.values(), *INTER_COLUMNS.values()))
        return [row | columns.get((row["id"], row["index"]), none) for row in rows]


COPY_COLUMNS = {name: COPY + name for name in MAIN_NAMES}
NEAREST = (HIT_IDENTITY, HIT_COVERAGE)


class HitScores:
    """Scores of the copy-the-homolog predictor for the proteins of a set, and how near the best hit of each is."""

    def __init__(self, threshold: float = 0.5, device: torch.device | str = "cpu") -> None:
        self.copied = ContactScores(threshold, notes=NEAREST).to(device)

    def update(
        self,
        copied: Maps | None,
        labels: Maps,
        ids: str | Sequence[str],
        indices: Sequence[int] | None = None,
        chain_of: Sequence[Tensor] | None = None,
        nearest: Sequence[tuple[float, float]] = (),
        ranked: Sequence[RankedMap] | None = None,
    ) -> None:
        """Add the proteins of a batch, with what copying predicts; None: a batch of a model that knows no hits.

        ``nearest`` are pair identity of each protein's best hit and the share of the protein that it covers, both
        0 … 1, NaN without a hit; other arguments are those of :meth:`contactlm.metrics.ContactScores.update`.
        """
        if copied is None:
            self.copied.update([], [], [])  # a metric that was never updated warns
        else:
            self.copied.update(copied, labels, ids, indices, chain_of, nearest, ranked)

    def compute(self) -> dict[str, float]:
        """Means of the main scores as ``copy_…``; empty without any protein. On several ranks a collective call."""
        scores = self.copied.compute()
        return {new: scores[name] for name, new in COPY_COLUMNS.items()} if scores["proteins"] else {}

    def with_columns(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Add to a model's rows what copying reaches, ``hit_identity`` and ``hit_coverage`` (None: no hit)."""
        own = {(row["id"], row["index"]): row for row in self.copied.rows}
        if not own:
            return rows
        columns = {}
        for key, row in own.items():
            nearest = {name: None if math.isnan(row[name]) else row[name] for name in NEAREST}
            columns[key] = nearest | {new: row[name] for name, new in COPY_COLUMNS.items()}
        return [row | columns[row["id"], row["index"]] for row in rows]

    def by_stratum(self, rows: list[dict[str, Any]]) -> dict[str, float]:
        """Main scores of a model and of copying as ``mcc_sep6@hit<30`` and the like, of strata that have a protein."""
        strata: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            if HIT_IDENTITY in row:
                strata.setdefault(hit_stratum(row[HIT_IDENTITY]), []).append(row)
        return means_by(strata, (*MAIN_NAMES, *COPY_COLUMNS.values()))
