"""A masked language model of any family: tokens in, logits of the amino acids out."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contactlm.model.families.family import Family, LanguageModelHead
from contactlm.model.families.registry import family_of
from contactlm.model.loading import quiet_transformers
from contactlm.model.residue_encoder import ResidueEncoder
from contactlm.types import ModelError


class MaskedLanguageModel(nn.Module):
    """A language model with the head it was trained with, frozen, for some letters of its vocabulary.

    Args:
        esm: The backbone. Used as it is and not copied.
        head: That head.
        letters: Tokens whose logits are given, in this order; the family's own numbers.

    Raises:
        ModelError: A backbone with dropout on its attention maps.
    """

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
        """Compute logits.

        Args:
            tokens: int64 (B, T), the family's own numbers: ``<cls>``, residues, ``<eos>``, then ``<pad>``.
            attention_mask: (B, T), zero or False at padding; None: wherever a token is ``<pad>``.
            positions: int64 (B, T), the tokens' positions in the protein; None: 0, 1, 2, …

        Returns:
            float32 (B, T, letters), also in mixed precision (float64 of a float64 model); 0 at the first and the last
            token, meaningless where there is no residue.

        Raises:
            ModelError: Tokens that are not (B, T) with T at least 3, or a mask or positions of another shape.
        """
        states, _ = self.encoder(tokens, attention_mask, positions)
        states = self.transform(states)
        with torch.autocast(tokens.device.type, enabled=False):  # differences of logits need the digits
            logits = self.letters(states.to(self.letters.weight))
        return F.pad(logits, (0, 0, 1, 1))


def load_language_model_head(esm: Any, pretrained: str | None, seed: int = 0) -> LanguageModelHead:
    """Load the head that a backbone was trained with as a masked language model.

    Args:
        esm: The backbone, from the same source.
        pretrained: Hub name, or local directory saved from ``EsmForMaskedLM``, ``EsmcForMaskedLM`` or
            ``BertForMaskedLM``; None for random weights.
        seed: Decides random weights. The global generators are left alone.

    Raises:
        ModelError: The checkpoint holds no such head.
    """
    family = family_of(esm.config)
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.random.default_generator.manual_seed(seed)
        if pretrained is None:
            return _random_head(esm)
        whole, report = family.masked_lm_class.from_pretrained(
            pretrained, output_loading_info=True, dtype=torch.float32
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
