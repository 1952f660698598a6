"""The decoder: the query's residues read segments of known structures, and its attention maps tell of contacts.

Each layer lets residues read segment tokens (cross-attention), then attend to each other. The self-attention runs
through the same contact attention as the backbone's, so that its maps enter the contact logits by the same formula
(see :mod:`contactlm.model.contact_attention`) and are never stored. Cross-attention comes first: so even the first
layer's maps know what was read.

Axis letters: B batch, T tokens, L residues (T − 2), S segments, W decoder width, E the backbone's hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contactlm.model.blocks import TokenLayout
from contactlm.model.contact_attention import Shares, contact_logits
from contactlm.model.evidence import Evidence
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

    Args:
        hidden_width: Width of the states, E.
        width: Width of the tokens, W.
    """

    def __init__(self, hidden_width: int, width: int) -> None:
        super().__init__()
        self.states = nn.Linear(hidden_width, width)
        self.kind = nn.Parameter(_START_SPREAD * torch.randn(2, width))
        self.numbers = nn.Linear(3, width)
        self.nothing = nn.Parameter(_START_SPREAD * torch.randn(width))
        self.norm = nn.LayerNorm(width)

    def forward(self, evidence: Evidence, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Make tokens.

        Args:
            evidence: Of B queries.
            positions: (1 or B, L), position of each residue.

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

    Args:
        width: W, a multiple of 16: the width of its heads.
        last: Whether nobody reads the layer's output: its self-attention then makes maps only.
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
        self,
        hidden: Tensor,
        angles: Tensor,
        segments: tuple[Tensor, Tensor, Tensor],
        head_weight: Tensor,
        layout: TokenLayout,
        attention: Attention,
    ) -> Shares:
        """Run the layer.

        Args:
            hidden: (B, T, W).
            angles: Rotary angles of the tokens' positions, (1 or B, T, 8).
            segments: Segment tokens (B, S + 1, W), angles of their positions (B, S + 1, 8), and which there are.
            head_weight: (heads,), weights of this layer's maps in the contact logits.
            layout: Which tokens are what.
            attention: The streamed or the plain operation.

        Returns:
            The layer's output (B, T, W), None of the last; ``weighted`` and ``margins`` as of
            :func:`~contactlm.model.contact_attention.contact_attention`.
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

    Args:
        hidden_width: Width of the backbone's states, E.
        layers: Number of layers.
        width: W, a multiple of 16.
        seed: Decides the first weights; the global generators are left alone.

    Raises:
        ModelError: No layer, or a width that is no multiple of 16.
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

        Args:
            states: (B, T, E), final states of the backbone.
            positions: (1 or B, T), the tokens' positions.
            evidence: Of the residues shown.
            layout: Which tokens are what.
            attention: The streamed or the plain operation.
        """
        tokens, centres, there = self.segments(evidence, positions[:, 1:-1])
        angles, token_angles = (self._angles(each) for each in (positions, centres))
        hidden: Any = self.enter(states)
        weights, total, margins = SCALE * self.head_weight, hidden.new_zeros(()), []
        for layer, weight in zip(self.layers, weights, strict=True):
            hidden, share, margin = layer(hidden, angles, (tokens, token_angles, there), weight, layout, attention)
            total = total + share
            margins.append(margin)
        return _residue_logits(total, margins, weights)

    def _angles(self, positions: Tensor) -> Tensor:
        return positions.unsqueeze(-1).float() * self.inverse_frequencies.float()


def _residue_logits(weighted: Tensor, margins: Sequence[Tensor], weights: Tensor) -> Tensor:
    residues = slice(1, -1)
    margin = torch.cat(list(margins), 1)[:, :, residues]
    return contact_logits(weighted[:, residues, residues], margin, weights.flatten(), None)


def _heads(x: Tensor) -> Tensor:
    """Split (B, T, W) into heads: (B, T, H, 16)."""
    return x.view(*x.shape[:2], -1, HEAD_WIDTH)
