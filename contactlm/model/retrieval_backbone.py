"""A language model with its contact head and, beside it, a decoder that reads known structures."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from contactlm.model.backbone import AttentionName, ContactBackbone
from contactlm.model.decoder import ContactDecoder
from contactlm.model.evidence import Evidence
from contactlm.model.template import TemplateBias


class RetrievalBackbone(ContactBackbone):
    """Contact logits of the backbone, plus the decoder's and the template bias, both 0 at first.

    The decoder reads the backbone's final states; the last layer is therefore run in full.

    Args:
        esm: The backbone, as for :class:`~contactlm.model.backbone.ContactBackbone`.
        attention: As there.
        layers: Layers of the decoder.
        width: Its width.
        template_bias: Whether pairs get the bias.
        seed: Of the decoder's first weights.

    Raises:
        ModelError: Options of the decoder that make no sense, and as there.
    """

    def __init__(
        self,
        esm: Any,
        attention: AttentionName = "auto",
        layers: int = 2,
        width: int = 128,
        template_bias: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(esm, attention, whole=True)
        self.decoder = ContactDecoder(esm.config.hidden_size, layers, width, seed)
        self.template = TemplateBias() if template_bias else None

    def forward(
        self,
        tokens: Tensor,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
        evidence: Evidence | None = None,
    ) -> Tensor:
        """Predict contact logits.

        Args:
            tokens: int64 (B, T): ``<cls>``, residues, ``<eos>``, then ``<pad>``.
            attention_mask: (B, T), zero or False at padding; None: wherever a token is ``<pad>``.
            positions: int64 (B, T), the tokens' positions in the protein; None: 0, 1, 2, …
            evidence: What is known of the residues shown; None: nothing was found.

        Returns:
            As of :class:`~contactlm.model.backbone.ContactBackbone`.

        Raises:
            ModelError: Tokens that are not (B, T) with T at least 3, or a mask or positions of another shape.
        """
        mask, layout, positions = self.read(tokens, attention_mask, positions)
        logits, hidden = self.logits_and_hidden(tokens, mask, layout, positions, hidden=True)
        if evidence is None:
            B, T = tokens.shape
            evidence = Evidence.none(B, T - 2, self.esm.config.hidden_size, device=tokens.device)
        evidence = evidence.on(tokens.device)
        states = self.family.final_norm(self.esm, hidden)
        logits = logits + self.decoder(states, positions, evidence, layout, self.operation)
        if self.template is not None:
            logits = logits + self.template(evidence)
        return self.without_padding(logits, layout)
