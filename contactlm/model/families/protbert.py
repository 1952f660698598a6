"""ProtBert (Elnaggar et al. 2022): ``BertModel`` with learned positions and layer norms after every residual.

Its authors wrote U, Z, O and B as X, before training and since; so they are here. There is no published contact head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, BertModel
from transformers.models.bert.modeling_bert import BertLayer

from contactlm.alphabet import LETTERS
from contactlm.model.families.family import ContactHead, Family, LanguageModelHead, Tokens
from contactlm.model.trunk import SharingLayer, rotate
from contactlm.types import ModelError

VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"LAGVESIKRDTPNQFYMHCWXUBZO")


class BertWithHead(BertModel):
    """The stock model, without a pooler, and a contact head."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config, add_pooling_layer=False)
        self.contact_head = ContactHead(config.num_hidden_layers * config.num_attention_heads)
        self.post_init()


class SharingBertLayer(SharingLayer, BertLayer):
    """The layer of BERT."""

    def project(self, hidden: Tensor, angles: Tensor | None, last: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        heads = self.attention.self
        split = (*hidden.shape[:2], heads.num_attention_heads, heads.attention_head_size)
        query = rotate(heads.query(hidden).view(split), None, heads.scaling)
        key = rotate(heads.key(hidden).view(split), None, 1.0)
        return query, key, None if last else heads.value(hidden).view(split).transpose(1, 2)

    def finish(self, hidden: Tensor, context: Tensor) -> Tensor:
        hidden = self.attention.output(context, hidden)
        return self.output(self.intermediate(hidden), hidden)


class ProtBert(Family):
    """ProtBert, and ProtBert-BFD."""

    name = "ProtBert"
    tokens = Tokens(
        size=len(VOCABULARY),
        cls=VOCABULARY.index("[CLS]"),
        pad=VOCABULARY.index("[PAD]"),
        eos=VOCABULARY.index("[SEP]"),
        unk=VOCABULARY.index("[UNK]"),
        mask=VOCABULARY.index("[MASK]"),
        letters={letter: VOCABULARY.index("X" if letter in "UZOB" else letter) for letter in LETTERS},
    )
    defaults: Mapping[str, Any] = {
        "vocab_size": tokens.size,
        "pad_token_id": tokens.pad,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "max_position_embeddings": 40000,
    }
    config_class, stock_class, model_class, layer_class = BertConfig, BertModel, BertWithHead, SharingBertLayer
    masked_lm_class = BertForMaskedLM

    def layers(self, model: Any) -> nn.ModuleList:
        return model.encoder.layer

    def embed(self, model: Any, tokens: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        return model.embeddings(input_ids=tokens, position_ids=positions.expand(tokens.shape))

    def final_norm(self, model: Any, hidden: Tensor) -> Tensor:
        return hidden

    def after_the_last_maps(self, model: Any) -> Sequence[nn.Module]:
        last = model.encoder.layer[-1]
        return [last.attention.self.value, last.attention.output, last.intermediate, last.output]

    def language_model_head(self, model: Any) -> LanguageModelHead:
        head = model.cls.predictions
        return LanguageModelHead(head.transform, head.decoder.weight, head.bias)

    def reach(self, config: Any) -> int:
        return config.max_position_embeddings

    def check(self, name: str, config: Any) -> None:
        super().check(name, config)
        if config.is_decoder or config.add_cross_attention:
            raise ModelError(f"{name}: a decoder; only plain ProtBert encoders are supported")


FAMILIES = (ProtBert(),)
