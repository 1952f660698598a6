"""The proteins of an evaluation's batch, their pairs chosen and put in order once for all who count in them."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any, NamedTuple

from torch import Tensor

from contactlm.metrics.ranked import RankedMap, Selection, check_maps, select

KEY = "ranked"  # where it is kept


class RankedBatch(NamedTuple):
    """Of every protein which pairs are scored, and the model's probabilities of these in order."""

    selections: list[Selection]
    maps: list[RankedMap]

    @classmethod
    def of(cls, outputs: Mapping[str, Any]) -> RankedBatch:
        """Read what a validation or test step has returned, and keep the result with it.

        Args:
            outputs: ``probability``, ``labels`` and, of complexes, ``chain_of``: see
                :class:`contactlm.callbacks.ContactEvaluation`.

        Raises:
            ValueError: Shapes do not fit, or values outside [0, 1].
        """
        kept = outputs.get(KEY)
        if isinstance(kept, cls):
            return kept
        probability, labels = list(outputs["probability"]), list(outputs["labels"])
        chains = outputs.get("chain_of") or [None] * len(labels)
        check_maps(probability, labels)
        selections = [select(own, chain_of) for own, chain_of in zip(labels, chains, strict=True)]
        made = cls(selections, [own.rank(p) for own, p in zip(selections, probability, strict=True)])
        if isinstance(outputs, MutableMapping):
            outputs[KEY] = made
        return made

    def rank(self, probability: list[Tensor], labels: list[Tensor]) -> list[RankedMap]:
        """Put the same pairs in the order of another predictor's maps (L, L).

        Raises:
            ValueError: Shapes do not fit, or values outside [0, 1].
        """
        check_maps(probability, labels)
        return [own.rank(p) for own, p in zip(self.selections, probability, strict=True)]
