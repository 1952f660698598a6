"""Where the residues of a padded batch lie, and in which blocks its attention maps are worked off.

Axis letters: B batch, T tokens, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from contactlm.alphabet import EOS

# What one block of attention maps may take: on a processor about its second-level cache, so that the next step of the
# work finds it there; on an accelerator enough to keep it busy, and little beside its memory.
BLOCK_BYTES = {"cpu": 4 << 20}
ACCELERATOR_BLOCK_BYTES = 256 << 20


@dataclass(frozen=True)
class TokenLayout:
    """Which tokens of a batch are residues and which may be attended to.

    Attributes:
        residue: bool (B, T), the tokens between ``<cls>`` and ``<eos>``.
        key_bias: float32 (B, T), 0 where a token is attended to and −inf where it is padding.
        lengths: For every sample, the number of tokens up to its last attended one.
        holes: Whether some sample has unattended tokens before its last attended one.
    """

    residue: Tensor
    key_bias: Tensor
    lengths: tuple[int, ...]
    holes: bool

    @classmethod
    def of(cls, tokens: Tensor, attention_mask: Tensor) -> TokenLayout:
        """Read the layout off a batch (one transfer from the device).

        Args:
            tokens: int64 (B, T), ``<cls>`` first.
            attention_mask: bool (B, T), False at padding.
        """
        B, T = tokens.shape
        residue = attention_mask & (tokens != EOS)
        residue[:, 0] = residue[:, -1] = False
        last = torch.where(attention_mask, torch.arange(1, T + 1, device=tokens.device), 0).amax(1)
        counts = torch.stack([last, attention_mask.sum(1)]).tolist()
        # A sample that attends to nothing would have no softmax; it attends to its first token instead.
        attended = attention_mask.clone()
        attended[:, 0] |= ~attention_mask.any(1)
        key_bias = torch.zeros(B, T, device=tokens.device).masked_fill(~attended, -torch.inf)
        return cls(residue, key_bias, tuple(max(1, n) for n in counts[0]), counts[0] != counts[1])


@dataclass(frozen=True)
class Block:
    """Some samples' attention maps: the given rows, the first ``keys`` columns.

    Attributes:
        samples: Which samples.
        rows: Which query tokens.
        keys: How many key tokens: the longest sample's length.
        biased: Whether some sample is shorter than ``keys``.
    """

    samples: slice
    rows: slice
    keys: int
    biased: bool

    @property
    def entries(self) -> int:
        """Entries of one head's maps in the block."""
        return (self.samples.stop - self.samples.start) * (self.rows.stop - self.rows.start) * self.keys


def block_bytes(device: torch.device) -> int:
    """How much memory one block of attention maps may take on this kind of device."""
    return BLOCK_BYTES.get(device.type, ACCELERATOR_BLOCK_BYTES)


def plan_blocks(lengths: Sequence[int], heads: int, device: torch.device, item_size: int) -> list[Block]:
    """Cut a batch's attention maps into blocks: several short samples at a time, or some rows of a long one."""
    entries = block_bytes(device) // (item_size * heads)
    blocks, start = [], 0
    while start < len(lengths):
        stop, longest = start + 1, lengths[start]
        while stop < len(lengths) and (stop + 1 - start) * max(longest, lengths[stop]) ** 2 <= entries:
            longest = max(longest, lengths[stop])
            stop += 1
        biased = min(lengths[start:stop]) < longest
        step = max(8, min(longest, entries // longest)) if stop == start + 1 else longest
        for row in range(0, longest, step):
            blocks.append(Block(slice(start, stop), slice(row, min(longest, row + step)), longest, biased))
        start = stop
    return blocks
