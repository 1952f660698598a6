"""Where the residues of a padded batch lie, and in which blocks its attention maps are worked off.

Axis letters: B batch, T tokens, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from contactlm.alphabet import EOS

# What the current blocks may take: on a processor what its caches hold, so that the next step of the work finds them
# there; on an accelerator enough to keep it busy, and little compared with its memory.
CPU_BYTES_PER_THREAD = 6 << 20
CPU_MAX_BYTES = 64 << 20
ACCELERATOR_BYTES = 256 << 20
REGULAR, IRREGULAR, HOLES = 0, 1, 2  # in a sample: the residues are all attended tokens but the first and the last
_ROWS = 128  # products of fewer rows spend their time on rearranging the keys


@dataclass(frozen=True)
class TokenLayout:
    """Which tokens of a batch are residues and which may be attended to.

    What is on the device is made there; what the processor asks for costs one transfer, at the first question.
    """

    residue: Tensor  # bool (B, T), the tokens between <cls> and <eos>
    key_bias: Tensor  # float32 (B, T), 0 where a token is attended to and −inf where it is padding
    spans: Tensor  # int32 (B, 2), of a sample: tokens up to its last attended one; REGULAR, IRREGULAR or HOLES

    @property
    def spans_at_hand(self) -> Tensor:
        """``spans`` on the CPU."""
        return self.spans.cpu() if torch.compiler.is_compiling() else self._spans_at_hand

    @cached_property
    def _spans_at_hand(self) -> Tensor:
        return self.spans.cpu()

    @cached_property
    def _known(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        lengths, kinds = zip(*self.spans_at_hand.tolist(), strict=True) if len(self.spans) else ((), ())
        return lengths, kinds

    @property
    def lengths(self) -> tuple[int, ...]:
        """For every sample, the number of tokens up to its last attended one."""
        return self._known[0]

    @property
    def holes(self) -> bool:
        """Whether some sample has unattended tokens before its last attended one."""
        return HOLES in self._known[1]

    @property
    def regular(self) -> bool:
        """Whether in every sample the residues are all attended tokens but the first and the last."""
        return all(kind == REGULAR for kind in self._known[1])

    @property
    def unpadded(self) -> bool:
        """Whether every token may be attended to."""
        return not self.holes and min(self.lengths) == self.residue.shape[1]

    @property
    def at_hand(self) -> bool:
        """Whether asking for lengths and holes costs nothing: no transfer, no break in a compiled graph."""
        return self.residue.device.type == "cpu" and has_numbers(self.residue)

    @classmethod
    def of(cls, tokens: Tensor, attention_mask: Tensor, eos: int = EOS) -> TokenLayout:
        """Read the layout off a batch (B, T), where the batch is; ``eos`` is the token after the last residue."""
        B, T = tokens.shape
        residue = attention_mask & (tokens != eos)
        residue[:, 0] = residue[:, -1] = False
        last = torch.where(attention_mask, torch.arange(1, T + 1, device=tokens.device), 0).amax(1)
        holes = last != attention_mask.sum(1)
        # As many residues as that, and neither the first nor the last token among them: they are all between.
        closed = ~residue.gather(1, last.clamp(min=1).unsqueeze(1) - 1).squeeze(1)
        irregular = (residue.sum(1) != last - 2) | ~closed
        kind = torch.where(holes, HOLES, irregular.int())
        # A sample that attends to nothing would have no softmax; it attends to its first token instead.
        attended = attention_mask.clone()
        attended[:, 0] |= ~attention_mask.any(1)
        key_bias = torch.zeros(B, T, device=tokens.device).masked_fill(~attended, -torch.inf)
        return cls(residue, key_bias, torch.stack([last.clamp(min=1), kind], 1).int())


def has_numbers(tensor: Tensor) -> bool:
    """Whether values can be asked for: neither in a graph that is being compiled, nor of a tensor without data."""
    return not torch.compiler.is_compiling() and not isinstance(tensor, FakeTensor)


@dataclass(frozen=True)
class Block:
    """Some rows of some heads' attention maps of some samples, and their first ``keys`` columns."""

    samples: slice
    heads: slice  # all of them where there are several samples; so are rows, query tokens
    rows: slice
    keys: int  # tokens of the longest sample
    biased: bool  # whether some sample is shorter

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Samples, heads, rows, keys."""
        samples, heads, rows = (part.stop - part.start for part in (self.samples, self.heads, self.rows))
        return samples, heads, rows, self.keys

    @property
    def queries(self) -> tuple[slice, slice, slice]:
        """Index of the block's queries in a tensor (B, H, T, ...)."""
        return self.samples, self.heads, self.rows

    @property
    def columns(self) -> tuple[slice, slice, slice]:
        """Index of the block's keys in a tensor (B, H, T, ...)."""
        return self.samples, self.heads, slice(0, self.keys)


def block_bytes(device: torch.device) -> int:
    """How much memory the current blocks may take on this kind of device."""
    if device.type != "cpu":
        return ACCELERATOR_BYTES
    return min(CPU_MAX_BYTES, CPU_BYTES_PER_THREAD * torch.get_num_threads())


def plan_blocks(
    lengths: Sequence[int], heads: int, device: torch.device, entry_bytes: int, all_heads: bool = False
) -> list[Block]:
    """Cut a batch's attention maps into blocks: several short samples at a time, or parts of a long one.

    ``all_heads``: no block has some heads only.
    """
    entries = block_bytes(device) // entry_bytes
    blocks, start = [], 0
    while start < len(lengths):
        stop, longest = start + 1, lengths[start]
        while stop < len(lengths) and heads * (stop + 1 - start) * max(longest, lengths[stop]) ** 2 <= entries:
            longest = max(longest, lengths[stop])
            stop += 1
        samples, biased = slice(start, stop), min(lengths[start:stop]) < longest
        if stop > start + 1:
            blocks.append(Block(samples, slice(0, heads), slice(0, longest), longest, biased))
        else:
            blocks += _cut(samples, heads, longest, entries, all_heads)
        start = stop
    return blocks


def _cut(samples: slice, heads: int, tokens: int, entries: int, all_heads: bool) -> list[Block]:
    """Cut one sample's maps: enough heads for every thread, then rows, in parts of nearly one size."""
    group = heads
    if not all_heads:
        group = min(heads, max(torch.get_num_threads(), entries // (min(tokens, _ROWS) * tokens)))
    step = max(8, min(tokens, entries // (group * tokens)))
    return [Block(samples, part, rows, tokens, False) for rows in _even(tokens, step) for part in _even(heads, group)]


def _even(total: int, most: int) -> list[slice]:
    parts = -(-total // most)
    cuts = [total * i // parts for i in range(parts + 1)]
    return [slice(*cut) for cut in pairwise(cuts)]
