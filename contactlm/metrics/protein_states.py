"""What the metric classes share: batches ranked once, and one row per protein in states that merge over ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from contactlm.metrics.ranked import RankedMap, Selection, check_maps, select

Maps = Tensor | Sequence[Tensor]


def protein_lists(probability: Maps, labels: Maps) -> tuple[list[Tensor], list[Tensor]]:
    """Maps and labels of each protein, (L, L): of one, of a batch padded where the labels are −1, or of a sequence."""
    maps, truths = ([own] if isinstance(own, Tensor) and own.ndim == 2 else list(own) for own in (probability, labels))
    if len(maps) != len(truths):
        raise ValueError(f"got {len(maps)} probability maps and {len(truths)} label maps")
    return maps, truths


class ProteinStates(Metric):
    """Keeps one row per protein in list states, by name, shape and dtype; a rank without proteins takes part."""

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    def __init__(self, row_shapes: dict[str, tuple[tuple[int, ...], torch.dtype]], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._row_shapes = row_shapes
        for name in row_shapes:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def append(self, name: str, rows: Tensor) -> None:
        """Add rows (n, ...) to a state; they stay where they are until processes exchange them."""
        getattr(self, name).append(rows.to(self._row_shapes[name][1]))

    def gathered(self, name: str) -> Tensor:
        """All rows of a state, on the CPU; merged states are one tensor already."""
        shape, dtype = self._row_shapes[name]
        state = getattr(self, name)
        parts = [state] if isinstance(state, Tensor) else state
        if len({part.device for part in parts}) == 1:  # one transfer, not one a protein
            return torch.cat(list(parts)).cpu()
        return torch.cat([torch.zeros((0, *shape), dtype=dtype), *(part.cpu() for part in parts)])

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the states of all ranks, from the metric's device; a rank without a protein offers 0 rows."""
        for name, (shape, dtype) in self._row_shapes.items():
            rows = getattr(self, name)
            if isinstance(rows, list):
                parts = rows or [torch.zeros((0, *shape), dtype=dtype)]
                setattr(self, name, [part.to(self.device) for part in parts])
        super().sync(*args, **kwargs)


KEY = "ranked"  # where it is kept


class RankedBatch(NamedTuple):
    """Of every protein which pairs are scored, and the model's probabilities of these in order."""

    selections: list[Selection]
    maps: list[RankedMap]

    @classmethod
    def of(cls, outputs: Any) -> RankedBatch:
        """Read what a validation or test step has returned, and keep the result with it.

        See :class:`contactlm.callbacks.ContactEvaluation` for ``probability``, ``labels`` and ``chain_of``.
        """
        if not isinstance(outputs.get(KEY), cls):
            probability, labels = list(outputs["probability"]), list(outputs["labels"])
            chains = outputs.get("chain_of") or [None] * len(labels)
            check_maps(probability, labels)
            selections = [select(own, chain_of) for own, chain_of in zip(labels, chains, strict=True)]
            outputs[KEY] = cls(selections, [own.rank(p) for own, p in zip(selections, probability, strict=True)])
        return outputs[KEY]

    def rank(self, probability: list[Tensor], labels: list[Tensor]) -> list[RankedMap]:
        """Put the same pairs in the order of another predictor's maps (L, L)."""
        check_maps(probability, labels)
        return [own.rank(p) for own, p in zip(self.selections, probability, strict=True)]
