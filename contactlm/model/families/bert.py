"""The models of ``BertModel``, with learned positions and layer norms after every residual.

ProtBert (Elnaggar et al. 2022), whose authors wrote U, Z, O and B as X, before training and since; so they are here.
Others (AntiBERTy, Ruffolo et al. 2021) by the vocabulary next to their weights, which ``vocabulary`` of their
configuration holds; a letter that it lacks is unknown. None has a published contact head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, BertModel
from transformers.models.bert.modeling_bert import BertLayer

from contactlm.alphabet import LETTERS
from contactlm.model.families.family import ContactHead, Family, LanguageModelHead, Tokens
from contactlm.model.families.vocabulary import PROTBERT, VOCABULARY_FILES, tokens_of
from contactlm.model.trunk import SharingLayer, rotate
from contactlm.types import ModelError


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


class Bert(Family):
    """A BERT with a vocabulary of its own."""

    name = "BERT"
    defaults: Mapping[str, Any] = {
        "pad_token_id": 0,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "max_position_embeddings": 1024,
    }
    config_class, stock_class, model_class, layer_class = BertConfig, BertModel, BertWithHead, SharingBertLayer
    masked_lm_class = BertForMaskedLM

    def __init__(self, tokens: Tokens | None = None) -> None:
        self.tokens = self.tokens if tokens is None else tokens

    def describes(self, config: Mapping[str, Any]) -> bool:
        return bool(config.get("vocabulary"))

    def of(self, config: Mapping[str, Any], name: str) -> Family:
        vocabulary = tuple(config["vocabulary"])
        try:
            return _bert(vocabulary, config.get("vocab_size", len(vocabulary)))
        except ModelError as error:
            raise ModelError(f"{name}: {error}") from error

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
        if config.is_decoder or config.add_cross_attention:
            raise ModelError(f"{name}: a decoder; only plain {self.name} encoders are supported")


class ProtBert(Bert):
    """ProtBert, and ProtBert-BFD."""

    name = "ProtBert"
    tokens = Tokens(
        size=len(PROTBERT),
        cls=PROTBERT.index("[CLS]"),
        pad=PROTBERT.index("[PAD]"),
        eos=PROTBERT.index("[SEP]"),
        unk=PROTBERT.index("[UNK]"),
        mask=PROTBERT.index("[MASK]"),
        letters={letter: PROTBERT.index("X" if letter in "UZOB" else letter) for letter in LETTERS},
    )
    defaults: Mapping[str, Any] = {**Bert.defaults, "vocab_size": tokens.size, "max_position_embeddings": 40000}

    def describes(self, config: Mapping[str, Any]) -> bool:
        return not config.get("vocabulary")

    def of(self, config: Mapping[str, Any], name: str) -> Family:
        return self

    def check(self, name: str, config: Any) -> None:
        super().check(name, config)
        own = (self.tokens.size, self.tokens.pad)
        if (given := (config.vocab_size, config.pad_token_id)) != own:
            raise ModelError(
                f"{name}: model_type is 'bert', but vocab_size and pad_token_id are {given}; those of ProtBert are "
                f"{own}; for another vocabulary put its {' or '.join(VOCABULARY_FILES)} next to the weights"
            )


@lru_cache
def _bert(vocabulary: tuple[str, ...], size: int) -> Bert:
    return Bert(tokens_of(vocabulary, size))


FAMILIES = (ProtBert(), Bert())
