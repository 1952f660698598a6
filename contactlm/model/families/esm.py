"""The models of ``EsmModel``: ESM2, SaProt, ESM-1b and ESM-1v.

ESM2 (Lin et al. 2023) has rotary positions, layer norms before attention and feed-forward, and a trained contact head.
SaProt (Su et al. 2024) has its layers, and a token for every pair of residue and structure letter. Here it is given
residues alone: the structure letter is ``#``, unknown. X, B, Z, U and O become ``##``.
ESM-1b (Rives et al. 2021) and ESM-1v (Meier et al. 2021) have learned positions. ESM-1b normalises its embeddings and
has a trained contact head; ESM-1v does neither. The contact heads in the published checkpoints of SaProt and ESM-1v
were never trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import EsmConfig, EsmForMaskedLM, EsmModel
from transformers.models.esm.modeling_esm import EsmLayer

from contactlm.alphabet import LETTERS
from contactlm.model.families.family import Family, LanguageModelHead, Tokens
from contactlm.model.remade import cheap
from contactlm.model.trunk import SharingLayer, rotary_angles, rotate
from contactlm.types import ModelError


class SharingEsmLayer(SharingLayer, EsmLayer):
    """The layer of ESM2, ESM-1b, ESM-1v and SaProt: rotated where angles are given, else not."""

    def project(self, hidden: Tensor, angles: Tensor | None, last: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        heads, normed = self.attention.self, cheap(self.attention.LayerNorm, hidden)
        split = (*hidden.shape[:2], heads.num_attention_heads, heads.attention_head_size)
        query = rotate(heads.query(normed).view(split), angles, heads.attention_head_size**-0.5)
        key = rotate(heads.key(normed).view(split), angles, 1.0)
        return query, key, None if last else heads.value(normed).view(split).transpose(1, 2)

    def finish(self, hidden: Tensor, context: Tensor) -> Tensor:
        hidden = self.attention.output(context, hidden)
        # The erf form in one pass; transformers spells it out in five.
        return self.output(cheap(F.gelu, self.intermediate.dense(cheap(self.LayerNorm, hidden))), hidden)


class EsmFamily(Family):
    """What the models of ``EsmModel`` share."""

    config_class, stock_class, model_class, layer_class = EsmConfig, EsmModel, EsmModel, SharingEsmLayer
    masked_lm_class = EsmForMaskedLM
    model_options: Mapping[str, Any] = {"add_pooling_layer": False}

    def layers(self, model: Any) -> nn.ModuleList:
        return model.encoder.layer

    def final_norm(self, model: Any, hidden: Tensor) -> Tensor:
        return model.encoder.emb_layer_norm_after(hidden)

    def after_the_last_maps(self, model: Any) -> Sequence[nn.Module]:
        last = model.encoder.layer[-1]
        attention = (last.attention.self.value, last.attention.output)
        return [*attention, last.LayerNorm, last.intermediate, last.output, model.encoder.emb_layer_norm_after]

    def language_model_head(self, model: Any) -> LanguageModelHead:
        head = model.lm_head
        return LanguageModelHead(nn.Sequential(head.dense, nn.GELU(), head.layer_norm), head.decoder.weight, head.bias)

    def check(self, name: str, config: Any) -> None:
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
        return model.embeddings(input_ids=tokens, attention_mask=mask.long())

    def angles(self, model: Any, positions: Tensor) -> Tensor:
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


_SPECIAL = ("<cls>", "<pad>", "<eos>", "<unk>", "<mask>")
_RESIDUES = "ACDEFGHIKLMNPQRSTVWY#"
_STRUCTURE = "pynwrqhgdlvtmfsaeikc#"  # of Foldseek
VOCABULARY = (*_SPECIAL, *(residue + structure for residue in _RESIDUES for structure in _STRUCTURE))


def _token(letter: str) -> int:
    return VOCABULARY.index(f"{letter if letter in _RESIDUES else '#'}#")


class SaProt(RotaryEsm):
    """SaProt without structure."""

    name = "SaProt"
    tokens = Tokens(
        size=len(VOCABULARY),
        mask=VOCABULARY.index("<mask>"),
        letters={letter: _token(letter) for letter in LETTERS},
    )
    defaults: Mapping[str, Any] = {**Esm2.defaults, "vocab_size": tokens.size, "mask_token_id": tokens.mask}

    def describes(self, config: Mapping[str, Any]) -> bool:
        return super().describes(config) and config.get("vocab_size") == self.tokens.size


class Esm1b(EsmFamily):
    """ESM-1b."""

    name = "ESM-1b"
    published_head = True
    normed_embeddings = True
    defaults: Mapping[str, Any] = {
        **Esm2.defaults,
        "position_embedding_type": "absolute",
        "emb_layer_norm_before": True,
        "max_position_embeddings": 1026,
    }

    def describes(self, config: Mapping[str, Any]) -> bool:
        """Learned positions, and normed embeddings or not."""
        learned = config.get("position_embedding_type", "absolute") == "absolute"
        return learned and bool(config.get("emb_layer_norm_before")) is self.normed_embeddings

    def embed(self, model: Any, tokens: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """Residues and positions, which count from the number after ``<pad>``."""
        learned = (positions + self.tokens.pad + 1).expand(tokens.shape)
        return model.embeddings(input_ids=tokens, attention_mask=mask.long(), position_ids=learned)

    def reach(self, config: Any) -> int:
        """Two of the learned positions are never used."""
        return config.max_position_embeddings - self.tokens.pad - 1


class Esm1v(Esm1b):
    """ESM-1v."""

    name = "ESM-1v"
    published_head = False
    normed_embeddings = False
    defaults: Mapping[str, Any] = {**Esm1b.defaults, "emb_layer_norm_before": False}


FAMILIES = (SaProt(), Esm1b(), Esm1v(), Esm2())  # the first that describes a model
