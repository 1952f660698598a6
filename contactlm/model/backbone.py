"""A protein language model as a contact predictor: tokens in, contact logits out, no attention map kept."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from contactlm.model.blocks import TokenLayout, has_numbers
from contactlm.model.contact_attention import contact_attention, contact_attention_plain, contact_logits, read_outs
from contactlm.model.families.family import family_of
from contactlm.model.fused.op import contact_attention_fused
from contactlm.model.loading import backbone_checksum, load_esm
from contactlm.model.lora import contact_regression, warn_of_idle_adapters
from contactlm.model.pair_head import PairHead
from contactlm.model.trunk import Attention, read_batch
from contactlm.types import ModelError

__all__ = ["ContactBackbone", "backbone_checksum", "load_esm"]

Wanted = Literal["contacts", "bins", "distances", "distribution"]
AttentionName = Literal["auto", "streamed", "fused", "plain"]
ATTENTION: dict[str, Attention] = {
    "auto": contact_attention,
    "streamed": contact_attention,
    "fused": contact_attention_fused,
    "plain": contact_attention_plain,
}


class ContactBackbone(nn.Module):
    """A language model with its contact head, giving logits.

    The last layer's value, output and feed-forward parts, the final layer norm and a pooler feed nothing but hidden
    states that the contact head does not read: they are not run, and their parameters are set to
    ``requires_grad=False``. Put LoRA adapters in (:func:`~contactlm.model.lora.add_lora`) before building this.

    Args:
        esm: The backbone, of any family. Used as it is and not copied; its training mode is kept.
        attention: ``"streamed"`` computes the attention maps block by block, again in the backward pass;
            ``"fused"`` does so in Triton kernels, on a GPU; ``"plain"`` stores them, one layer at a time, and leaves
            the gradient to autograd. ``"auto"`` is ``"streamed"`` on every device: the fused operation is checked
            against the plain one, but it was not timed on a GPU yet.
        whole: Whether something else reads the hidden states: then those parts are run, and may learn.
        pair: A pair head, which corrects the contact head's logits; None: there is none.

    Raises:
        ModelError: Another ``attention``.

    Warns:
        UserWarning: Adapters in parts that are not run, which learn nothing.
    """

    def __init__(
        self, esm: Any, attention: AttentionName = "auto", whole: bool = False, pair: PairHead | None = None
    ) -> None:
        super().__init__()
        if attention not in ATTENTION:
            raise ModelError(f"attention: {attention!r} given; choose from {sorted(ATTENTION)}")
        self.esm, self.family = esm, family_of(esm.config)
        self.family.stop_attention_dropout(esm.config)
        self.attention, self.pair = attention, pair
        self.whole = whole or (pair is not None and pair.reads_states)
        for layer in self.family.layers(esm):
            layer.__class__ = self.family.layer_class
        unread = () if self.whole else self.family.after_the_last_maps(esm)
        for module in (getattr(esm, "pooler", None), *unread):
            if module is not None:
                module.requires_grad_(False)
        warn_of_idle_adapters(esm, unread)

    def forward(
        self,
        tokens: Tensor,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
        *,
        wanted: Wanted = "contacts",
    ) -> Any:
        """Predict contact logits.

        Args:
            tokens: int64 (B, T), the family's own numbers: ``<cls>``, residues, ``<eos>``, then ``<pad>``.
            attention_mask: (B, T), zero or False at padding; None: wherever a token is ``<pad>``.
            positions: int64 (B, T), the tokens' positions in the protein; None: 0, 1, 2, …
            wanted: What a pair head is to give, as of :class:`~contactlm.model.pair_head.PairHead`.

        Returns:
            float32 (B, T − 2, T − 2), symmetric (float64 of a float64 model). Entries of padding and of ``<eos>``
            are 0.

        Raises:
            ModelError: Tokens that are not (B, T) with T at least 3, a mask or positions of another shape, or more
                tokens than the family has learned positions for.
        """
        mask, layout, places = self.read(tokens, attention_mask, positions)
        logits, hidden, maps = self.logits_and_hidden(tokens, mask, layout, places, self.whole)
        if self.pair is None:
            return self.without_padding(logits, layout)
        states = self.family.final_norm(self.esm, hidden) if self.whole else None
        return self.corrected(maps, logits, layout, positions, states, wanted)

    def corrected(
        self, maps: Any, logits: Tensor, layout: TokenLayout, positions: Tensor | None, states: Tensor | None,
        wanted: Wanted, more: Tensor | None = None,
    ) -> Any:  # fmt: skip
        """What the pair head makes of read-outs and logits; ``positions`` and ``states`` are those of tokens."""
        pair: Any = self.pair
        inner = (None if x is None else x[:, 1:-1] for x in (positions, states))
        made = pair(maps, logits, layout.residue[:, 1:-1], *inner, wanted, more)
        if isinstance(made, Tensor):
            return self.without_padding(made, layout)
        return made._replace(contact=self.without_padding(made.contact, layout))

    def read(
        self, tokens: Tensor, attention_mask: Tensor | None, positions: Tensor | None
    ) -> tuple[Tensor, TokenLayout, Tensor]:
        """Check a batch; return which tokens are attended to, which are what, and their positions (1 or B, T)."""
        return read_batch(self.family, self.esm.config, tokens, attention_mask, positions)

    def logits_and_hidden(
        self, tokens: Tensor, mask: Tensor, layout: TokenLayout, positions: Tensor, hidden: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Run the layers on what :meth:`read` gives; ``hidden``: whether to run the last one to its end.

        Returns:
            Contact logits (B, T − 2, T − 2), meaningless where a residue is padding; the last layer's output
            (B, T, E), before the final layer norm, or None; and the read-outs (B, K, T − 2, T − 2) for a pair head.
        """
        embedded = self.family.embed(self.esm, tokens, mask, positions)
        regression, layers = contact_regression(self.esm), len(self.family.layers(self.esm))
        weights, bias = regression.weight.view(layers, -1), regression.bias
        if self.pair is not None:  # of each layer (K, H)
            weights = self.pair.weights(regression.weight).unflatten(1, (layers, -1)).transpose(0, 1)
        active = self._active_heads(weights)
        angles = self.family.angles(self.esm, positions)
        output, weighted, margins = self._shares(embedded, angles, weights, active, layout, hidden)
        weighted, margins = weighted[..., 1:-1, 1:-1], margins[:, :, 1:-1]
        if self.pair is not None:
            maps, first = read_outs(weighted, margins, weights.transpose(0, 1).flatten(1))
            return first if bias is None else first + bias.to(maps), output, maps
        if active is not None:
            weights = torch.cat([weight[heads] for weight, heads in zip(weights, active, strict=True)])
        return contact_logits(weighted, margins, weights.flatten(), bias), output, None

    def _active_heads(self, weights: Tensor) -> list[list[int]] | None:
        """List every layer's heads that the contact head reads; None: all.

        All where their weights can be trained, and where nobody may wait for the answer: the fused operation skips
        idle heads by itself.
        """
        if self.pair is not None or (torch.is_grad_enabled() and weights.requires_grad):
            return None
        if self.attention == "fused" or not has_numbers(weights):
            return None
        active = [[head for head, weight in enumerate(row) if weight != 0] for row in weights.tolist()]
        return None if all(len(heads) == weights.shape[1] for heads in active) else active

    @staticmethod
    def without_padding(logits: Tensor, layout: TokenLayout) -> Tensor:
        """Set the logits of padding and of ``<eos>`` to 0."""
        if layout.at_hand and layout.regular and layout.unpadded:
            return logits
        inside = layout.residue[:, 1:-1]
        pairs = inside[:, :, None] & inside[:, None, :]
        return logits.masked_fill(~(pairs if logits.ndim == 3 else pairs.unsqueeze(1)), 0)

    def _shares(
        self, hidden: Any, angles: Tensor | None, weights: Tensor, active: list[list[int]] | None, layout: TokenLayout,
        to_the_end: bool,
    ) -> tuple[Any, Tensor, Tensor]:  # fmt: skip
        """Return the last layer's output, ``weighted`` summed over layers (K of them alike) and margins (B, C, T)."""
        layers, margins = self.family.layers(self.esm), []
        total: Any = None
        for index, layer in enumerate(layers):
            how = {
                "layout": layout,
                "attention": ATTENTION[self.attention],
                "last": layer is layers[-1] and not to_the_end,
                "active": None if active is None else active[index],
            }
            # The shares are outputs of the layer: where it is checkpointed, its second run adds nothing twice.
            hidden, share, margin = layer(hidden, angles, weights[index], shares=how)
            total = share if total is None else total.add_(share)
            margins.append(margin)
        return hidden, total, torch.cat(margins, dim=1)
