"""Planning a full-length contact map: which passes of the model cover every residue pair of a chain.

A chain that fits the window takes one pass. A longer one takes overlapping windows along the diagonal and, for pairs
farther apart than a window, passes of two segments (each half a window long) that keep their true positions. With
the default overlap and n = ceil(L / (window // 2)), that is at most n (n - 1) / 2 passes: one for each pair of half
windows.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from contactlm.alphabet import CLS, EOS, PAD
from contactlm.shipped import __version__
from contactlm.types import DataError, ModelError

MAX_COST = 4 * 1024**2  # token pairs of a batch, where nothing else is said

Segment = tuple[int, int]  # residues start .. stop - 1 of the chain, counted from 0

# The longest and shortest sequence of a batch: T² may differ by this factor before padding costs more than it saves.
LEAST_SHARE_OF_LONGEST = 0.75


@dataclass(frozen=True)
class WindowOptions:
    """How chains of any length are cut into passes of the model.

    Attributes:
        window: Residues in one pass; None takes every chain in one pass. ESM2 was trained on at most 1,022.
        overlap: Residues that neighbouring windows share at least; None means half the window. Less than half makes
            pairs rest on fewer windows; anything but half may take more passes.
        max_cost: Bound on the cost of one batch in token pairs, B × T² with T the longest (padded) sequence: what
            the memory of attention grows with. A single pass that is larger runs alone. None: 4 million; on a GPU a
            model that knows what its passes take sizes them by the memory that is free.
        token_cost: What a token costs in addition, in token pairs: B × (T² + ``token_cost`` T) is then bounded.
        progress: Show a progress bar for chains that take several passes.
        on_device: Leave the maps where the model is, for who reads them there; else they come to the CPU.
        border: Residues at a cut whose pairs do not count: a model looks at so many neighbours of a pair.

    Raises:
        ModelError: A value makes no sense.
    """

    window: int | None = 1022
    overlap: int | None = None
    max_cost: int | None = None
    token_cost: int = 0
    progress: bool = False
    on_device: bool = False
    border: int = 0

    def __post_init__(self) -> None:
        counts = (
            ("window", self.window, 2, "give a number of residues, or None for one pass"),
            ("overlap", self.overlap, 0, "give a number of residues, or None for half"),
            ("max_cost", self.max_cost, 1, "give a number of token pairs, such as 4194304"),
            ("token_cost", self.token_cost, 0, "give a number of token pairs, such as 0"),
        )
        for name, value, least, remedy in counts:
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise ModelError(f"{name}={value!r} is not a whole number of at least {least}: {remedy}")
        if self.overlap is not None and self.window is None:
            raise ModelError(f"overlap={self.overlap} needs windows, but window=None: give a window or drop overlap")
        if self.overlap is not None and self.window is not None and self.overlap >= self.window:
            raise ModelError(
                f"overlap={self.overlap} with window={self.window}: windows that share all their residues never "
                f"advance; give an overlap from 0 to {self.window - 1}, or None for half the window"
            )
        if self.window is not None and self.window < 4 * self.border + 2:
            raise ModelError(
                f"window={self.window}: a model that sees {self.border} residues to each side needs windows "
                f"of at least {4 * self.border + 2}; give a longer one, or None for one pass"
            )

    @property
    def bound(self) -> int:
        """``max_cost``, the default filled in."""
        return MAX_COST if self.max_cost is None else self.max_cost

    @property
    def least_overlap(self) -> int | None:
        """Residues that neighbouring windows share at least, the default filled in; None without windows."""
        if self.window is None or self.overlap is not None:
            return self.overlap
        return self.window - self.window // 2


@dataclass(frozen=True)
class Pass:
    """One sequence for the model: one contiguous segment, or two apart from each other in ascending order."""

    segments: tuple[Segment, ...]
    border: int = 0  # residues next to a cut that do not count

    @property
    def residues(self) -> int:
        """Residues in this pass; the model sees two tokens more."""
        return sum(stop - start for start, stop in self.segments)

    @property
    def block(self) -> tuple[Segment, Segment]:
        """Rows and columns of the map that this pass contributes to: the cross block when there are two segments."""
        return self.segments[0], self.segments[-1]


def plan_passes(length: int, options: WindowOptions) -> list[Pass]:
    """Choose passes whose blocks together hold every pair i ≤ j of a chain.

    Windows and segments all have their full length and start at evenly spread residues: a chain one residue longer than
    the window gets two windows. Windows come first, from left to right, then the passes of distant pairs.
    """
    if length < 1:
        raise DataError(f"a chain of {length} residues has no contact map: give a sequence of at least one residue")
    window, overlap = options.window, options.least_overlap
    if window is None or overlap is None or length <= window:
        return [Pass(((0, length),))]
    if options.border:
        return _with_borders(length, window, overlap if options.overlap is not None else None, options.border)
    return _plan(length, window, overlap)


def _with_borders(length: int, window: int, overlap: int | None, border: int) -> list[Pass]:
    """Plan shorter passes, and widen each to what its window may hold, so that every pair counts somewhere."""
    inner = window - 4 * border
    least = inner - inner // 2 if overlap is None else min(max(0, overlap - 2 * border), inner - 1)
    return [_widened(piece, length, border) for piece in _plan(length, inner, least)]


def _widened(piece: Pass, length: int, border: int) -> Pass:
    (start, stop), (first, last) = piece.block
    if len(piece.segments) == 1:
        return Pass(((max(0, start - 2 * border), min(length, stop + 2 * border)),), border)
    if first - stop <= 2 * border:  # they would meet
        return Pass(((max(0, start - border), min(length, last + border)),), border)
    return Pass(((max(0, start - border), stop + border), (first - border, min(length, last + border))), border)


def _plan(length: int, window: int, overlap: int) -> list[Pass]:
    count = -(-(length - window) // (window - overlap)) + 1
    starts = _even_starts(0, length - window, count)
    plans = (_distant_passes(length, window, starts, aligned) for aligned in (True, False))
    return [Pass(((start, start + window),)) for start in starts] + min(plans, key=len)


def _even_starts(first: int, last: int, count: int) -> list[int]:
    """Spread ``count`` starts from first to last; neighbours differ by at most ceil((last - first) / (count - 1))."""
    if count == 1:
        return [last]
    return [first + (last - first) * k // (count - 1) for k in range(count)]


def _distant_passes(length: int, window: int, starts: list[int], aligned: bool) -> list[Pass]:
    """Cover the pairs that no window holds, row segment by row segment.

    What windows leave above the diagonal is a staircase. A row segment that starts where a window does (``aligned``)
    has the fewest columns left; one that starts where the segment before ended needs the fewest segments. Which is
    better depends on the overlap; for half the window they are the same.
    """
    half = window // 2
    rest = window - half
    passes = []
    row = 0
    while row < length - window:
        covered = starts[bisect_right(starts, row) - 1] + window
        if covered <= row + half:  # two segments would touch: a window between those of the plan does it in one piece
            passes.append(Pass(((row, row + window),)))
            covered = row + window
        count = -(-(length - covered) // rest)
        columns = _even_starts(covered, length - rest, count)
        passes += [Pass(((row, row + half), (column, column + rest))) for column in columns]
        step = starts[bisect_right(starts, row + half) - 1]
        row = step if aligned and step > row else row + half
    return passes


def batch_by_cost(tokens: Sequence[int], max_cost: int, token_cost: int = 0) -> list[list[int]]:
    """Group sequences of similar length so that B × (T² + ``token_cost`` T) of a batch, padded, stays within a bound.

    ``tokens`` are T of each sequence; one that exceeds the bound makes a batch alone. Their indices are returned, the
    longest first (what does not fit fails at once); sequences of one length keep their order.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(tokens)), key=lambda k: -tokens[k]):
        longest = tokens[batches[-1][0]] if batches else 0
        fits = batches and (len(batches[-1]) + 1) * (longest + token_cost) * longest <= max_cost
        if fits and tokens[index] ** 2 >= LEAST_SHARE_OF_LONGEST * longest**2:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def checked_chains(
    chains: Iterable[Tensor], positions: Iterable[Tensor | None] | None
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Residue tokens (L,) of each chain, and its positions, int64 (L,) on the CPU, or None."""
    pairs = zip(chains, repeat(None)) if positions is None else zip(chains, positions, strict=True)
    for index, (tokens, own) in enumerate(pairs):
        if problem := _problem(tokens, own):
            raise DataError(f"chain {index}{problem}")
        yield tokens, None if own is None else own.cpu().long()


def _problem(tokens: Tensor, positions: Tensor | None) -> str | None:
    if tokens.ndim != 1 or not _is_integer(tokens):
        return f": tokens are {tokens.dtype} {tuple(tokens.shape)}: give one integer per residue, shape (L,)"
    if len(tokens) == 0:
        return " is empty and has no contact map: give a sequence of at least one residue"
    special = (tokens == CLS) | (tokens == EOS) | (tokens == PAD)
    if special.any():
        where = int(special.int().argmax())
        return (
            f": token {int(tokens[where])} at index {where} is <cls>, <pad> or <eos>: "
            "give residue tokens only, special tokens are added here"
        )
    if positions is None:
        return None
    if positions.shape != tokens.shape or not _is_integer(positions):
        return (
            f": positions are {positions.dtype} {tuple(positions.shape)}: give one integer per residue, "
            f"shape ({len(tokens)},)"
        )
    falls = positions.long().diff() < 1
    if falls.any():
        where = int(falls.int().argmax())
        return (
            f": position {int(positions[where + 1])} follows {int(positions[where])} at index {where + 1}: "
            "positions must ascend"
        )
    return None


def _is_integer(values: Tensor) -> bool:
    return not (values.is_floating_point() or values.dtype == torch.bool)


def residues_of(piece: Pass) -> Tensor:
    """The residues of a pass, int64 (n,)."""
    return torch.cat([torch.arange(*segment) for segment in piece.segments])


def token_positions(own: Tensor) -> Tensor:
    """Positions of a pass's tokens, int64 (n + 2,), from those of its residues, int64 (n,).

    They count from ``<cls>`` = 0, not from the chain's start: smaller angles lose less to rounding.
    """
    inner = own - own[0] + 1
    return torch.cat([inner.new_zeros(1), inner, inner[-1:] + 1])


def context_weights(segment: Segment, piece: Pass, length: int, device: torch.device | None = None) -> Tensor:
    """Weight of each residue of a segment: residues to its nearest cut, in half windows, at most 1; float32 (n,).

    Those of a border have 0, and beyond it one begins to count.
    """
    start, stop = segment
    most = (piece.residues + 1) // 2
    index = torch.arange(start, stop, dtype=torch.float32, device=device)
    left = index - start + 1 if start > 0 else torch.full_like(index, most)
    right = stop - index if stop < length else torch.full_like(index, most)
    nearest = torch.minimum(left, right)
    if piece.border:
        nearest = nearest.sub_(piece.border).clamp_(min=0)
    return nearest.clamp_(max=most).div_(most)


def how_made(length: int, plan: list[Pass], options: WindowOptions, blend: str) -> dict[str, Any]:
    """How a full-length map was made, in plain values."""
    apart = sum(len(piece.segments) == 2 for piece in plan)
    whole = int(len(plan) == 1)
    return {
        "version": __version__,
        "length": length,
        "window": options.window,
        "overlap": options.least_overlap,
        **({"border": options.border} if options.border else {}),
        "passes": {"whole": whole, "window": len(plan) - whole - apart, "two_segments": apart},
        "blend": "none" if whole else blend,
    }
