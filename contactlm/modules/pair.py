"""What a contact head with a pair head changes in a LightningModule: its loss, its maps, its learning rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from contactlm.maps.windows import WindowOptions
from contactlm.model.backbone import Wanted
from contactlm.model.bins import PairScores, pair_loss
from contactlm.model.lora import contact_regression
from contactlm.model.pair_head import PairHead, PairOptions
from contactlm.modules.language_model import LanguageModelModule
from contactlm.modules.optimization import Parts
from contactlm.structure.distances import distance_bins
from contactlm.types import ContactDefinition, ModelError


class PairedModule(LanguageModelModule):
    """A language model with a contact head and, if its network has one as ``.pair``, a pair head.

    With a pair head it learns the bins of distances, of which contacts are the first, and predicts distances next
    to contacts. Arguments are those of :class:`contactlm.modules.language_model.LanguageModelModule`, and
    ``distance_bins`` of :class:`contactlm.ContactModule`.
    """

    def __init__(self, *arguments: Any, distance_bins: bool = False, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.distance_bins = distance_bins
        if self.pair is not None:
            self.flops_follow_length = False  # strips make steps

    @property
    def pair(self) -> PairHead | None:
        """The pair head, if there is one."""
        head: PairHead | None = getattr(self.backbone, "pair", None)
        return head

    @property
    def of_a_pass(self) -> Wanted:
        """What a pair head gives of one pass of a map; scores need no bins."""
        evaluates = self.attached_trainer is not None and self.attached_trainer.evaluating
        return "distribution" if self.distance_bins and not evaluates else "distances"

    def lr_factors(self) -> Parts:
        """Parts with a learning rate of their own: the contact head, and the pair head."""
        pair = self.pair
        return [*super().lr_factors(), *([] if pair is None else [(list(pair.parameters()), pair.options.lr_factor)])]

    def pair_scores(self, tokens: Tensor, attention_mask: Tensor | None, positions: Tensor | None) -> Any:
        """What :meth:`loss` takes: contact logits; of a pair head what its distances' bins come to as well."""
        if self.pair is None:
            return super().pair_scores(tokens, attention_mask, positions)
        return self.backbone(tokens, attention_mask, positions, wanted="bins")

    def training_labels(self, cb: Tensor) -> Tensor:
        """Contacts, or for a pair head the bins of distances: int8 (B, L, L), −1 unknown, of cb (B, L, 3) in Å."""
        if self.pair is not None and self.contact != ContactDefinition():
            raise ModelError(
                f"data.contact: {self.contact} given, but a pair head has {ContactDefinition()}: leave it out"
            )
        return super().training_labels(cb) if self.pair is None else distance_bins(cb)

    def loss(self, scores: Any, labels: Tensor) -> Tensor:
        """Cross-entropy of contacts, or of distances' bins, averaged per protein."""
        if isinstance(scores, PairScores) and self.pair is not None:
            return pair_loss(scores, labels, self.loss_min_separation, self.pair.options.distance_weight)
        return super().loss(scores, labels)

    def _logits_of_pass(self, tokens: Tensor, attention_mask: Tensor, positions: Tensor | None) -> Tensor:
        if self.pair is None:
            return super()._logits_of_pass(tokens, attention_mask, positions)
        made: Tensor = self.backbone(self.own_tokens(tokens), attention_mask, positions, wanted=self.of_a_pass)
        return made

    def _within_reach(self, windows: WindowOptions) -> WindowOptions:
        windows = super()._within_reach(windows)
        return windows if self.pair is None else replace(windows, border=self.pair.options.reach)


def pair_options(given: PairOptions | Mapping[str, Any] | None) -> PairOptions | None:
    """Options as they are given, or as the plain values that a checkpoint holds."""
    return PairOptions(**given) if isinstance(given, Mapping) else given


def pair_head(esm: Any, options: PairOptions | None, seed: int, more: int = 0) -> PairHead | None:
    """A pair head for a backbone, if there are options for one."""
    if options is None:
        return None
    return PairHead(contact_regression(esm).in_features, esm.config.hidden_size, options, seed, more)
