"""ContrastiveModule: residue embeddings whose cosine similarity is the contact map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from contactlm.model.encoder import ResidueEncoder
from contactlm.model.execution import shard_whole
from contactlm.model.losses import contrastive_loss, cosine_logits, cosine_similarities, draw_partners
from contactlm.modules.language_model import ESM2, LanguageModelModule
from contactlm.modules.sharded import idle_tokens
from contactlm.types import ModelError

OF_CONTACT_HEAD = ("train_head", "attention")  # options of ContactModule that mean nothing here


class ContrastiveModule(LanguageModelModule):
    """Learns residue embeddings of which those in contact are similar, and others are not.

    A residue's embedding is a linear projection of its final state in ESM2 (after the final layer norm), scaled to
    length 1. Trained by InfoNCE on pairs drawn for every residue (see :mod:`contactlm.model.losses`); the
    predicted probability of a contact is the cosine similarity rescaled to [0, 1], (1 + cos) / 2. It orders pairs, but
    it is no frequency: the threshold tuned on dev says more than 0.5. There is no contact head, and the backbone's own
    is not used. Everything else is as in :class:`contactlm.ContactModule`.

    Args:
        pretrained: Name on the Hugging Face hub, or a local directory in its format. None: a randomly initialised
            backbone from ``architecture``.
        architecture: Configuration of a randomly initialised backbone; ``model_type`` defaults to ``esm``. Requires
            ``pretrained=None``.
        projection_dim: Width of the embeddings.
        temperature: Divisor of the cosine similarities in the loss.
        positives: Contacts drawn per residue and step.
        negatives: Residues without contact drawn per residue and step.
        loss_min_separation: Pairs closer in sequence, |i − j|, are drawn neither as positives nor as negatives. Nearly
            all residues touch their neighbours in sequence, whatever the fold: from the default on, positives are
            contacts that have to be predicted, the ones that the primary score counts.
        options: As of :class:`contactlm.ContactModule`, but for ``train_head`` and ``attention``. The learning rate of
            the projection is the one that ``head_lr_factor`` multiplies.

    Raises:
        ModelError: Options that do not fit together, or a backbone that cannot be loaded.
    """

    head = "projection"
    flops_follow_length = True

    def __init__(
        self,
        pretrained: str | None = ESM2,
        architecture: dict[str, Any] | None = None,
        projection_dim: int = 128,
        temperature: float = 0.1,
        positives: int = 4,
        negatives: int = 64,
        loss_min_separation: int = 6,
        **options: Any,
    ) -> None:
        own = {"projection_dim": projection_dim, "temperature": temperature}
        own |= {"positives": positives, "negatives": negatives}
        _check_options(own, options)
        super().__init__(ResidueEncoder, pretrained, architecture, loss_min_separation=loss_min_separation, **options)
        self.save_hyperparameters(own)
        self.temperature, self.positives, self.negatives = temperature, positives, negatives
        self.projection = _projection(self.backbone.esm, projection_dim, self.hparams["init_seed"])

    def head_parameters(self) -> list[nn.Parameter]:
        """Weight (projection_dim, E) and bias (projection_dim,) of the projection."""
        return list(self.projection.parameters())

    def cosine(self, tokens: Tensor, attention_mask: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """Cosine similarities of the residues' embeddings; arguments as of :meth:`contact_logits`.

        Returns:
            float32 (B, T − 2, T − 2), in [−1, 1], symmetric; 0 where a residue is padding.
        """
        states, residue = self.backbone(tokens, attention_mask, positions)
        with torch.autocast(tokens.device.type, enabled=False):  # similarities near 1 need more digits than bfloat16's
            return cosine_similarities(self.projection(states), residue)

    def contact_logits(
        self, tokens: Tensor, attention_mask: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """Compute logits whose sigmoid is (1 + cos) / 2, within ±14.6.

        Arguments and shape are those of :meth:`contactlm.MapModule.contact_logits`.
        """
        return cosine_logits(self.cosine(tokens, attention_mask, positions))

    def pair_scores(self, tokens: Tensor, attention_mask: Tensor | None, positions: Tensor | None) -> Tensor:
        """What :meth:`loss` takes: the similarities."""
        return self.cosine(tokens, attention_mask, positions)

    def configure_model(self) -> None:
        """Spread the projection as the backbone is; it is called apart from it."""
        super().configure_model()
        shard_whole(self.projection, self.device_mesh)

    def idle_pass(self) -> None:
        """Run backbone and projection for the sake of other processes."""
        with torch.no_grad():
            self.cosine(self.own_tokens(idle_tokens(self.device)))

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """InfoNCE of pairs drawn anew, averaged per protein.

        Draws from the global generator, whose state travels with checkpoints.

        Args:
            scores: float32 (B, L, L), similarities as of :meth:`cosine`.
            labels: int8 (B, L, L): 1 contact, 0 none, −1 unknown.
        """
        drawn = draw_partners(labels, self.positives, self.negatives, self.loss_min_separation)
        return contrastive_loss(scores, *drawn, self.temperature)


def _check_options(own: dict[str, float], options: dict[str, Any]) -> None:
    misplaced = [name for name in OF_CONTACT_HEAD if name in options]
    misplaced += ["head"] if options.get("head") is not None else []
    if misplaced:
        raise ModelError(
            f"{', '.join(misplaced)}: no option of ContrastiveModule, which has no contact head; leave it out (a "
            "checkpoint that brings it was written by ContactModule: load it with that class)"
        )
    for name, value in own.items():
        if not value > 0:
            raise ModelError(f"{name}: {value} given; it must be positive")


class Projection(nn.Linear):
    """A linear layer that computes in float32 at least."""

    def forward(self, states: Tensor) -> Tensor:
        """Project states (…, E) to (…, projection_dim)."""
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        return nn.functional.linear(states.to(dtype), self.weight.to(dtype), self.bias.to(dtype))


def _projection(esm: Any, projection_dim: int, seed: int) -> Projection:
    """A projection with seeded weights; the global generators are left alone."""
    projection = nn.utils.skip_init(Projection, esm.config.hidden_size, projection_dim)
    nn.init.xavier_uniform_(projection.weight, generator=torch.Generator().manual_seed(seed))
    nn.init.zeros_(projection.bias)
    return projection
