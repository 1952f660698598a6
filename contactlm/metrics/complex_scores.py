"""Scores of complexes, apart for pairs within and between chains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from contactlm.metrics.classes import ContactScores
from contactlm.metrics.scores import MCC_NAMES, RANKING_NAMES

# All pairs between chains are alike far apart, so the scores of long-range pairs are those of all of them.
INTER_NAMES = {
    "proteins": "proteins",
    **{name: name for name in ("mcc", "mcc_undefined", "mcc_pooled", "mcc_tuned")},
    **{f"p_at_{top}_long": f"p_at_{top}" for top in ("L", "L2", "L5")},
    **{f"p_at_{top}_long_undefined": f"p_at_{top}_undefined" for top in ("L", "L2", "L5")},
    **{"auprc_long": "auprc", "auprc_long_undefined": "auprc_undefined", "trivial_p_at_L_long": "trivial_p_at_L"},
}
INTRA_COLUMNS = {name: f"intra_{name}" for name in (*MCC_NAMES, *RANKING_NAMES)}
INTER_COLUMNS = {name: f"inter_{INTER_NAMES[name]}" for name in ("mcc", "p_at_L_long", "p_at_L5_long", "auprc_long")}


def intra_labels(labels: Tensor, chain_of: Tensor) -> Tensor:
    """Labels (L, L) with the pairs between chains set to −1 (unknown).

    Args:
        labels: int8 (L, L).
        chain_of: Chain number of each residue, (L,).
    """
    return labels.masked_fill(chain_of[:, None] != chain_of, -1)


def inter_labels(labels: Tensor, chain_of: Tensor) -> Tensor:
    """Labels (L, L) with the pairs within a chain set to −1; the arguments are those of :func:`intra_labels`."""
    return labels.masked_fill(chain_of[:, None] == chain_of, -1)


class ComplexScores:
    """Scores of the complexes among a set of proteins, within and between chains; single chains are left out.

    Within chains (``intra_…``) all scores of :class:`contactlm.metrics.ContactScores` are given. Sequence separation
    means nothing between chains, so there (``inter_…``) all pairs are taken together: ``mcc``, ``p_at_L``, ``p_at_L2``,
    ``p_at_L5``, ``auprc``, and as ``trivial_p_at_L`` the share of contacts among the pairs, what guessing gives. L is
    the number of resolved residues of the complex.

    Args:
        threshold: A pair is predicted to be a contact when its probability is above it.
        tuned_threshold: A second threshold; see :class:`contactlm.metrics.ContactScores`.
        device: Where processes exchange their scores.
    """

    def __init__(
        self, threshold: float = 0.5, tuned_threshold: float | None = None, device: torch.device | str = "cpu"
    ) -> None:
        self.intra = ContactScores(threshold, tuned_threshold).to(device)
        self.inter = ContactScores(threshold, tuned_threshold).to(device)

    def update(
        self,
        probability: Sequence[Tensor],
        labels: Sequence[Tensor],
        ids: Sequence[str],
        indices: Sequence[int] | None,
        chain_of: Sequence[Tensor] | None,
    ) -> None:
        """Add the complexes of a batch that have a known pair between chains.

        Args:
            probability: One map (L, L) in [0, 1] a protein.
            labels: One int8 (L, L) a protein, 1 contact, 0 none, −1 unknown.
            ids: Each protein's name.
            indices: Each protein's number in its data set.
            chain_of: Chain numbers (L,) of each protein; None: a batch of single chains.
        """
        numbers = chain_of or []
        chosen = [k for k in range(len(numbers)) if (inter_labels(labels[k], numbers[k]) >= 0).any()]
        for part, of_part in ((self.intra, intra_labels), (self.inter, inter_labels)):
            part.update(  # without any, too: a metric that was never updated warns
                [probability[k] for k in chosen],
                [of_part(labels[k], numbers[k]) for k in chosen],
                [ids[k] for k in chosen],
                None if indices is None else [indices[k] for k in chosen],
                [numbers[k] for k in chosen],
            )

    def compute(self) -> dict[str, float]:
        """Scores as ``intra_…`` and ``inter_…``; empty without any complex. On several ranks a collective call."""
        intra, inter = self.intra.compute(), self.inter.compute()
        if not inter["proteins"]:
            return {}
        scores = {f"intra_{name}": value for name, value in intra.items()}
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
