"""A language model as an encoder of residues: tokens in, final residue states out, with fused attention."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contactlm.model.blocks import TokenLayout
from contactlm.model.contact_attention import Shares
from contactlm.model.families.registry import family_of
from contactlm.model.trunk import read_batch
from contactlm.types import ModelError


class ResidueEncoder(nn.Module):
    """A language model up to its final layer norm, for objectives that read residue states and no attention map.

    The contact head and a pooler are not run, and their parameters are set to ``requires_grad=False``. Put LoRA
    adapters in (:func:`~contactlm.model.lora.add_lora`) before building this.

    Args:
        esm: The backbone. Used as it is and not copied; its training mode is kept.

    Raises:
        ModelError: A backbone with dropout on its attention maps.
    """

    def __init__(self, esm: Any) -> None:
        super().__init__()
        self.esm, self.family = esm, family_of(esm.config)
        if dropout := self.family.attention_dropout(esm.config):
            raise ModelError(
                f"attention_probs_dropout_prob is {dropout}: dropout on attention maps is not supported; set it "
                "(ESM C: attention_dropout) to 0 in the model's config.json"
            )
        for layer in self.family.layers(esm):
            layer.__class__ = self.family.layer_class
        for unread in (esm.contact_head, getattr(esm, "pooler", None)):
            if unread is not None:
                unread.requires_grad_(False)

    def forward(
        self, tokens: Tensor, attention_mask: Tensor | None = None, positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Encode residues.

        Args:
            tokens: int64 (B, T), the family's own numbers: ``<cls>``, residues, ``<eos>``, then ``<pad>``.
            attention_mask: (B, T), zero or False at padding; None: wherever a token is ``<pad>``.
            positions: int64 (B, T), the tokens' positions in the protein; None: 0, 1, 2, …

        Returns:
            The states (B, T − 2, E) after the final layer norm, meaningless where there is no residue; and bool
            (B, T − 2), whether there is one.

        Raises:
            ModelError: Tokens that are not (B, T) with T at least 3, or a mask or positions of another shape.
        """
        mask, layout, positions = read_batch(self.family, self.esm.config, tokens, attention_mask, positions)
        angles = self.family.angles(self.esm, positions)
        hidden = self.family.embed(self.esm, tokens, mask, positions)
        no_head = torch.zeros(0, device=tokens.device)
        how = {"layout": layout, "attention": _fused_attention, "last": False}
        for layer in self.family.layers(self.esm):
            hidden, _, _ = layer(hidden, angles, no_head, shares=how)
        residues = slice(1, -1)
        return self.family.final_norm(self.esm, hidden[:, residues]), layout.residue[:, residues]


def _fused_attention(
    query: Tensor, key: Tensor, value: Tensor | None, head_weight: Tensor, layout: TokenLayout
) -> Shares:
    """PyTorch's fused attention on (B, H, T, D), instead of contact attention: it shares no contacts."""
    if value is None:
        return None, head_weight, head_weight
    bias = None if layout.unpadded else layout.key_bias[:, None, None].to(value.dtype)
    query, key = query.to(value.dtype), key.to(value.dtype)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0), head_weight, head_weight
