"""What the structures of relatives tell by themselves: scores of copied contacts, and how near each relative is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from contactlm.metrics.classes import ContactScores
from contactlm.metrics.protein_states import Maps
from contactlm.metrics.ranked import RankedMap
from contactlm.metrics.scores import MAIN_NAMES, means_by
from contactlm.metrics.strata import COPY, HIT_COVERAGE, HIT_IDENTITY, hit_stratum

COPY_COLUMNS = {name: COPY + name for name in MAIN_NAMES}
NEAREST = (HIT_IDENTITY, HIT_COVERAGE)


class HitScores:
    """Scores of the copy-the-homolog predictor for the proteins of a set, and how near the best hit of each is.

    Args:
        threshold: As of :class:`contactlm.metrics.ContactScores`.
        device: Where processes exchange their scores.
    """

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
        """Add the proteins of a batch.

        Args:
            copied: What copying predicts, maps in [0, 1]; None: a batch of a model that knows no hits, left out.
            labels: As of :meth:`contactlm.metrics.ContactScores.update`.
            ids: As there.
            indices: As there.
            chain_of: As there.
            nearest: Pair identity of each protein's best hit and the share of the protein that it covers, both 0 … 1;
                NaN: it has none.
            ranked: The pairs of what is copied, in order, where they were put there already.

        Raises:
            ValueError: Shapes or numbers do not fit, or values outside [0, 1].
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
        return [row | _columns(own[row["id"], row["index"]]) for row in rows]

    def by_stratum(self, rows: list[dict[str, Any]]) -> dict[str, float]:
        """Main scores of a model and of copying as ``mcc_sep6@hit<30`` and the like, of strata that have a protein.

        Args:
            rows: Each protein's scores, with the columns that :meth:`with_columns` adds; without them: nothing.
        """
        strata: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            if HIT_IDENTITY in row:
                strata.setdefault(hit_stratum(row[HIT_IDENTITY]), []).append(row)
        return means_by(strata, (*MAIN_NAMES, *COPY_COLUMNS.values()))


def _columns(row: dict[str, Any]) -> dict[str, float | None]:
    nearest = {name: None if math.isnan(row[name]) else row[name] for name in NEAREST}
    return nearest | {new: row[name] for name, new in COPY_COLUMNS.items()}
