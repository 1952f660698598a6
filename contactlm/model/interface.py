"""Contact attention for stock transformers models, through the library's attention interface.

:class:`~contactlm.model.backbone.ContactBackbone` runs ESM2's layers itself and leaves out what the contact head does
not read. This module is for everybody else's ESM: it registers ``"contactlm"`` as an attention implementation, and a
collector given to the model's call takes every layer's share of the contact logits on the way::

    esm.set_attn_implementation("contactlm")
    shares = ContactShares(esm, tokens)
    hidden = esm(tokens, attention_mask=shares.mask, contact_shares=shares).last_hidden_state
    logits = shares.logits()
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, cat
from transformers import AttentionInterface, AttentionMaskInterface, EsmModel
from transformers.masking_utils import sdpa_mask

from contactlm.alphabet import PAD
from contactlm.model.blocks import TokenLayout
from contactlm.model.contact_attention import contact_attention, contact_logits
from contactlm.model.lora import contact_regression
from contactlm.types import ModelError

NAME = "contactlm"


class ContactShares:
    """Collects the layers' shares of the contact logits during one call of the model.

    Args:
        esm: The model that is going to be called.
        tokens: int64 (B, T), as for :class:`~contactlm.model.backbone.ContactBackbone`.
        attention_mask: (B, T), zero or False at padding; None: wherever a token is ``<pad>``.
    """

    def __init__(self, esm: EsmModel, tokens: Tensor, attention_mask: Tensor | None = None) -> None:
        self.mask = tokens != PAD if attention_mask is None else attention_mask.bool()
        self.layout = TokenLayout.of(tokens, self.mask)
        regression = contact_regression(esm)
        self.weights, self.bias = regression.weight[0], regression.bias
        self._layers, self._heads = esm.config.num_hidden_layers, esm.config.num_attention_heads
        self._weighted: Tensor | None = None
        self._margins: list[Tensor] = []

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend in the next layer: query, key and value (B, H, T, D) to the context (B, H, T, D)."""
        layer = len(self._margins) % self._layers  # activation checkpointing runs the layers again
        weights = self.weights[layer * self._heads : (layer + 1) * self._heads]
        context, weighted, margins = contact_attention(query, key, value, weights, self.layout)
        if len(self._margins) < self._layers:
            self._weighted = weighted if self._weighted is None else self._weighted + weighted
            self._margins.append(margins)
        return context if context is not None else value

    def logits(self) -> Tensor:
        """Contact logits (B, T − 2, T − 2), float32; 0 where a residue is padding.

        Raises:
            ModelError: The model was not called with this collector, or not with this attention implementation.
        """
        if self._weighted is None or len(self._margins) != self._layers:
            raise ModelError(
                f"{len(self._margins)} of {self._layers} layers handed over their share; call set_attn_implementation"
                f'("{NAME}") on the model and pass contact_shares to its call'
            )
        residues = slice(1, -1)
        margins = cat(self._margins, dim=1)[:, :, residues]
        logits = contact_logits(self._weighted[:, residues, residues], margins, self.weights, self.bias)
        inside = self.layout.residue[:, residues].bool()
        return logits.masked_fill(~(inside[:, :, None] & inside[:, None, :]), 0)


def attention_forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    contact_shares: ContactShares | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer; without a collector it is PyTorch's fused attention."""
    if contact_shares is None:
        context = F.scaled_dot_product_attention(query, key, value, attention_mask, dropout, scale=scaling)
    else:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        context = contact_shares.attend(query * scale, key, value)
    return context.transpose(1, 2).contiguous(), None


def register() -> None:
    """Make the implementation known to transformers under the name ``"contactlm"``."""
    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)


register()
