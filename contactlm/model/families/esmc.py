"""ESM C (EvolutionaryScale 2024): rotary positions, normed queries and keys, gated feed-forward, scaled residuals.

Its tokens are those of the ESM alphabet but for ``|``, which divides chains, in the place of ``<null_1>``. There is no
published contact head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers.models.esmc.configuration_esmc import EsmcConfig
from transformers.models.esmc.modeling_esmc import EsmcForMaskedLM, EsmcLayer, EsmcModel

from contactlm.model.families.family import ContactHead, Family, LanguageModelHead, Tokens
from contactlm.model.remade import cheap
from contactlm.model.trunk import SharingLayer, rotary_angles, rotate
from contactlm.types import ModelError


class EsmcWithHead(EsmcModel):
    """The stock model and a contact head."""

    def __init__(self, config: EsmcConfig) -> None:
        super().__init__(config)
        self.contact_head = ContactHead(config.num_hidden_layers * config.num_attention_heads)
        self.post_init()


class SharingEsmcLayer(SharingLayer, EsmcLayer):
    """The layer of ESM C."""

    def project(self, hidden: Tensor, angles: Tensor | None, last: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """Queries and keys, normed over all heads together before they are rotated, and values."""
        heads, normed = self.self_attn, cheap(self.input_layernorm, hidden)
        split = (*hidden.shape[:2], -1, heads.head_dim)
        query = rotate(heads.q_norm(heads.q_proj(normed)).view(split), angles, heads.scaling)
        key = rotate(heads.k_norm(heads.k_proj(normed)).view(split), angles, 1.0)
        return query, key, None if last else heads.v_proj(normed).view(split).transpose(1, 2)

    def finish(self, hidden: Tensor, context: Tensor) -> Tensor:
        hidden = hidden + self.self_attn.o_proj(context) / self.scaling_factor
        return hidden + self.mlp(cheap(self.post_attention_layernorm, hidden)) / self.scaling_factor


class EsmC(Family):
    """ESM C."""

    name = "ESM C"
    tokens = Tokens(size=64)
    defaults: Mapping[str, Any] = {"vocab_size": 64, "attention_dropout": 0.0}
    lora_targets = ("q_proj", "k_proj")
    dropout_name = "attention_dropout"
    config_class, stock_class, model_class, layer_class = EsmcConfig, EsmcModel, EsmcWithHead, SharingEsmcLayer
    masked_lm_class = EsmcForMaskedLM

    def layers(self, model: Any) -> nn.ModuleList:
        return model.layers

    def embed(self, model: Any, tokens: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        return model.embed_tokens(tokens)

    def angles(self, model: Any, positions: Tensor) -> Tensor:
        return rotary_angles(model.rotary_emb.inv_freq, positions)

    def final_norm(self, model: Any, hidden: Tensor) -> Tensor:
        return model.norm(hidden)

    def after_the_last_maps(self, model: Any) -> Sequence[nn.Module]:
        last = model.layers[-1]
        return [last.self_attn.v_proj, last.self_attn.o_proj, last.post_attention_layernorm, last.mlp, model.norm]

    def language_model_head(self, model: Any) -> LanguageModelHead:
        head = model.lm_head
        transform = nn.Sequential(head.dense, nn.GELU(), head.layer_norm)
        return LanguageModelHead(transform, head.decoder.weight, head.decoder.bias)

    def check(self, name: str, config: Any) -> None:
        super().check(name, config)
        kind = (config.rope_parameters or {}).get("rope_type", "default")
        if kind != "default" or config.head_dim % 2:
            raise ModelError(
                f"{name}: rope_type is {kind!r} and head_dim {config.head_dim}; ESM C has 'default' and an even one"
            )


FAMILIES = (EsmC(),)
