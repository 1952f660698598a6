"""ESM2 (Lin et al. 2023): rotary positions, layer norms before attention and feed-forward; a trained contact head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import EsmConfig, EsmForMaskedLM, EsmModel
from transformers.models.esm.modeling_esm import EsmLayer

from contactlm.model.families.family import Family, LanguageModelHead
from contactlm.model.remade import cheap
from contactlm.model.trunk import SharingLayer, rotary_angles, rotate
from contactlm.types import ModelError


class SharingEsmLayer(SharingLayer, EsmLayer):
    """The layer of ESM2, ESM-1b, ESM-1v and SaProt: rotated where angles are given, else not."""

    products = (
        ("attention.self.query", "attention.self.key", "attention.self.value"),
        ("attention.output.dense",),
        ("intermediate.dense",),
        ("output.dense",),
    )

    def project(self, hidden: Tensor, angles: Tensor | None, last: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """Queries, keys and values."""
        heads, normed = self.attention.self, cheap(self.attention.LayerNorm, hidden)
        split = (*hidden.shape[:2], heads.num_attention_heads, heads.attention_head_size)
        query = rotate(heads.query(normed).view(split), angles, heads.attention_head_size**-0.5)
        key = rotate(heads.key(normed).view(split), angles, 1.0)
        return query, key, None if last else heads.value(normed).view(split).transpose(1, 2)

    def finish(self, hidden: Tensor, context: Tensor) -> Tensor:
        """Output, residual and feed-forward."""
        hidden = self.attention.output(context, hidden)
        # The erf form in one pass; transformers spells it out in five.
        return self.output(cheap(F.gelu, self.intermediate.dense(cheap(self.LayerNorm, hidden))), hidden)


class EsmFamily(Family):
    """What the models of ``EsmModel`` share."""

    config_class, stock_class, model_class, layer_class = EsmConfig, EsmModel, EsmModel, SharingEsmLayer
    masked_lm_class = EsmForMaskedLM
    model_options: Mapping[str, Any] = {"add_pooling_layer": False}

    def layers(self, model: Any) -> nn.ModuleList:
        """Its encoder's."""
        return model.encoder.layer

    def final_norm(self, model: Any, hidden: Tensor) -> Tensor:
        """A layer norm."""
        return model.encoder.emb_layer_norm_after(hidden)

    def after_the_last_maps(self, model: Any) -> Sequence[nn.Module]:
        """Value, output and feed-forward of the last layer, the final layer norm."""
        last = model.encoder.layer[-1]
        attention = (last.attention.self.value, last.attention.output)
        return [*attention, last.LayerNorm, last.intermediate, last.output, model.encoder.emb_layer_norm_after]

    def language_model_head(self, model: Any) -> LanguageModelHead:
        """Its decoder's weights are the embeddings, its bias lies beside."""
        head = model.lm_head
        return LanguageModelHead(nn.Sequential(head.dense, nn.GELU(), head.layer_norm), head.decoder.weight, head.bias)

    def check(self, name: str, config: Any) -> None:
        """Refuse other tokens, decoders and folding models."""
        super().check(name, config)
        if config.is_decoder or config.add_cross_attention or config.is_folding_model:
            raise ModelError(f"{name}: a decoder or folding model; only plain {self.name} encoders are supported")
        if config.hidden_size % (2 * config.num_attention_heads) and config.position_embedding_type == "rotary":
            raise ModelError(
                f"{name}: hidden_size {config.hidden_size} is not a multiple of twice num_attention_heads "
                f"({config.num_attention_heads}): heads need an even width for rotary embeddings"
            )


class RotaryEsm(EsmFamily):
    """Rotary ``EsmModel``."""

    def embed(self, model: Any, tokens: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """Residues alone: positions come with queries and keys."""
        return model.embeddings(input_ids=tokens, attention_mask=mask.long())

    def angles(self, model: Any, positions: Tensor) -> Tensor:
        """Of the model's frequencies."""
        return rotary_angles(model.rotary_embeddings.inv_freq, positions)

    def describes(self, config: Mapping[str, Any]) -> bool:
        """Rotary, with this family's number of tokens or an odd one."""
        return config.get("position_embedding_type") == "rotary"


class Esm2(RotaryEsm):
    """ESM2."""

    name = "ESM2"
    published_head = True
    defaults: Mapping[str, Any] = {
        "vocab_size": RotaryEsm.tokens.size,
        "pad_token_id": RotaryEsm.tokens.pad,
        "eos_token_id": RotaryEsm.tokens.eos,
        "mask_token_id": RotaryEsm.tokens.mask,
        "position_embedding_type": "rotary",
        "token_dropout": True,
        "emb_layer_norm_before": False,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": 1e-5,
    }


FAMILIES = (Esm2(),)
