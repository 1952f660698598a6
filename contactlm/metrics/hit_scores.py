"""What the structures of relatives tell by themselves: scores of copied contacts, and how near each relative is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from contactlm.metrics.classes import ContactScores
from contactlm.metrics.protein_states import Maps
from contactlm.metrics.scores import MAIN_NAMES, means_by
from contactlm.metrics.strata import COPY, HIT_COVERAGE, HIT_IDENTITY, hit_stratum

COPY_COLUMNS = {name: COPY + name for name in MAIN_NAMES}


class HitScores(ContactScores):
    """Scores of the copy-the-homolog predictor for the proteins of a set, and how near the best hit of each is.

    Args:
        threshold: As of :class:`contactlm.metrics.ContactScores`.
        **kwargs: For ``torchmetrics.Metric``.
    """

    def __init__(self, threshold: float = 0.5, **kwargs: Any) -> None:
        super().__init__(threshold, **kwargs)
        self.add_rows("nearest", (2,), torch.float32)  # identity and coverage of the best hit

    def update(
        self,
        probability: Maps,
        labels: Maps,
        ids: str | Sequence[str],
        indices: Sequence[int] | None = None,
        chain_of: Sequence[Tensor] | None = None,
        nearest: Sequence[tuple[float, float]] = (),
    ) -> None:
        """Add proteins.

        Args:
            probability: What copying predicts; this and the rest as of
                :meth:`contactlm.metrics.ContactScores.update`.
            labels: As there.
            ids: As there.
            indices: As there.
            chain_of: As there.
            nearest: Pair identity of each protein's best hit and the share of the protein that it covers, both 0 … 1;
                NaN: it has none.

        Raises:
            ValueError: Shapes or numbers do not fit, or values outside [0, 1].
        """
        if len(nearest) != len([ids] if isinstance(ids, str) else ids):
            raise ValueError(f"got {len(nearest)} best hits and {len(ids)} ids")
        super().update(probability, labels, ids, indices, chain_of)
        self.append("nearest", torch.tensor(list(nearest), dtype=torch.float32).view(-1, 2))

    def compute(self) -> dict[str, float]:
        """Means of the main scores as ``copy_…``; empty without any protein. On several ranks a collective call."""
        scores = super().compute()
        _, kept = self._distinct()
        for row, values in zip(self._proteins, self.gathered("nearest")[kept].tolist(), strict=True):
            for name, value in zip((HIT_IDENTITY, HIT_COVERAGE), values, strict=True):
                row[name] = None if math.isnan(value) else value
        return {new: scores[name] for name, new in COPY_COLUMNS.items()} if kept else {}

    def with_columns(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Add to a model's rows what copying reaches, ``hit_identity`` and ``hit_coverage`` (None: no hit)."""
        own = {(row["id"], row["index"]): row for row in self.rows}
        if not own:
            return rows
        wanted = {HIT_IDENTITY: HIT_IDENTITY, HIT_COVERAGE: HIT_COVERAGE, **COPY_COLUMNS}
        return [row | {new: own[row["id"], row["index"]][name] for name, new in wanted.items()} for row in rows]

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
