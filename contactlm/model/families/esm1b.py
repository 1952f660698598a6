"""ESM-1b (Rives et al. 2021) and ESM-1v (Meier et al. 2021): ``EsmModel`` with learned positions.

ESM-1b normalises its embeddings and has a trained contact head; ESM-1v does neither: the contact head in its published
checkpoints was never trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from contactlm.model.families.esm2 import Esm2, EsmFamily


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


FAMILIES = (Esm1b(), Esm1v())
