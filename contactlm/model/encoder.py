"""A language model without contacts: final states of residues, and logits of the amino acids."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contactlm.model.blocks import TokenLayout
from contactlm.model.contact_attention import Shares
from contactlm.model.families.family import Family, LanguageModelHead, family_of
from contactlm.model.loading import located, quiet_transformers
from contactlm.model.trunk import read_batch
from contactlm.types import ModelError


class ResidueEncoder(nn.Module):
    """A language model up to its final layer norm, for objectives that read residue states and no attention map.

    The contact head and a pooler are not run, and their parameters are set to ``requires_grad=False``. Put LoRA
    adapters in (:func:`~contactlm.model.lora.add_lora`) before building this.
    """

    def __init__(self, esm: Any) -> None:
        super().__init__()
        self.esm, self.family = esm, family_of(esm.config)
        self.family.stop_attention_dropout(esm.config)
        for layer in self.family.layers(esm):
            layer.__class__ = self.family.layer_class
        for unread in (esm.contact_head, getattr(esm, "pooler", None)):
            if unread is not None:
                unread.requires_grad_(False)

    def forward(
        self, tokens: Tensor, attention_mask: Tensor | None = None, positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Encode residues; arguments and errors as of :meth:`~contactlm.model.backbone.ContactBackbone.forward`.

        Returns:
            The states (B, T − 2, E) after the final layer norm, meaningless where there is no residue; and bool
            (B, T − 2), whether there is one.
        """
        mask, layout, positions = read_batch(self.family, self.esm.config, tokens, attention_mask, positions)
        angles = self.family.angles(self.esm, positions)
        hidden = self.family.embed(self.esm, tokens, mask, positions)
        no_head = torch.zeros(0, device=tokens.device)
        how = {"layout": layout, "attention": _fused_attention, "last": False}
        for layer in self.family.layers(self.esm):
            hidden, _, _ = layer(hidden, angles, no_head, shares=how)
        return self.family.final_norm(self.esm, hidden[:, 1:-1]), layout.residue[:, 1:-1]


def _fused_attention(
    query: Tensor, key: Tensor, value: Tensor | None, head_weight: Tensor, layout: TokenLayout
) -> Shares:
    """PyTorch's fused attention on (B, H, T, D), instead of contact attention: it shares no contacts."""
    if value is None:
        return None, head_weight, head_weight
    bias = None if layout.unpadded else layout.key_bias[:, None, None].to(value.dtype)
    query, key = query.to(value.dtype), key.to(value.dtype)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0), head_weight, head_weight


class MaskedLanguageModel(nn.Module):
    """A language model with the head it was trained with, frozen, for some letters of its vocabulary."""

    def __init__(self, esm: Any, head: LanguageModelHead, letters: Sequence[int]) -> None:
        super().__init__()
        self.encoder, self.transform = ResidueEncoder(esm), head.transform
        self.letters = nn.Linear(head.weight.shape[1], len(letters))
        with torch.no_grad():
            self.letters.weight.copy_(head.weight[list(letters)])
            self.letters.bias.copy_(head.bias[list(letters)])
        self.requires_grad_(False)

    @property
    def esm(self) -> Any:
        """The backbone."""
        return self.encoder.esm

    @property
    def family(self) -> Family:
        """What is known of the backbone's family."""
        return self.encoder.family

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """Compute logits; arguments and errors as of :meth:`~contactlm.model.backbone.ContactBackbone.forward`.

        Returns:
            float32 (B, T, letters), also in mixed precision (float64 of a float64 model); 0 at the first and the last
            token, meaningless where there is no residue.
        """
        states, _ = self.encoder(tokens, attention_mask, positions)
        states = self.transform(states)
        with torch.autocast(tokens.device.type, enabled=False):  # differences of logits need the digits
            logits = self.letters(states.to(self.letters.weight))
        return F.pad(logits, (0, 0, 1, 1))


def load_language_model_head(esm: Any, pretrained: str | None, seed: int = 0) -> LanguageModelHead:
    """Load the head that a backbone was trained with as a masked language model."""
    family = family_of(esm.config)
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.random.default_generator.manual_seed(seed)
        if pretrained is None:
            return _random_head(esm)
        whole, report = family.masked_lm_class.from_pretrained(
            located(pretrained), output_loading_info=True, dtype=torch.float32
        )
    # A decoder that shares its weights with the embeddings is listed with those, if at all.
    own = {name for name, _ in whole.named_parameters() if not name.startswith(f"{whole.base_model_prefix}.")}
    if lost := sorted(own & set(report["missing_keys"])):
        raise ModelError(
            f"{pretrained}: no language-model head ({', '.join(lost)}) in the checkpoint, and the categorical Jacobian "
            f"reads its logits; give a model saved from {family.masked_lm_class.__name__}, as the published ones are"
        )
    return family.language_model_head(whole)


def _random_head(esm: Any) -> LanguageModelHead:
    """A head as its stock class begins with, its decoder the backbone's embeddings where the class has it so."""
    family, config = family_of(esm.config), copy.deepcopy(esm.config)
    config.num_hidden_layers = 1  # of which nothing is wanted
    whole = family.masked_lm_class(config)
    head = family.language_model_head(whole)
    is_tied = head.weight is whole.get_input_embeddings().weight
    return head._replace(weight=esm.get_input_embeddings().weight) if is_tied else head
