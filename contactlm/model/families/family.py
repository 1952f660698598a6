"""What has to be known of a family of language models to read contacts from its attention maps; which a model is of.

Axis letters: B batch, T tokens, E hidden width, C layers x heads.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from contactlm.alphabet import CLS, EOS, MASK, PAD, UNK, VOCABULARY
from contactlm.types import ModelError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tokens:
    """A family's token numbers.

    Attributes:
        size: Tokens of the vocabulary.
        cls: Before the first residue; ``pad``, ``eos`` (after the last), ``unk`` and ``mask`` alike.
        letters: Token of every letter of the ESM alphabet; None: all numbers are those of the ESM alphabet. A letter
            that the family lacks has the token of an unknown residue.
    """

    size: int = len(VOCABULARY)
    cls: int = CLS
    pad: int = PAD
    eos: int = EOS
    unk: int = UNK
    mask: int = MASK
    letters: Mapping[str, int] | None = None

    def own(self, tokens: Tensor) -> Tensor:
        """Turn numbers of the ESM alphabet into the family's own; any shape."""
        if self.letters is None:
            return tokens
        special = {CLS: self.cls, PAD: self.pad, EOS: self.eos, MASK: self.mask}
        table = [special.get(number, self.letters.get(name, self.unk)) for number, name in enumerate(VOCABULARY)]
        return torch.tensor(table, device=tokens.device)[tokens.long()]

    def common(self, tokens: Tensor) -> Tensor:
        """Turn the family's own numbers back into those of the ESM alphabet; any shape.

        Of several letters that the family does not tell apart it is the first: the family reads the same.
        """
        if self.letters is None:
            return tokens
        table = torch.full((self.size,), -1)
        every = self.own(torch.arange(len(VOCABULARY))).tolist()
        for number in reversed(range(len(every))):
            table[every[number]] = number
        found = table.to(tokens.device)[tokens.long()]
        if (found < 0).any():
            raise ModelError(
                f"tokens: {int(tokens[found < 0][0])} stands for no letter of the ESM alphabet, which this takes"
            )
        return found


class LanguageModelHead(NamedTuple):
    """What makes logits of masked residues out of final states; V tokens of the vocabulary."""

    transform: nn.Module  # (…, E) to (…, E)
    weight: Tensor  # (V, E)
    bias: Tensor  # (V,)


class Family(ABC):
    """One family; its methods take a model of it, with adapters in it or without."""

    name: str  # as people call it
    tokens: Tokens = Tokens()
    defaults: Mapping[str, Any] = {}  # arguments of its configuration, where a random model's are left out
    model_options: Mapping[str, Any] = {}  # arguments with which its models are made
    lora_targets: tuple[str, ...] = ("query", "key")  # the linear layers that make queries and keys
    dropout_name: str = "attention_probs_dropout_prob"  # dropout on attention maps, in its configuration
    published_head: bool = False  # whether its published checkpoints bring a trained contact head
    config_class: Any
    stock_class: Any  # the one of transformers
    model_class: Any  # the same with a contact head
    masked_lm_class: Any  # the stock class that predicts masked residues
    layer_class: type[nn.Module]  # the stock layer, which is also called for its contact shares

    def describes(self, config: Mapping[str, Any]) -> bool:
        """Whether a ``config.json`` is of this family, among those of its ``model_type``."""
        return True

    def of(self, config: Mapping[str, Any], name: str) -> Family:
        """The family as such a ``config.json`` has it: with a vocabulary of its own, where it may have one."""
        return self

    @abstractmethod
    def layers(self, model: Any) -> nn.ModuleList:
        """The model's layers, first to last."""

    @abstractmethod
    def embed(self, model: Any, tokens: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """What the first layer takes, (B, T, E), of tokens (B, T), mask (B, T) and positions (1 or B, T), from 0."""

    def angles(self, model: Any, positions: Tensor) -> Tensor | None:
        """Rotary angles, float32 (1 or B, T, D / 2); None: the family does not rotate."""
        return None

    @abstractmethod
    def final_norm(self, model: Any, hidden: Any) -> Tensor:
        """Turn the last layer's output into final states."""

    @abstractmethod
    def after_the_last_maps(self, model: Any) -> Sequence[nn.Module]:
        """What feeds nothing but final states, and no attention map."""

    @abstractmethod
    def language_model_head(self, model: Any) -> LanguageModelHead:
        """The head of a model of ``masked_lm_class``."""

    def reach(self, config: Any) -> int | None:
        """Most tokens in one pass, where positions are learned; None: no such bound."""
        return None

    def stop_attention_dropout(self, config: Any) -> None:
        """Set dropout on attention maps to 0: it would be dropout on the contact head's input."""
        if dropout := getattr(config, self.dropout_name):
            setattr(config, self.dropout_name, 0.0)
            log.info(f"{self.dropout_name} of the model's config.json is {dropout}; 0 is taken, for maps are read here")

    def check(self, name: str, config: Any) -> None:
        """Refuse a configuration, of ``config_class``, whose model could not be run."""
        own = {"vocab_size": self.tokens.size, "pad_token_id": self.tokens.pad}
        own |= {"mask_token_id": self.tokens.mask} if hasattr(config, "mask_token_id") else {}
        ids = tuple(getattr(config, key) for key in own)
        if [type(value) for value in ids] != [int] * len(ids) or ids != tuple(own.values()):
            *first, last = own
            raise ModelError(
                f"{name}: model_type is {config.model_type!r}, but {', '.join(first)} and {last} are {ids}; those of "
                f"{self.name}, whose tokens are used here, are {tuple(own.values())}"
            )


class ContactHead(nn.Module):
    """A contact head for a model that brings none: a logistic regression over C attention maps."""

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.regression = nn.Linear(maps, 1)


FILES = {"esm": "esm", "esmc": "esmc", "bert": "bert"}  # model_type of config.json -> file of this folder
_NO_FAMILY = "no family that contacts can be read from"
_CODE = "it needs code that comes with the checkpoint, and code from checkpoints is not run"
_NO_MAPS = "state-space and convolutional models have no attention maps to read contacts from"
_REASONS = {
    "t5": (
        "ProtT5 adds a bias of its own to every score and has no <cls>; the streamed operation takes neither, and "
        "storing the bias (heads x tokens x tokens) is what it is there to avoid"
    ),
    "esm3": "it needs code of its own, which transformers does not have",
    **dict.fromkeys(("mamba", "mamba2", "hyena", "hyenadna", "caduceus", "evo", "stripedhyena"), _NO_MAPS),
}


def family_of(config: Any, name: str = "the model") -> Family:
    """Tell the family of a configuration of transformers, or of the values of a ``config.json``."""
    values: Mapping[str, Any] = config if isinstance(config, Mapping) else vars(config)
    kind: Any = values.get("model_type") if isinstance(config, Mapping) else config.model_type
    if not isinstance(kind, str) or kind not in FILES:
        reason = _REASONS.get(kind, _CODE if values.get("auto_map") else _NO_FAMILY)
        supported = ", ".join(map(repr, FILES))
        raise ModelError(f"{name}: model_type is {kind!r}: {reason}; supported are {supported}")
    try:
        families: tuple[Family, ...] = import_module(f"contactlm.model.families.{FILES[kind]}").FAMILIES
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("transformers."):
            raise
        raise ModelError(
            f"{name}: the installed transformers has no {error.name}; install a newer release (pip install -U "
            "transformers)"
        ) from error
    for family in families:
        if family.describes(values):
            return family.of(values, name)
    raise ModelError(f"{name}: model_type is {kind!r}, but its position_embedding_type is none of a known family")
