"""A language model with its contact head and a decoder that reads segments of known structures.

Each layer of the decoder lets residues read segment tokens (cross-attention), then attend to each other. The
self-attention runs through the same contact attention as the backbone's, so that its maps enter the contact logits by
the same formula (see :mod:`contactlm.model.contact_attention`) and are never stored. Cross-attention comes first: so
even the first layer's maps know what was read.

Axis letters: B batch, T tokens, L residues (T − 2), S segments, W decoder width, E the backbone's hidden width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contactlm.model.backbone import ATTENTION, AttentionName, ContactBackbone, Wanted
from contactlm.model.blocks import TokenLayout
from contactlm.model.contact_attention import Shares, contact_logits
from contactlm.model.evidence import HIT_CHANNELS, CopyTrust, Evidence, TemplateBias, hit_channels
from contactlm.model.lora import contact_regression
from contactlm.model.pair_head import PairHead, PairOptions
from contactlm.model.trunk import Attention, rotate
from contactlm.types import ModelError

HEAD_WIDTH = 16
SCALE = 10.0
"""The weights of the decoder's maps are so many times what is learned: the maps' entries are about 1 / L."""
_ROTARY_BASE = 10_000.0
_START_SPREAD = 0.02


class SegmentTokens(nn.Module):
    """Makes the tokens that residues read: one a segment, and one that says that nothing was found.

    A segment's token is the sum of projections of its mean state in the frozen backbone, of its kind (helix or strand)
    and of three numbers: pair identity and coverage of its hit, and the logarithm of its aligned residues.
    """

    def __init__(self, hidden_width: int, width: int) -> None:
        super().__init__()
        self.states = nn.Linear(hidden_width, width)
        self.kind = nn.Parameter(_START_SPREAD * torch.randn(2, width))
        self.numbers = nn.Linear(3, width)
        self.nothing = nn.Parameter(_START_SPREAD * torch.randn(width))
        self.norm = nn.LayerNorm(width)

    def forward(self, evidence: Evidence, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Make tokens of the evidence of B queries, whose residues have positions (1 or B, L).

        Returns:
            Tokens (B, S + 1, W); their positions on the query, float32 (B, S + 1); bool (B, S + 1), which of them there
            are: the last, "nothing found", where there is no other.
        """
        centres, counts = evidence.centres(positions)
        B = len(centres)
        similarity = evidence.similarity.gather(1, evidence.hit_of.unsqueeze(-1).expand(-1, -1, 2))
        numbers = torch.cat([similarity, counts.clamp(min=1).log().unsqueeze(-1)], -1)
        dtype = self.nothing.dtype
        kinds = self.kind[evidence.strand.long()]
        tokens = self.states(evidence.states.to(dtype)) + kinds + self.numbers(numbers.to(dtype))
        tokens = torch.cat([tokens, self.nothing.expand(B, 1, -1)], 1)
        found = counts > 0
        there = torch.cat([found, ~found.any(1, keepdim=True)], 1)
        return self.norm(tokens), F.pad(centres, (0, 1)), there


class DecoderLayer(nn.Module):
    """Cross-attention to segment tokens, self-attention with contact shares, feed-forward; each after a layer norm.

    Nobody reads the output of the last layer: its self-attention makes maps only.
    """

    def __init__(self, width: int, last: bool) -> None:
        super().__init__()
        self.last = last
        self.norm_cross, self.norm_self = nn.LayerNorm(width), nn.LayerNorm(width)
        self.ask, self.offer, self.take = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        if not last:
            self.value, self.output = nn.Linear(width, width), nn.Linear(width, width)
            self.feed_forward = nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
            )

    def read(self, hidden: Tensor, angles: Tensor, tokens: Tensor, token_angles: Tensor, there: Tensor) -> Tensor:
        """Let residues read: hidden (B, T, W) and tokens (B, S + 1, W) to hidden."""
        query = rotate(_heads(self.ask(self.norm_cross(hidden))), angles, 1.0)
        key, value = (_heads(part) for part in self.offer(tokens).chunk(2, -1))
        value = value.transpose(1, 2)
        key = rotate(key, token_angles, 1.0).to(value.dtype)
        read = F.scaled_dot_product_attention(query.to(value.dtype), key, value, attn_mask=there[:, None, None])
        return hidden + self.take(read.transpose(1, 2).flatten(2))

    def forward(
        self, hidden: Tensor, angles: Tensor, segments: tuple[Tensor, Tensor, Tensor], head_weight: Tensor,
        layout: TokenLayout, attention: Attention,
    ) -> Shares:  # fmt: skip
        """Run the layer.

        Args:
            hidden: (B, T, W).
            angles: Rotary angles of the tokens' positions, (1 or B, T, 8).
            segments: Segment tokens (B, S + 1, W), angles of their positions (B, S + 1, 8), and which there are.
            head_weight: (heads,), weights of this layer's maps in the contact logits.
            layout: Which tokens are what.
            attention: Gives, with the output (B, T, W; None of the last layer), ``weighted`` and ``margins``.
        """
        hidden = self.read(hidden, angles, *segments)
        normed = self.norm_self(hidden)
        query = rotate(_heads(self.query(normed)), angles, HEAD_WIDTH**-0.5)
        key = rotate(_heads(self.key(normed)), angles, 1.0)
        value = None if self.last else _heads(self.value(normed)).transpose(1, 2)
        context, weighted, margins = attention(query, key, value, head_weight, layout)
        if context is None:
            return None, weighted, margins
        hidden = hidden + self.output(context.transpose(1, 2).flatten(2))
        return hidden + self.feed_forward(hidden), weighted, margins


class ContactDecoder(nn.Module):
    """The decoder's share of the contact logits: 0 at first, so that training starts from the plain contact head.

    ``seed`` decides the first weights; the global generators are left alone.
    """

    inverse_frequencies: Tensor

    def __init__(self, hidden_width: int, layers: int = 2, width: int = 128, seed: int = 0) -> None:
        super().__init__()
        if layers < 1 or width < 1 or width % HEAD_WIDTH:
            raise ModelError(
                f"decoder_layers is {layers} and decoder_width {width}; at least one layer is needed, and a width that "
                f"is a multiple of {HEAD_WIDTH}, the width of a head"
            )
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.enter = nn.Linear(hidden_width, width)
            self.segments = SegmentTokens(hidden_width, width)
            self.layers = nn.ModuleList(DecoderLayer(width, last=n == layers - 1) for n in range(layers))
        self.head_weight = nn.Parameter(torch.zeros(layers, width // HEAD_WIDTH))
        frequencies = _ROTARY_BASE ** -(torch.arange(0, HEAD_WIDTH, 2) / HEAD_WIDTH)
        self.register_buffer("inverse_frequencies", frequencies, persistent=False)

    def forward(
        self, states: Tensor, positions: Tensor, evidence: Evidence, layout: TokenLayout, attention: Attention
    ) -> Tensor:
        """Return the share of the logits (B, L, L), symmetric; meaningless where a residue is padding.

        ``states`` (B, T, E) are the backbone's final ones, ``positions`` (1 or B, T) the tokens'.
        """
        tokens, centres, there = self.segments(evidence, positions[:, 1:-1])
        frequencies = self.inverse_frequencies.float()
        angles, token_angles = (each.unsqueeze(-1).float() * frequencies for each in (positions, centres))
        hidden: Any = self.enter(states)
        weights, total, margins = SCALE * self.head_weight, hidden.new_zeros(()), []
        for layer, weight in zip(self.layers, weights, strict=True):
            hidden, share, margin = layer(hidden, angles, (tokens, token_angles, there), weight, layout, attention)
            total = total + share
            margins.append(margin)
        margin = torch.cat(margins, 1)[:, :, 1:-1]
        return contact_logits(total[:, 1:-1, 1:-1], margin, weights.flatten(), None)


def _heads(x: Tensor) -> Tensor:
    """Split (B, T, W) into heads: (B, T, H, 16)."""
    return x.view(*x.shape[:2], -1, HEAD_WIDTH)


class RetrievalBackbone(ContactBackbone):
    """Contact logits of the backbone, plus the decoder's and the template bias, both 0 at first.

    The decoder reads the backbone's final states; the last layer is therefore run in full.

    Args:
        esm: The backbone, as for :class:`~contactlm.model.backbone.ContactBackbone`; ``attention`` as there.
        attention: As there.
        layers: Of the decoder; ``width`` and ``seed`` likewise.
        width: As of :class:`ContactDecoder`.
        template_bias: Whether pairs get the bias.
        seed: As of :class:`ContactDecoder`.
        pair: A pair head, which reads the hits' distances and the decoder's share as well. It begins from the copy of
            the hits' contacts: their log-odds are added.
    """

    def __init__(
        self,
        esm: Any,
        attention: AttentionName = "auto",
        layers: int = 2,
        width: int = 128,
        template_bias: bool = True,
        seed: int = 0,
        pair: PairOptions | None = None,
    ) -> None:
        maps, width_of_states = contact_regression(esm).in_features, esm.config.hidden_size
        head = None if pair is None else PairHead(maps, width_of_states, pair, seed, more=1 + HIT_CHANNELS)
        super().__init__(esm, attention, whole=True, pair=head)
        self.decoder = ContactDecoder(esm.config.hidden_size, layers, width, seed)
        self.template = TemplateBias() if template_bias else None
        self.copy = None if pair is None else CopyTrust()

    def forward(
        self,
        tokens: Tensor,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
        evidence: Evidence | None = None,
        *,
        wanted: Wanted = "contacts",
    ) -> Any:
        """Predict contact logits as :class:`~contactlm.model.backbone.ContactBackbone` does.

        ``evidence`` is what is known of the residues shown; None: nothing was found.
        """
        mask, layout, places = self.read(tokens, attention_mask, positions)
        logits, hidden, maps = self.logits_and_hidden(tokens, mask, layout, places, hidden=True)
        if evidence is None:
            B, T = tokens.shape
            evidence = Evidence.none(B, T - 2, self.esm.config.hidden_size, device=tokens.device)
        evidence = evidence.on(tokens.device)
        states = self.family.final_norm(self.esm, hidden)
        share = self.decoder(states, places, evidence, layout, ATTENTION[self.attention])
        logits = logits + share
        if self.template is not None:
            logits = logits + self.template(evidence)
        if self.copy is None:
            return self.without_padding(logits, layout)
        channels = hit_channels(evidence)
        more = torch.cat([share.unsqueeze(1), channels.to(share)], 1)
        return self.corrected(maps, logits + self.copy(channels), layout, positions, states, wanted, more)
