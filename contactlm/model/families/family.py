"""What has to be known of a family of language models to read contacts from its attention maps.

Axis letters: B batch, T tokens, E hidden width, C layers x heads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from contactlm.alphabet import CLS, EOS, MASK, PAD, UNK, VOCABULARY
from contactlm.types import ModelError


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

        Raises:
            ModelError: A number that stands for nothing in the ESM alphabet.
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
    """What makes logits of masked residues out of final states.

    Attributes:
        transform: (…, E) to (…, E).
        weight: (V, E), V tokens of the vocabulary.
        bias: (V,).
    """

    transform: nn.Module
    weight: Tensor
    bias: Tensor


class Family(ABC):
    """One family; its methods take a model of it, with adapters in it or without.

    Attributes:
        name: As people call it.
        tokens: Its token numbers.
        defaults: Arguments of its configuration, where a random model's are left out.
        model_options: Arguments with which its models are made.
        lora_targets: The linear layers that make queries and keys.
        published_head: Whether its published checkpoints bring a trained contact head.
    """

    name: str
    tokens: Tokens = Tokens()
    defaults: Mapping[str, Any] = {}
    model_options: Mapping[str, Any] = {}
    lora_targets: tuple[str, ...] = ("query", "key")
    published_head: bool = False
    config_class: Any
    stock_class: Any  # the one of transformers
    model_class: Any  # the same with a contact head
    masked_lm_class: Any  # the stock class that predicts masked residues
    layer_class: type[nn.Module]  # the stock layer, which is also called for its contact shares

    def describes(self, config: Mapping[str, Any]) -> bool:
        """Whether a ``config.json`` is of this family, among those of its ``model_type``."""
        return True

    @abstractmethod
    def layers(self, model: Any) -> nn.ModuleList:
        """The model's layers, first to last."""

    @abstractmethod
    def embed(self, model: Any, tokens: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """What the first layer takes, (B, T, E).

        Args:
            model: The model.
            tokens: int64 (B, T).
            mask: bool (B, T), False at padding.
            positions: int64 (1 or B, T), from 0.
        """

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

    def attention_dropout(self, config: Any) -> float:
        """Dropout on attention maps."""
        return config.attention_probs_dropout_prob

    def check(self, name: str, config: Any) -> None:
        """Refuse a configuration whose model could not be run.

        Args:
            name: Of the model, for the message.
            config: An object of ``config_class``.

        Raises:
            ModelError: Other tokens than the family's, or something else that is not supported.
        """
        own = {"vocab_size": self.tokens.size, "pad_token_id": self.tokens.pad}
        own |= {"mask_token_id": self.tokens.mask} if hasattr(config, "mask_token_id") else {}
        ids = tuple(getattr(config, key) for key in own)
        if [type(value) for value in ids] != [int] * len(ids) or ids != tuple(own.values()):
            *first, last = own
            names = f"{', '.join(first)} and {last}"
            raise ModelError(
                f"{name}: model_type is {config.model_type!r}, but {names} are {ids}; those of {self.name}, whose "
                f"tokens are used here, are {tuple(own.values())}"
            )


class ContactHead(nn.Module):
    """A contact head for a model that brings none: a logistic regression over C attention maps.

    Args:
        maps: C.
    """

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.regression = nn.Linear(maps, 1)
