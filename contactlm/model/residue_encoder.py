"""ESM2 as an encoder of residues: tokens in, final residue states out, with fused attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import EsmModel

from contactlm.model.blocks import TokenLayout
from contactlm.model.contact_attention import Shares
from contactlm.model.trunk import SharingLayer, check_tokens, rotary_angles
from contactlm.types import ModelError


class ResidueEncoder(nn.Module):
    """ESM2 up to its final layer norm, for objectives that read residue states and no attention map.

    The contact head and a pooler are not run, and their parameters are set to ``requires_grad=False``. Put LoRA
    adapters in (:func:`~contactlm.model.lora.add_lora`) before building this.

    Args:
        esm: The backbone. Used as it is and not copied; its training mode is kept.

    Raises:
        ModelError: A backbone with dropout on its attention maps.
    """

    def __init__(self, esm: EsmModel) -> None:
        super().__init__()
        if esm.config.attention_probs_dropout_prob:
            raise ModelError(
                f"attention_probs_dropout_prob is {esm.config.attention_probs_dropout_prob}: dropout on attention maps "
                "is not supported; set it to 0 in the model's config.json"
            )
        self.esm = esm
        for layer in esm.encoder.layer:
            layer.__class__ = SharingLayer
        for unread in (esm.contact_head, esm.pooler):
            if unread is not None:
                unread.requires_grad_(False)

    def forward(
        self, tokens: Tensor, attention_mask: Tensor | None = None, positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Encode residues.

        Args:
            tokens: int64 (B, T): ``<cls>``, residues, ``<eos>``, then ``<pad>``.
            attention_mask: (B, T), zero or False at padding; None: wherever a token is ``<pad>``.
            positions: int64 (B, T), the tokens' positions in the protein; None: 0, 1, 2, …

        Returns:
            The states (B, T − 2, E) after the final layer norm, meaningless where there is no residue; and bool
            (B, T − 2), whether there is one.

        Raises:
            ModelError: Tokens that are not (B, T) with T at least 3, or a mask or positions of another shape.
        """
        mask = check_tokens(tokens, attention_mask, positions)
        layout = TokenLayout.of(tokens, mask)
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0)
        angles = rotary_angles(self.esm, positions)
        hidden = self.esm.embeddings(input_ids=tokens, attention_mask=mask.long())
        no_head = angles.new_zeros(0)
        how = {"layout": layout, "attention": _fused_attention, "last": False}
        for layer in self.esm.encoder.layer:
            hidden, _, _ = layer(hidden, angles, no_head, shares=how)
        residues = slice(1, -1)
        return self.esm.encoder.emb_layer_norm_after(hidden[:, residues]), layout.residue[:, residues]


def _fused_attention(
    query: Tensor, key: Tensor, value: Tensor | None, head_weight: Tensor, layout: TokenLayout
) -> Shares:
    """PyTorch's fused attention on (B, H, T, D), instead of contact attention: it shares no contacts."""
    if value is None:
        return None, head_weight, head_weight
    bias = None if layout.unpadded else layout.key_bias[:, None, None].to(value.dtype)
    query, key = query.to(value.dtype), key.to(value.dtype)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0), head_weight, head_weight
