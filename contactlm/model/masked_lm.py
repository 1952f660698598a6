"""ESM2 as a masked language model: tokens in, logits of the amino acids out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import EsmForMaskedLM, EsmModel
from transformers.models.esm.modeling_esm import EsmLMHead

from contactlm.model.families.family import Family
from contactlm.model.families.registry import family_of
from contactlm.model.loading import quiet_transformers
from contactlm.model.residue_encoder import ResidueEncoder
from contactlm.types import ModelError


class MaskedLanguageModel(nn.Module):
    """ESM2 with its language-model head, frozen, for some letters of its vocabulary.

    Args:
        esm: The backbone. Used as it is and not copied.
        head: The head it was trained with.
        letters: Tokens whose logits are given, in this order.

    Raises:
        ModelError: A backbone with dropout on its attention maps.
    """

    def __init__(self, esm: EsmModel, head: EsmLMHead, letters: Sequence[int]) -> None:
        super().__init__()
        self.encoder = ResidueEncoder(esm)
        self.dense, self.layer_norm = head.dense, head.layer_norm
        self.letters = nn.Linear(esm.config.hidden_size, len(letters))
        with torch.no_grad():
            self.letters.weight.copy_(head.decoder.weight[list(letters)])
            self.letters.bias.copy_(head.bias[list(letters)])
        self.requires_grad_(False)

    @property
    def esm(self) -> EsmModel:
        """The backbone."""
        return self.encoder.esm

    @property
    def family(self) -> Family:
        """What is known of the backbone's family."""
        return self.encoder.family

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """Compute logits.

        Args:
            tokens: int64 (B, T): ``<cls>``, residues, ``<eos>``, then ``<pad>``.
            attention_mask: (B, T), zero or False at padding; None: wherever a token is ``<pad>``.
            positions: int64 (B, T), the tokens' positions in the protein; None: 0, 1, 2, …

        Returns:
            float32 (B, T, letters), also in mixed precision (float64 of a float64 model); 0 at the first and the last
            token, meaningless where there is no residue.

        Raises:
            ModelError: Tokens that are not (B, T) with T at least 3, or a mask or positions of another shape.
        """
        states, _ = self.encoder(tokens, attention_mask, positions)
        states = self.layer_norm(F.gelu(self.dense(states)))
        with torch.autocast(tokens.device.type, enabled=False):  # differences of logits need the digits
            logits = self.letters(states.to(self.letters.weight))
        return F.pad(logits, (0, 0, 1, 1))


def load_language_model_head(esm: EsmModel, pretrained: str | None, seed: int = 0) -> EsmLMHead:
    """Load the head that a backbone was trained with as a masked language model.

    Args:
        esm: The backbone, from the same source.
        pretrained: Hub name, or local directory saved from ``EsmForMaskedLM``; None for random weights.
        seed: Decides random weights. The global generators are left alone.

    Raises:
        ModelError: The checkpoint holds no such head, or the backbone's tokens are not those of the ESM alphabet.
    """
    family = family_of(esm.config)
    if family.stock_class is not EsmModel or family.tokens.letters is not None:
        raise ModelError(
            f"the categorical Jacobian reads language-model heads of ESM2, ESM-1b and ESM-1v; {family.name} has "
            "another head or other tokens: read its attention maps (ContactModule; contactlm head fit)"
        )
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.random.default_generator.manual_seed(seed)
        if pretrained is None:
            head = EsmLMHead(esm.config)
            nn.init.normal_(head.dense.weight, std=esm.config.initializer_range)
            head.decoder.weight = esm.embeddings.word_embeddings.weight
            return head
        whole, report = EsmForMaskedLM.from_pretrained(pretrained, output_loading_info=True, dtype=torch.float32)
    lost = sorted(key for key in report["missing_keys"] if key.startswith("lm_head.") and "decoder" not in key)
    if lost:
        raise ModelError(
            f"{pretrained}: no language-model head ({', '.join(lost)}) in the checkpoint, and the categorical Jacobian "
            "reads its logits; give a model saved from EsmForMaskedLM, as the published ones are"
        )
    return whole.lm_head
